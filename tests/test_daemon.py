from pathlib import Path
from typing import Any, cast

import pytest

from agent.daemon import Daemon
from agent.protocol import DriverKind, RuntimeName, RuntimeStatus
from agent.redaction import Redactor
from agent.runtimes.runtime import Runtime
from agent.settings import Settings


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
