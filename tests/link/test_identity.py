import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent.errors import IdentityError, IdentityUnavailableError
from agent.link import identity as identities
from agent.link.identity import Identity, PreviousToken
from tests.small_disk import SmallDisk

MACHINE = "0123456789abcdef0123456789abcdef"
NODE = 610809900976570889


@pytest.fixture
def machine_id_file(tmp_path: Path) -> Path:
    file = tmp_path / "etc-machine-id"
    file.write_text(f"{MACHINE}\n")
    return file


def an_identity(
    *, token: str = "node-token-1", previous: PreviousToken | None = None, machine: str = MACHINE
) -> Identity:
    now = datetime.now(UTC)
    return Identity(
        supervisor_url="https://supervisor.example.com",
        tenant_id=1,
        division_id=2,
        environment_id=3,
        deployment_id=4,
        node_id=NODE,
        node_token=SecretStr(token),
        token_issued_at=now,
        previous_token=previous,
        machine_id=machine,
        journal_id="journal-1",
        enrolled_at=now,
    )


def test_what_was_saved_is_loaded_and_readable_for_its_owner_only(tmp_path: Path, machine_id_file: Path) -> None:
    previous = PreviousToken(token=SecretStr("node-token-0"), valid_until=datetime.now(UTC))
    identity = an_identity(previous=previous)
    identities.save(tmp_path, identity)
    assert identities.load(tmp_path, machine_id_file=machine_id_file) == identity
    assert stat.S_IMODE((tmp_path / "identity.json").stat().st_mode) == 0o600
    assert identity.secrets() == ["node-token-1", "node-token-0"]


def test_tokens_are_never_printed() -> None:
    identity = an_identity(previous=PreviousToken(token=SecretStr("node-token-0"), valid_until=datetime.now(UTC)))
    assert "node-token" not in f"{identity!r} {identity} {identity.model_dump()}"


def test_a_folder_that_was_never_enrolled_has_none(tmp_path: Path) -> None:
    assert identities.load(tmp_path) is None


def test_on_another_machine_it_is_refused_and_both_are_named(tmp_path: Path, machine_id_file: Path) -> None:
    identities.save(tmp_path, an_identity(machine="f" * 32))
    with pytest.raises(IdentityError) as caught:
        identities.load(tmp_path, machine_id_file=machine_id_file)
    assert "f" * 32 in caught.value.message
    assert MACHINE in caught.value.message
    assert "enrol" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"node_id": "x"}', "[]", "\udcff"])
def test_a_damaged_one_is_an_error_and_stays(tmp_path: Path, machine_id_file: Path, content: str) -> None:
    path = tmp_path / "identity.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(IdentityError, match="damaged"):
        identities.load(tmp_path, machine_id_file=machine_id_file)
    assert path.exists()


def test_a_damaged_one_does_not_show_its_token(tmp_path: Path, machine_id_file: Path) -> None:
    content = json.loads(an_identity().model_dump_json()) | {"node_token": "bad token\nwith a line break"}
    (tmp_path / "identity.json").write_text(json.dumps(content))
    with pytest.raises(IdentityError) as caught:
        identities.load(tmp_path, machine_id_file=machine_id_file)
    assert "bad token" not in str(caught.value)


def test_one_that_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(IdentityError, match="cannot read"):
        identities.load(tmp_path)
    with pytest.raises(IdentityError, match="cannot write"):
        identities.save(tmp_path / "missing", an_identity())


IO_ERROR = Path("/proc/self/mem")
"""Its first byte cannot be read, by anybody: EIO."""


def test_what_may_pass_by_itself_does_not_keep_the_agent_down(tmp_path: Path) -> None:
    (tmp_path / "identity.json").symlink_to(IO_ERROR)
    with pytest.raises(IdentityUnavailableError, match=r"cannot read .*identity\.json: Input/output error") as caught:
        identities.load(tmp_path)
    assert caught.value.exit_code == 74
    assert caught.value.hint == "look at that disk, and at the kernel's log; it may pass by itself"
    with pytest.raises(IdentityUnavailableError, match="which machine"):
        identities.machine_id(tmp_path, file=IO_ERROR)


def test_a_full_disk_does_not_keep_the_agent_down(small_disk: SmallDisk, tmp_path: Path) -> None:
    small_disk.fill()
    for attempt in (
        lambda: identities.save(small_disk.folder, an_identity()),
        lambda: identities.machine_id(small_disk.folder, file=tmp_path / "none"),
    ):
        with pytest.raises(IdentityUnavailableError, match="No space left") as caught:
            attempt()
        assert caught.value.exit_code == 74
        assert caught.value.hint == "free space on the disk of the state folder"


def test_what_only_a_person_can_change_keeps_it_down(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file in the way")
    for attempt in (
        lambda: identities.load(tmp_path),
        lambda: identities.save(in_the_way, an_identity()),
        lambda: identities.machine_id(in_the_way, file=tmp_path / "none"),
    ):
        with pytest.raises(IdentityError) as caught:
            attempt()
        assert caught.value.exit_code == 78


def test_the_machine_id_is_the_systems(tmp_path: Path, machine_id_file: Path) -> None:
    assert identities.machine_id(tmp_path, file=machine_id_file) == MACHINE
    assert not (tmp_path / "machine-id").exists()


@pytest.mark.parametrize("content", [None, "", "uninitialized\n", "0123\n"])
def test_where_there_is_none_a_random_one_is_kept(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "etc-machine-id"
    if content is not None:
        file.write_text(content)
    made = identities.machine_id(tmp_path, file=file)
    assert made == identities.machine_id(tmp_path, file=file)
    assert (tmp_path / "machine-id").read_text().strip() == made
    assert stat.S_IMODE((tmp_path / "machine-id").stat().st_mode) == 0o600


def test_a_machine_id_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="which machine"):
        identities.machine_id(tmp_path / "missing", file=tmp_path / "none")
