"""A node's link, real from the HTTP client to the journal's disk, against the scripted Supervisor."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent.conditions import Conditions
from agent.journal import Journal
from agent.link.backoff import Backoff
from agent.link.client import SupervisorClient
from agent.link.clock import SupervisorClock
from agent.link.heartbeat import Heartbeat
from agent.link.held import Held
from agent.link.pace import Pace
from agent.link.receiver import Receiver
from agent.link.reporter import Reporter
from agent.link.standing import Standing
from agent.protocol import NodeStatus, Reason, ReportStatus, RuntimeStatus, Verb
from tests.fakes.supervisor import TOKEN, FakeSupervisor, activity


async def eventually(what: Callable[[], Any], *, seconds: float = 15.0) -> None:
    """Wait until something holds, looking often."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - what is awaited is another program's state
            await asyncio.sleep(0.005)


async def eventually_async(what: Callable[[], Awaitable[Any]], *, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not await what():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run loops beside a test; one that ends by itself fails it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        yield
        for task in tasks:
            assert not task.done(), f"a loop ended by itself: {task}"
            task.cancel()


@dataclass
class Node:
    """One agent's link, with delays of tests."""

    supervisor: FakeSupervisor
    journal: Journal
    conditions: Conditions
    standing: Standing
    clock: SupervisorClock
    client: SupervisorClient
    pace: Pace = field(default_factory=lambda: Pace(heartbeat_interval=30, poll_wait=30))
    effects: list[int] = field(default_factory=list)
    """Ids of activities as their effects happened."""

    def receiver(self, **settings: Any) -> Receiver:
        settings = {"backoff": quick(), "stall": quick(), **settings}
        return Receiver(
            self.client, self.journal, standing=self.standing, conditions=self.conditions, pace=self.pace, **settings
        )

    def reporter(self, **settings: Any) -> Reporter:
        settings = {
            "backoff": quick(),
            "refusals": quick(),
            "held": Held(missing_first=0.1, missing_cap=0.2),
            **settings,
        }
        return Reporter(self.client, self.journal, standing=self.standing, conditions=self.conditions, **settings)

    def heartbeat(self, **settings: Any) -> Heartbeat:
        async def runtimes() -> list[RuntimeStatus]:
            return []

        async def node() -> NodeStatus:
            return NodeStatus(hostname="here")

        settings = {"backoff": quick(), "runtimes": runtimes, "node": node, **settings}
        return Heartbeat(
            self.client,
            self.journal,
            standing=self.standing,
            conditions=self.conditions,
            pace=self.pace,
            version="1",
            started_at=datetime.now(UTC),
            **settings,
        )

    async def lane(self) -> None:
        """Carry out what the journal allows, as a lane does, and remember each effect."""
        while True:
            while (row := await self.journal.next("iggy")) is not None:
                if row.uncertain:
                    await self.finish(row.id, ReportStatus.REJECTED, code="outcome_unknown")
                elif await self.journal.start(row.id, Verb.RESTART):
                    self.effects.append(row.id)
                    await self.finish(row.id)
            await self.journal.work_ready.wait()

    async def finish(
        self,
        activity_id: int,
        status: ReportStatus = ReportStatus.COMPLETED,
        *,
        code: str | None = None,
        **evidence: Any,
    ) -> None:
        reason = None if code is None else Reason(code=code, message="cannot do it: as scripted")
        await self.journal.finish(activity_id, status=status, reason=reason, evidence=evidence)

    async def result(self, number: int, **evidence: Any) -> int:
        """Have an activity that was received, done and finished; returns its id."""
        item = activity(number)
        self.supervisor.processing[number] = item
        self.supervisor.last = max(self.supervisor.last, number)
        await self.journal.take([item], sweep=None)
        await self.finish(item["id"], **evidence)
        return int(item["id"])

    async def states(self) -> dict[int, str]:
        return {row.id: str(row.state) for row in await self.journal.recent(10_000)}


def quick(first: float = 0.05, cap: float = 0.2) -> Backoff:
    return Backoff(first=first, cap=cap)


def steady(first: float, cap: float = 60.0) -> Backoff:
    """A backoff without chance, so that the gaps between requests have a known lower bound."""
    return Backoff(first=first, cap=cap, chance=lambda: 1.0)


def gaps(supervisor: FakeSupervisor, path: str) -> list[float]:
    """Return the seconds between the requests to a path."""
    times = [call.at for call in supervisor.calls(path)]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.fixture
async def supervisor() -> AsyncIterator[FakeSupervisor]:
    async with FakeSupervisor() as fake:
        yield fake


@pytest.fixture
def conditions() -> Conditions:
    return Conditions()


@pytest.fixture
async def journal(tmp_path: Path, conditions: Conditions) -> AsyncIterator[Journal]:
    journal_id = await Journal.create(tmp_path)
    opened = await Journal.open(tmp_path, journal_id=journal_id, conditions=conditions)
    yield opened
    await opened.close()


@asynccontextmanager
async def a_node(
    supervisor: FakeSupervisor,
    journal: Journal,
    conditions: Conditions,
    *,
    instance: str = "instance-1",
    **settings: Any,
) -> AsyncIterator[Node]:
    standing = Standing(conditions)
    clock = SupervisorClock(conditions)
    settings = {"url": supervisor.url, "ca_file": None, "token": lambda: TOKEN, **settings}
    client = SupervisorClient(
        instance=instance,
        revision=lambda: journal.revision,
        clock=clock,
        standing=standing,
        conditions=conditions,
        version="1",
        **settings,
    )
    async with client:
        yield Node(supervisor, journal, conditions, standing, clock, client)


@pytest.fixture
async def node(supervisor: FakeSupervisor, journal: Journal, conditions: Conditions) -> AsyncIterator[Node]:
    async with a_node(supervisor, journal, conditions, held_margin=0.5, read_timeout=2.0) as made:
        yield made
