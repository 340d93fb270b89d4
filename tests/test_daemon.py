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
from agent.journal import Journal
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


class Watched:
    """A runtime, what is told of it, and what it is to the agent, as far as watching it needs them."""

    name = RuntimeName.IGGY

    def __init__(self) -> None:
        self.driver = ScriptedDriver()
        self.beats = asyncio.Event()
        self.runs = asyncio.Event()

    async def learn_secrets(self) -> None:
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
