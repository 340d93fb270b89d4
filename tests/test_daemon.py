import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agent import daemon as daemon_module
from agent.activities.owned import OwnedRuntimes
from agent.daemon import Daemon
from agent.link.heartbeat import Heartbeat
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
        "runtimes": {"iggy": {"driver": "process", "command": ["true"]}},
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
