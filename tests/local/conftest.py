import asyncio
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.local.server import LocalServer

T = TypeVar("T")

STATUS: dict[str, Any] = {
    "healthy": True,
    "agent": {
        "version": "0.1.0",
        "started_at": "2026-03-16T12:00:00Z",
        "node_id": 610809900976570889,
        "stopping": False,
    },
    "link": {"reports": {"calls": 3, "failures": 0, "last_success_at": "2026-03-16T12:00:00Z", "last_error": None}},
    "conditions": [],
    "journal": {"waiting": 0, "unreported": 0},
    "runtimes": [],
}

ACTIVITY: dict[str, Any] = {
    "id": 610809900976570889,
    "sequence": 7,
    "runtime": "iggy",
    "action": "restart",
    "state": "reported",
    "status": "rejected",
    "code": "not_ready",
    "message": "cannot restart iggy: its probe never succeeded within 60 s",
    "hint": "look at its log",
    "received_at": "2026-03-16T12:00:00Z",
    "started_at": "2026-03-16T12:00:01Z",
    "finished_at": "2026-03-16T12:01:02.500000Z",
    "reported_at": "2026-03-16T12:01:03Z",
    "changed": True,
    "recovered": True,
    "uncertain": False,
    "outcome": "recorded",
}

CALLS: list[dict[str, Any]] = [
    {"call": "stop", "decisive": False, "at": "2026-03-16T12:00:02Z", "detail": {"signal": "SIGTERM"}},
    {
        "call": "start",
        "decisive": True,
        "going_back": True,
        "at": "2026-03-16T12:00:03Z",
        "boot_id": "boot-1",
        "incarnation": "pid-1",
        "running": False,
        "detail": {},
    },
]


class Agent:
    """A local API that is served as the daemon serves it, from a loop of its own, so that blocking clients can ask."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.status: dict[str, Any] = dict(STATUS)
        self.items = [ACTIVITY]
        self.limits: list[int] = []
        self.fault: BaseException | None = None
        self.server = LocalServer(socket, status=self._status, activities=self._activities, activity=self._activity)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def open(self) -> "Agent":
        self.run(self.server.open())
        return self

    def close(self) -> None:
        self.run(self.server.close())

    def end(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _status(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        return self.status

    async def _activities(self, limit: int) -> list[dict[str, Any]]:
        self.limits.append(limit)
        return self.items[:limit]

    async def _activity(self, activity_id: int) -> dict[str, Any] | None:
        found = next((item for item in self.items if item["id"] == activity_id), None)
        return found and {**found, "calls": CALLS, "evidence": {"log_tail": ["\x1b[31mpanicked"]}}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: a unix socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="iggy-") as name:
        yield Path(name)


@pytest.fixture
def agent(folder: Path) -> Iterator[Agent]:
    made = Agent(folder / "run" / "agent.sock").open()
    yield made
    made.end()
