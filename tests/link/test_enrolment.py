import asyncio
import json
import stat
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.conditions import Conditions
from agent.errors import IdentityError, JournalError, SettingsError, SupervisorError
from agent.journal import Journal
from agent.link import identity as identities
from agent.link.enrolment import enroll
from agent.link.identity import Identity
from tests.fakes.supervisor import FakeSupervisor, Handler, altered, cut, hang, plain, status
from tests.link.conftest import eventually, running
from tests.link.test_identity import MACHINE, NODE, an_identity

ENROLMENT_TOKEN = "enrolment-token-1"


@pytest.fixture
def machine_id_file(tmp_path: Path) -> Path:
    file = tmp_path / "etc-machine-id"
    file.write_text(f"{MACHINE}\n")
    return file


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


@pytest.fixture
def enrol(supervisor: FakeSupervisor, state_dir: Path, machine_id_file: Path) -> Any:
    async def call(
        token: str = ENROLMENT_TOKEN, *, machine: Path = machine_id_file, url: str | None = None
    ) -> Identity:
        return await enroll(url or supervisor.url, None, token, state_dir, machine_id_file=machine)

    return call


def lose_journal(state_dir: Path) -> None:
    for file in state_dir.glob("journal.db*"):
        file.unlink()


async def test_it_leaves_machine_id_journal_and_identity(
    enrol: Any, supervisor: FakeSupervisor, state_dir: Path, machine_id_file: Path
) -> None:
    identity = await enrol(f" {ENROLMENT_TOKEN}\n")
    request = supervisor.calls("enroll")[0]
    assert "Authorization" not in request.headers
    assert request.json().keys() == {"enrollment_token", "hostname", "machine_id", "agent_version"}
    assert request.json()["machine_id"] == MACHINE
    assert identity.node_id == NODE
    assert identity.node_token.get_secret_value() == f"node-token-of-{MACHINE}"
    assert await asyncio.to_thread(identities.load, state_dir, machine_id_file=machine_id_file) == identity
    assert stat.S_IMODE((state_dir / "identity.json").stat().st_mode) == 0o600
    conditions = Conditions()
    journal = await Journal.open(state_dir, journal_id=identity.journal_id, conditions=conditions)
    assert not journal.lost
    assert conditions.all() == []
    await journal.close()


@pytest.mark.parametrize(
    ("date", "days"),
    [(timedelta(days=-700), -700), (timedelta(days=700), 700), (timedelta(days=300 * 365), 0), (None, 0)],
    ids=["behind", "ahead", "nonsense", "not told"],
)
async def test_the_token_is_as_old_as_the_supervisors_clock_says(
    enrol: Any, supervisor: FakeSupervisor, date: timedelta | None, days: int
) -> None:
    now = datetime.now(UTC)

    async def dated(_request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler()
        response.headers["Date"] = "?" if date is None else format_datetime(now + date, usegmt=True)
        return response

    supervisor.script("enroll", dated)
    identity = await enrol()
    assert abs(identity.token_issued_at - now - timedelta(days=days)) < timedelta(minutes=5)
    assert abs(identity.enrolled_at - now) < timedelta(minutes=5)


async def test_without_a_machine_id_a_random_one_is_durable_before_the_call(
    enrol: Any, supervisor: FakeSupervisor, state_dir: Path, tmp_path: Path
) -> None:
    supervisor.always("enroll", hang())

    async def call() -> None:
        await enrol(machine=tmp_path / "none")

    async with running(call()):
        await eventually(lambda: supervisor.count("enroll") == 1)
        kept = (state_dir / "machine-id").read_text().strip()
    assert supervisor.calls("enroll")[0].json()["machine_id"] == kept
    assert not (state_dir / "identity.json").exists()


async def test_a_lost_answer_strands_nobody(enrol: Any, supervisor: FakeSupervisor, state_dir: Path) -> None:
    supervisor.script("enroll", cut())
    with pytest.raises(SupervisorError):
        await enrol()
    assert not (state_dir / "identity.json").exists()
    assert (await enrol()).node_id == NODE


@pytest.mark.parametrize("token", ["wrong-token-9", ""])
async def test_a_refused_token_says_what_to_do_and_is_not_shown(enrol: Any, token: str, state_dir: Path) -> None:
    with pytest.raises(SupervisorError) as caught:
        await enrol(token)
    assert caught.value.code == "invalid_enrollment_token"
    assert "create a new one" in str(caught.value)
    assert "wrong-token-9" not in str(caught.value)
    assert not (state_dir / "identity.json").exists()


@pytest.mark.parametrize(
    "fault",
    [
        status(503),
        plain(201, b"{}", "application/json"),
        plain(200, b"<html>"),
        altered(lambda answer: {**answer, "node_token": "two words"}),
        altered(lambda answer: {**answer, "node_id": 2**63}),
    ],
    ids=lambda fault: fault.__qualname__.partition(".")[0],
)
async def test_an_answer_that_is_no_enrolment_leaves_no_identity(
    enrol: Any, supervisor: FakeSupervisor, state_dir: Path, fault: Any
) -> None:
    supervisor.script("enroll", fault)
    with pytest.raises(SupervisorError):
        await enrol()
    assert not (state_dir / "identity.json").exists()


async def test_enrolling_again_gives_the_node_a_new_token_and_keeps_the_name_of_its_journal(
    enrol: Any, supervisor: FakeSupervisor, state_dir: Path
) -> None:
    first = await enrol()
    lose_journal(state_dir)
    supervisor.script("enroll", altered(lambda answer: {**answer, "node_token": "fresh-token"}))
    second = await enrol()
    assert second.journal_id == first.journal_id
    assert second.node_token.get_secret_value() == "fresh-token"
    conditions = Conditions()
    journal = await Journal.open(state_dir, journal_id=second.journal_id, conditions=conditions)
    assert journal.lost, "a journal that went missing must not pass for a new node's"
    await journal.close()


async def test_a_folder_of_another_node_or_machine_is_left_as_it_is(
    enrol: Any, supervisor: FakeSupervisor, state_dir: Path
) -> None:
    await enrol()
    before = (state_dir / "identity.json").read_bytes()
    supervisor.script("enroll", altered(lambda answer: {**answer, "node_id": 5}))
    with pytest.raises(IdentityError, match="belongs to node"):
        await enrol()
    assert (state_dir / "identity.json").read_bytes() == before
    await asyncio.to_thread(identities.save, state_dir, an_identity(machine="f" * 32))
    with pytest.raises(IdentityError, match="for machine"):
        await enrol()
    assert json.loads((state_dir / "identity.json").read_text())["machine_id"] == "f" * 32
    assert supervisor.count("enroll") == 2


async def test_what_is_wrong_here_is_told_before_the_supervisor_is_called(
    enrol: Any, supervisor: FakeSupervisor, state_dir: Path
) -> None:
    with pytest.raises(SettingsError, match="plain HTTP"):
        await enrol(url="http://192.0.2.1")
    state_dir.parent.write_text("a file in the way")
    with pytest.raises(IdentityError, match="state folder"):
        await enrol()
    state_dir.parent.unlink()
    (state_dir / "journal.db").mkdir(parents=True)
    with pytest.raises(JournalError):
        await enrol()
    assert supervisor.requests == []
