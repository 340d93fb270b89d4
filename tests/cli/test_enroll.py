import json
import os
import pwd
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.cli.enroll import read_token, refuse_to_leave_files_of_root
from agent.errors import IdentityError, SettingsError
from tests.cli.conftest import Result, iggy_agent
from tests.fakes.supervisor import FakeSupervisor, status

TOKEN = "enrolment-token-1"


@pytest.fixture
async def supervisor() -> AsyncIterator[FakeSupervisor]:
    async with FakeSupervisor() as running:
        yield running


async def enroll(supervisor: FakeSupervisor, folder: Path, *arguments: str, stdin: str = TOKEN) -> Result:
    return await iggy_agent(
        *("enroll", "--url", supervisor.url, *arguments),
        stdin=stdin,
        STATE_DIRECTORY=str(folder / "state"),
        CONFIGURATION_DIRECTORY=str(folder),
    )


async def test_enrolling_makes_an_identity_and_again_says_so_and_changes_nothing(
    supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    first = await enroll(supervisor, tmp_path, "--token-file", "-")
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("enrolled as node ")
    content = (tmp_path / "state" / "identity.json").read_bytes()
    again = await enroll(supervisor, tmp_path, "--token-file", "-")
    assert again.code == 0
    assert again.out.startswith("already enrolled as node ")
    assert (tmp_path / "state" / "identity.json").read_bytes() == content
    assert supervisor.count("enroll") == 1
    answer = (await enroll(supervisor, tmp_path, "--format", "json")).json()
    assert answer["already_enrolled"] is True
    assert answer["node_id"] == json.loads(content)["node_id"]
    assert TOKEN not in first.out + first.err + again.out + again.err


async def test_the_token_can_come_from_a_file(supervisor: FakeSupervisor, tmp_path: Path) -> None:
    (tmp_path / "token.txt").write_text(f"{TOKEN}\n")
    result = await enroll(supervisor, tmp_path, "--token-file", str(tmp_path / "token.txt"), "--format", "json")
    assert (result.code, result.json()["already_enrolled"]) == (0, False)
    assert supervisor.calls("enroll")[0].json()["enrollment_token"] == TOKEN


def test_the_token_can_come_from_a_credential(tmp_path: Path) -> None:
    (tmp_path / "enrollment_token").write_text(f" {TOKEN}\n")
    assert read_token(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == TOKEN


async def test_a_refused_token_is_exit_code_69_and_leaves_no_identity(
    supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    supervisor.always("enroll", status(401, "unauthorized", reason=f"unknown token {TOKEN}"))
    result = await enroll(supervisor, tmp_path, "--token-file", "-", "--format", "json")
    assert result.code == 69
    assert result.json()["error"]["exit_code"] == 69
    assert "hint: the enrolment token may be mistyped" in result.err
    assert TOKEN not in result.out + result.err
    assert not (tmp_path / "state" / "identity.json").exists()


async def test_a_wrong_url_or_ca_file_is_named_before_anything_is_sent(
    supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    result = await iggy_agent("enroll", "--url", "http://example.com", CONFIGURATION_DIRECTORY=str(tmp_path))
    assert result.code == 78
    assert "flag --url: supervisor.url: cannot use plain http" in result.err
    result = await enroll(supervisor, tmp_path, "--ca-file", "absent.pem", "--token-file", "-")
    assert result.code == 78
    assert "absent.pem" in result.err
    assert supervisor.count("enroll") == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has to be one word"),
        (b"two words", "it has to be one word"),
        (b"x" * 5000, "it has to be one word"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "no such file or directory"),
    ],
)
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "token.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=said) as caught:
        read_token(str(file), {})
    assert str(file) in str(caught.value)
    assert "two words" not in str(caught.value)
    assert "--token-file" in (caught.value.hint or "")


def test_without_any_token_the_error_says_where_to_get_one(tmp_path: Path) -> None:
    for environ in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        with pytest.raises(SettingsError, match="there is no enrolment token") as caught:
            read_token(None, environ)
        assert "--token-file FILE" in (caught.value.hint or "")


def test_root_does_not_enrol_for_the_agent_of_another_user(tmp_path: Path) -> None:
    refuse_to_leave_files_of_root(tmp_path / "absent", user_id=0)
    refuse_to_leave_files_of_root(tmp_path, user_id=os.geteuid() or 1000)
    refuse_to_leave_files_of_root(Path("/"), user_id=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_is_told_as_whom_to_enrol(tmp_path: Path) -> None:
    other = next(user for user in pwd.getpwall() if user.pw_uid)
    for owner, name in ((other.pw_uid, other.pw_name), (3_999_999, "#3999999")):
        os.chown(tmp_path, owner, -1)
        with pytest.raises(IdentityError, match=f"belongs to {name}") as caught:
            refuse_to_leave_files_of_root(tmp_path, user_id=0)
        assert f"sudo -u {name} iggy-agent enroll" in (caught.value.hint or "")
