"""The simulated Supervisor: what it lists, what it was told, and the client by which the agent's real link asks it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.errors import SupervisorError
from agent.protocol import ActivityList, ReportOutcome

PAGE = 2
"""Activities in one answer; few, so that sweeps have pages."""

LATENCY = 0.01
"""Seconds; whatever the agent can do without asking, it does meanwhile."""


@dataclass(eq=False)
class Item:
    """One dispatched activity."""

    raw: dict[str, Any]
    config_sha256: str | None = None
    visible: bool = True
    """Whether it is listed yet: of two that are dispatched at once, the later one may be seen first."""
    other: dict[str, Any] | None = None
    """Another content that is listed under its id."""
    wanted: bool = True
    expires_at: float | None = None
    """On the virtual clock."""
    report: dict[str, Any] | None = None
    forgotten: dict[str, Any] | None = None
    """The report that was recorded once, and forgotten."""
    given: bool = False
    """Whether an agent was ever given it."""

    @property
    def id(self) -> int:
        return int(self.raw["id"])

    @property
    def sequence(self) -> int:
        return int(self.raw["sequence"])

    @property
    def verb(self) -> str:
        return str(self.raw["action"]).partition(":")[0]

    @property
    def listed(self) -> bool:
        return self.visible and self.wanted and self.report is None


@dataclass(eq=False)
class Supervisor:
    """What it stores, and how well it answers."""

    items: dict[int, Item] = field(default_factory=dict)
    revision: int = 0
    """The highest that the node ever sent."""
    last: int = 0
    reachable: bool = True
    twice: bool = False
    """Whether an answer names each activity two times."""
    answers_lost: int = 0
    """So many of the next answers to reports do not arrive."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    conflicts: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    lost: int = 0

    def stir(self) -> None:
        """Answer polls that are held, should there be something now."""
        self.changed.set()
        self.changed = asyncio.Event()

    def listing(self, after: int, limit: int) -> list[Item]:
        found = (item for item in self.items.values() if item.listed and item.sequence > after)
        return sorted(found, key=lambda item: item.sequence)[:limit]

    def record(self, report: dict[str, Any]) -> ReportOutcome:
        item = self.items.get(report["activity_id"])
        if item is None:
            return ReportOutcome.UNKNOWN
        if item.report is None:
            item.report = report
            self.stir()
            return ReportOutcome.RECORDED
        if item.report == report:
            return ReportOutcome.DUPLICATE
        self.conflicts.append((item.report, report))
        return ReportOutcome.CONFLICT


class Client:
    """Stands in for `agent.link.client.SupervisorClient`: the same calls, without a network.

    Args:
        supervisor: Answers.
        revision: The journal's, which travels with each call.
        point: Where the agent may be made to wait, or die.
        sent: Told each report that is sent.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        revision: Callable[[], int],
        point: Callable[[str], Awaitable[None]],
        sent: Callable[[dict[str, Any]], None],
    ) -> None:
        self._supervisor = supervisor
        self._revision = revision
        self._point = point
        self._sent = sent

    async def _reach(self) -> None:
        await asyncio.sleep(LATENCY)
        if not self._supervisor.reachable:
            raise _unreachable()
        self._supervisor.revision = max(self._supervisor.revision, self._revision())

    async def activities(self, *, after: int, wait: float, limit: int) -> ActivityList:
        supervisor = self._supervisor
        await self._reach()
        if not (items := supervisor.listing(after, limit)) and wait > 0:
            try:
                async with asyncio.timeout(wait):
                    while not (items := supervisor.listing(after, limit)):
                        await supervisor.changed.wait()
            except TimeoutError:
                items = []
        supervisor.last = max([supervisor.last, *(item.sequence for item in items)])
        raw = [item.other or item.raw for item in items for _ in range(1 + supervisor.twice)]
        answer = ActivityList(items=raw, last=supervisor.last, revision=supervisor.revision)
        await self._point("before an answer is read")
        if not supervisor.reachable:
            raise _unreachable()
        for item in items:
            item.given = True
        return answer

    async def report(self, reports: Sequence[bytes]) -> dict[int, ReportOutcome]:
        await self._reach()
        await self._point("before a report is sent")
        supervisor = self._supervisor
        if not supervisor.reachable:
            raise _unreachable()
        outcomes = {}
        for content in map(json.loads, reports):
            self._sent(content)
            outcomes[int(content["activity_id"])] = supervisor.record(content)
        if supervisor.answers_lost:
            supervisor.answers_lost -= 1
            supervisor.lost += 1
            raise _unreachable()
        await self._point("after a report was answered")
        return outcomes

    async def beat(self) -> None:
        """Tell the revision, as a heartbeat does that is sent early."""
        await self._point("before a heartbeat is sent")
        await self._reach()


def _unreachable() -> SupervisorError:
    return SupervisorError("cannot reach the Supervisor: the answer did not come", hint="look at the network")
