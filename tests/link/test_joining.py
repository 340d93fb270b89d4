"""How an agent becomes a node: with its credential, by hand, and what it does about a refusal that will stay."""

import asyncio
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent.conditions import Condition, Conditions
from agent.errors import IdentityError, IdentityUnavailableError
from agent.link import identity as identities
from agent.link import joining as joinings
from agent.link.backoff import Backoff
from agent.link.enrolment import enroll
from agent.link.identity import Identity
from agent.link.joining import FINAL, Joining
from tests.fakes.supervisor import FakeSupervisor, cut, status
from tests.link.conftest import eventually, quick
from tests.link.test_identity import MACHINE, NODE, an_identity

ENROLMENT_TOKEN = "enrolment-token-1"


@dataclass
class Newcomer:
    """An agent that starts on a machine which is no node yet."""

    supervisor: FakeSupervisor
    state_dir: Path
    machine_id_file: Path
    conditions: Conditions
    credential: str | None = ENROLMENT_TOKEN
    unreadable: Exception | None = None
    ca_file: Path | None = None
    looks: int = 0
    ready: int = 0
    learned: list[str] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def read(self) -> str | None:
        self.looks += 1
        if self.unreadable is not None:
            raise self.unreadable
        return self.credential

    def is_ready(self) -> None:
        self.ready += 1

    def learn(self, secrets: Iterable[str]) -> None:
        assert self.supervisor.count("enroll") == 0 or self.learned
        self.learned.extend(secrets)

    async def join(self, backoff: Backoff | None = None) -> Identity | None:
        joining = Joining(
            url=self.supervisor.url,
            ca_file=self.ca_file,
            state_dir=self.state_dir,
            conditions=self.conditions,
            credential=self.read,
            credential_name="enrollment_token",
            learned=self.learn,
            ready=self.is_ready,
            backoff=backoff,
            machine_id_file=self.machine_id_file,
        )
        async with asyncio.timeout(15):
            return await joining.identity(self.stopping)

    async def enroll_by_hand(self) -> None:
        await enroll(self.supervisor.url, None, ENROLMENT_TOKEN, self.state_dir, machine_id_file=self.machine_id_file)

    async def looked(self, times: int) -> None:
        seen = self.looks
        await eventually(lambda: self.looks >= seen + times)

    def condition(self) -> Condition:
        [condition] = self.conditions.all()
        assert condition.code == "not_enrolled"
        return condition


@pytest.fixture
def newcomer(
    supervisor: FakeSupervisor, conditions: Conditions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Newcomer:
    monkeypatch.setattr(joinings, "LOOK_FOR_IDENTITY", 0.02)
    machine_id_file = tmp_path / "etc-machine-id"
    machine_id_file.write_text(f"{MACHINE}\n")
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    return Newcomer(supervisor, state_dir, machine_id_file, conditions)


async def test_an_identity_that_is_there_is_taken_without_a_call(
    newcomer: Newcomer, supervisor: FakeSupervisor
) -> None:
    kept = an_identity()
    await asyncio.to_thread(identities.save, newcomer.state_dir, kept)
    assert await newcomer.join() == kept
    assert (supervisor.requests, newcomer.looks, newcomer.ready) == ([], 0, 0)


async def test_it_enrols_with_its_credential(newcomer: Newcomer, supervisor: FakeSupervisor) -> None:
    identity = await newcomer.join()
    assert identity is not None
    assert identity.node_id == NODE
    assert newcomer.learned == [ENROLMENT_TOKEN]
    assert supervisor.count("enroll") == 1
    assert newcomer.conditions.all() == []


async def test_without_a_credential_it_is_ready_says_so_and_waits_to_be_enrolled_by_hand(newcomer: Newcomer) -> None:
    newcomer.credential = None
    joining = asyncio.create_task(newcomer.join())
    await newcomer.looked(3)
    assert newcomer.ready > 0
    assert "enrollment_token" in str(newcomer.condition().hint)
    await newcomer.enroll_by_hand()
    identity = await joining
    assert identity is not None
    assert identity.node_id == NODE
    assert newcomer.conditions.all() == []


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")],
)
async def test_a_credential_that_cannot_be_read_is_said_and_waited_for(newcomer: Newcomer, error: Exception) -> None:
    newcomer.unreadable = error
    joining = asyncio.create_task(newcomer.join())
    await newcomer.looked(2)
    assert newcomer.ready > 0
    assert newcomer.condition().message.startswith("cannot read the credential enrollment_token: ")
    newcomer.unreadable = None
    identity = await joining
    assert identity is not None
    assert identity.node_id == NODE


async def test_it_ends_when_it_is_told_to_stop(newcomer: Newcomer) -> None:
    newcomer.credential = None
    joining = asyncio.create_task(newcomer.join())
    await newcomer.looked(1)
    newcomer.stopping.set()
    assert await joining is None


@pytest.mark.parametrize("fault", [status(503), status(408), status(425), status(429, retry_after="0"), cut()])
async def test_what_goes_away_by_itself_is_tried_again_soon(
    newcomer: Newcomer, supervisor: FakeSupervisor, fault: Any
) -> None:
    supervisor.script("enroll", fault, fault)
    assert await newcomer.join(Backoff(first=0.05, refusals=FINAL)) is not None
    assert supervisor.count("enroll") == 3
    assert newcomer.conditions.all() == []


@pytest.mark.parametrize(
    ("code", "word", "next_step"),
    [
        (400, "bad_request", "create a new one"),
        (401, "enrollment_token_expired", "create a new one"),
        (403, "forbidden", "create a new one"),
        (404, "not_found", "supervisor.url may be wrong"),
        (405, "method_not_allowed", "log of the Supervisor"),
        (409, "enrollment_token_used", "create a new one"),
        (409, "identity_in_use", "create a new one"),
        (422, "unprocessable", "create a new one"),
    ],
)
async def test_a_refusal_that_stays_is_repeated_after_minutes_only_and_says_what_to_do(
    newcomer: Newcomer, supervisor: FakeSupervisor, code: int, word: str, next_step: str
) -> None:
    supervisor.always("enroll", status(code, word))
    joining = asyncio.create_task(newcomer.join())
    await eventually(newcomer.conditions.all)
    await newcomer.looked(10)
    assert supervisor.count("enroll") == 1
    assert newcomer.ready > 0
    assert word in newcomer.condition().message
    hint = str(newcomer.condition().hint)
    assert next_step in hint
    assert "asked again after minutes" in hint
    # Who enrols it by hand meanwhile does not wait for minutes.
    supervisor.always("enroll", None)
    await newcomer.enroll_by_hand()
    assert await joining is not None
    assert newcomer.conditions.all() == []


def test_only_answers_about_this_enrolment_count_as_refusals_that_stay() -> None:
    assert {400, 401, 403, 404, 409, 410, 422} <= FINAL
    assert FINAL.isdisjoint({307, 408, 425, 429, 500, 503})


async def test_a_node_that_was_taken_out_is_not_asked_for_again_with_the_same_token(
    newcomer: Newcomer, supervisor: FakeSupervisor
) -> None:
    supervisor.always("enroll", status(410, "decommissioned"))
    joining = asyncio.create_task(newcomer.join(quick(first=0.001)))
    await eventually(newcomer.conditions.all)
    await newcomer.looked(10)
    assert supervisor.count("enroll") == 1
    assert "decommissioned" in newcomer.condition().message
    hint = str(newcomer.condition().hint)
    assert "create a token for a new node" in hint
    assert "not asked again" in hint
    newcomer.credential = "another-token"
    await eventually(lambda: supervisor.count("enroll") == 2)
    assert newcomer.learned == [ENROLMENT_TOKEN, "another-token"]
    newcomer.stopping.set()
    assert await joining is None


async def test_another_token_is_tried_at_once(newcomer: Newcomer, supervisor: FakeSupervisor) -> None:
    newcomer.credential = "wrong-token"
    joining = asyncio.create_task(newcomer.join())
    await eventually(newcomer.conditions.all)
    newcomer.credential = ENROLMENT_TOKEN
    assert await joining is not None
    assert supervisor.count("enroll") == 2


async def test_what_is_wrong_here_ends_it(newcomer: Newcomer) -> None:
    await asyncio.to_thread(shutil.rmtree, newcomer.state_dir)
    newcomer.state_dir.write_text("a file in the way")
    with pytest.raises(IdentityError):
        await newcomer.join()


async def test_a_ca_file_that_is_not_there_yet_is_said_and_waited_for(newcomer: Newcomer, tmp_path: Path) -> None:
    newcomer.ca_file = tmp_path / "ca.pem"
    joining = asyncio.create_task(newcomer.join(Backoff(first=0.01, cap=0.01)))
    await newcomer.looked(3)
    assert newcomer.condition().message.startswith(f"cannot use supervisor.ca_file {newcomer.ca_file}: No such file")
    assert newcomer.ready > 0
    await asyncio.to_thread(trustme.CA().cert_pem.write_to_path, str(newcomer.ca_file))
    assert await joining is not None


async def test_an_identity_that_cannot_be_written_for_a_while_is_asked_for_again(
    newcomer: Newcomer, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_state_dir: Path, _identity: Identity) -> None:
        msg = "cannot write identity.json: No space left on device"
        raise IdentityUnavailableError(msg, hint="free space")

    with monkeypatch.context() as full:
        full.setattr(identities, "save", save)
        joining = asyncio.create_task(newcomer.join(Backoff(first=0.01, cap=0.01)))
        await eventually(lambda: supervisor.count("enroll") >= 2)
        assert (newcomer.condition().message, newcomer.condition().hint) == (
            "cannot write identity.json: No space left on device",
            "free space",
        )
    identity = await joining
    assert identity is not None
    assert identity.node_id == NODE
