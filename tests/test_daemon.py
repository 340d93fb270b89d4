import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from agent import daemon as daemon_module
from agent.activities.owned import OwnedRuntimes
from agent.daemon import Daemon
from agent.errors import JournalDamagedError, JournalError
from agent.journal import Journal
from agent.journal.rescue import Rescue
from agent.link import identity as identities
from agent.link.heartbeat import Heartbeat
from agent.link.identity import Identity
from agent.protocol import DriverKind, RuntimeName, RuntimeState, RuntimeStatus
from agent.redaction import Redactor
from agent.runtimes.runtime import Runtime
from agent.settings import Settings
from tests.runtimes.scripted import ScriptedDriver


class Opening:
    """A runtime during whose look the next one is opened, as when the agent is asked while it starts."""

    def __init__(self, runtimes: dict[RuntimeName, Runtime]) -> None:
        self._runtimes = runtimes

    async def status(self, _activity_id: int | None) -> RuntimeStatus:
        self._runtimes[RuntimeName.CONNECTORS] = cast("Runtime", self)
        return RuntimeStatus(runtime=RuntimeName.IGGY, driver=DriverKind.PROCESS, state=None)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """One that was made, but does not run."""
    values: dict[str, Any] = {
        "supervisor": {"url": "http://127.0.0.1:1"},
        "agent": {"state_dir": tmp_path, "socket": tmp_path / "agent.sock"},
        "runtimes": {name: {"driver": "process", "command": ["true"]} for name in ("iggy", "connectors")},
    }
    return Daemon(Settings.model_validate(values), Redactor())


async def test_the_status_is_told_also_while_the_runtimes_are_being_opened(daemon: Daemon) -> None:
    daemon._runtimes[RuntimeName.IGGY] = cast("Runtime", Opening(daemon._runtimes))
    status = await daemon._status()
    assert len(status["runtimes"]) == 1


class SlowJournal:
    """A journal whose thread does not answer."""

    def __init__(self, *, damaged: bool) -> None:
        self.rescue = Rescue()
        if damaged:
            self.rescue.notice(JournalDamagedError("cannot go on with the journal: it is damaged"))

    async def counts(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_journal_that_does_not_answer_is_stuck_unless_it_is_being_set_aside(
    daemon: Daemon, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take its time to give the pages of a damaged file; the results are in memory."""
    monkeypatch.setattr("agent.daemon.JOURNAL_ANSWERS_WITHIN", 0.01)
    daemon._journal = cast("Journal", SlowJournal(damaged=damaged))
    assert await daemon._stuck() == ([] if damaged else ["journal"])


class Watched:
    """A runtime, what is told of it, and what it is to the agent, as far as watching it needs them."""

    name = RuntimeName.IGGY

    def __init__(self) -> None:
        self.driver = ScriptedDriver()
        self.beats = asyncio.Event()
        self.runs = asyncio.Event()

    async def look_at_configs(self) -> None:
        """There are none."""

    def beat(self) -> None:
        self.beats.set()

    def seen_running(self, _name: RuntimeName) -> None:
        self.runs.set()


async def test_a_fault_in_a_look_at_a_runtime_ends_no_watch(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "LOOK_AGAIN", 0.02)
    watched = Watched()
    watched.driver.fail(RuntimeError("can't start new thread"))
    watch = asyncio.create_task(
        daemon._watch(cast("Runtime", watched), cast("Heartbeat", watched), cast("OwnedRuntimes", watched))
    )
    try:
        async with asyncio.timeout(10):
            await watched.beats.wait()
            await watched.driver.looked(2)
            watched.driver.show(RuntimeState.RUNNING, "a")
            await watched.runs.wait()
        assert not watch.done()
    finally:
        watch.cancel()
        await asyncio.wait({watch})


async def test_a_folder_that_cannot_be_read_is_said_and_ends_neither_the_agent_nor_the_other_runtime(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "LOOK_AGAIN", 0.05)
    await asyncio.to_thread(_enrol, tmp_path, await Journal.create(tmp_path))
    in_the_way = tmp_path / "runtimes" / "iggy"
    in_the_way.parent.mkdir()
    in_the_way.write_text("a file in the way")
    running = asyncio.create_task(daemon.run())
    try:
        status = await _until(daemon, running, lambda status: _condition(status) is not None)
        said = _condition(status)
        assert said is not None
        assert str(in_the_way) in said["message"]
        assert said["hint"] == "check the state folder and its permissions"
        states = {runtime["runtime"]: runtime["state"] for runtime in status["runtimes"]}
        assert states == {"iggy": None, "connectors": "stopped"}
        assert "until it can be read, the log of iggy is not shown" in said["message"]
        in_the_way.unlink()
        await _until(daemon, running, lambda status: _condition(status) is None)
        in_the_way.write_text("in the way again, with all known that is secret")
        said = _condition(await _until(daemon, running, lambda status: _condition(status) is not None))
        assert said is not None
        assert "the log of iggy is not shown" not in said["message"]
        in_the_way.unlink()
        await _until(daemon, running, lambda status: _condition(status) is None)
    finally:
        daemon._stop()
        await running


async def _until(
    daemon: Daemon, running: asyncio.Task[None], condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while not condition(status := await daemon._status()):
            if running.done():
                running.result()  # says why it ended
            await asyncio.sleep(0.01)
        return status


def _condition(status: dict[str, Any]) -> dict[str, Any] | None:
    return next((one for one in status["conditions"] if one["code"] == "iggy_folder_unreadable"), None)


def _enrol(state_dir: Path, journal_id: str) -> None:
    now = datetime.now(UTC)
    identity = Identity(
        supervisor_url="http://127.0.0.1:1",
        tenant_id=1,
        division_id=2,
        environment_id=3,
        deployment_id=4,
        node_id=5,
        node_token=SecretStr("node-token"),
        token_issued_at=now,
        machine_id=identities.machine_id(state_dir),
        journal_id=journal_id,
        enrolled_at=now,
    )
    identities.save(state_dir, identity)


class Damaged:
    """A damaged journal that the disk does not let be set aside at once."""

    def __init__(self, *, refusals: int, since: float | None = None) -> None:
        self.is_set_aside = False
        self.tries = 0
        self.tried = asyncio.Event()
        self._refusals = refusals
        self._since = since

    async def since_set_aside(self) -> float | None:
        return self._since

    async def set_aside(self) -> None:
        self.tries += 1
        self.tried.set()
        if self.tries <= self._refusals:
            msg = "cannot use the journal: read-only file system"
            raise JournalError(msg)
        self.is_set_aside = True


async def test_an_agent_stays_until_its_damaged_journal_could_be_set_aside(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To end would be to start again and again on a file that a start may find sound."""
    monkeypatch.setattr(daemon_module, "SET_ASIDE_AGAIN", 0.02)
    journal = Damaged(refusals=3)
    await daemon._set_aside(cast("Journal", journal))
    assert (journal.tries, journal.is_set_aside) == (4, True)
    assert capsys.readouterr().out.count("journal.not_set_aside") == 3
    await daemon._set_aside(cast("Journal", journal))
    assert journal.tries == 4


async def test_an_agent_that_is_told_to_stop_tries_once_more_and_ends(daemon: Daemon) -> None:
    journal = Damaged(refusals=9)
    ending = asyncio.create_task(daemon._set_aside(cast("Journal", journal)))
    async with asyncio.timeout(10):
        await journal.tried.wait()
        daemon._stopping.set()
        await ending
    assert journal.tries == 2


@pytest.mark.parametrize("since", [None, 61.0, -5.0], ids=["never", "long ago", "in the future"])
async def test_it_does_not_wait_where_none_was_set_aside_just_before(daemon: Daemon, since: float | None) -> None:
    """A clock may have been set back since."""
    async with asyncio.timeout(10):
        await daemon._set_aside(cast("Journal", Damaged(refusals=0, since=since)))


async def test_it_waits_until_a_minute_after_the_last_one(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SET_ASIDE_PAUSE", 60.2)
    began = asyncio.get_running_loop().time()
    await daemon._set_aside(cast("Journal", Damaged(refusals=0, since=60.0)))
    assert asyncio.get_running_loop().time() - began >= 0.15
