"""kill -9 of the agent at every point of every action: one effect, one report, and the report is true.

The points are not listed here: each scenario is run once without a crash, and once again for each point that this run
passed. The points of recovery are found in the same way, from a run that crashed before. Where two scenarios begin or
end in the same way, one of them has the points of that part. `CRASHES=all` kills at all points of all scenarios, and
at each point of the recovery from each: thousands of cases, which take an hour.
"""

import asyncio
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from typing import cast

import pytest

from tests.e2e.crash_node import CrashNode
from tests.e2e.nursery import Nursery
from tests.e2e.rig import Rig
from tests.e2e.scenarios import SCENARIOS, Scenario

ALL = os.environ.get("CRASHES") == "all"
MODULE = sys.modules[__name__]
CALLED = "after:journal.record"
VARYING = tuple(f"{when}:http.heartbeat:{hit}" for when in ("before", "after") for hit in range(2, 10))
"""Heartbeats after the first, which come when something else changed."""

pytestmark = [
    pytest.mark.timeout(3600 if ALL else 240),
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.xdist_group("crashes"),
]


class Campaign:
    """All cases of one scenario, on a few nodes."""

    def __init__(self, rig: Rig, nursery: Nursery, kind: type[Scenario]) -> None:
        self.rig = rig
        self.nursery = nursery
        self.kind = kind
        self.failures: list[str] = []
        self.missed: list[list[str]] = []
        self.done = 0

    async def run(self) -> None:
        """Find the points, then crash at each."""
        async with AsyncExitStack() as stack:
            nodes = [await self._node(stack, number) for number in range(self.kind.nodes)]
            first = await self._trace(nodes[0], [])
            cases = [[point] for point in first]
            for point in first if ALL else self._points_to_recover_from(first):
                recovery = await self._trace(nodes[0], [point])
                cases += [[point, later] for later in recovery]
            queue = iter(cases)
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(self._work(node, queue))

    def _points_to_recover_from(self, points: list[str]) -> list[str]:
        """Choose the last decisive call: from there on, recovery has most to do."""
        return [point for point in points if point.startswith(CALLED)][-1:] if self.kind.recovery else []

    async def _node(self, stack: AsyncExitStack, number: int) -> Scenario:
        name = f"{self.kind.__name__.lower()}-{number}"
        return self.kind(await stack.enter_async_context(CrashNode(self.rig, self.nursery, name, self.kind.options)))

    async def _trace(self, scenario: Scenario, crashes: list[str]) -> list[str]:
        """Run a case, and return the points that its last process passed before it had nothing to do any more."""
        passed = (await self._case(scenario, crashes))[-1]
        if not ALL and not crashes:
            begin = passed.index(self.kind.since) if self.kind.since else 0
            passed = passed[begin : passed.index(self.kind.until) if self.kind.until else None]
        return [point for point in passed if not point.startswith(VARYING)]

    async def _work(self, scenario: Scenario, queue: Iterator[list[str]]) -> None:
        for crashes in queue:
            await self._case(scenario, crashes)

    async def _case(self, scenario: Scenario, crashes: list[str]) -> list[list[str]]:
        self.done += 1
        node, number = scenario.node, self.done
        try:
            await scenario.prepare()
            scenario.begin()
            node.arm(str(number), crashes)
            activities = await scenario.act()
            await node.crashes_are_over()
        except TimeoutError as error:
            error.add_note(f"in the scenario {self.kind.name}, killed {crashes}")
            raise
        if node.crashed() != crashes:
            self.missed.append(crashes)
        try:
            await scenario.judge(activities)
        except (AssertionError, KeyError, ValueError) as error:
            reports = "\n".join(str(activity.raw) for activity in activities)
            self.failures.append(f"{self.kind.name}, killed {crashes}: {error!r}\n{reports}")
        passed = node.passed()
        node.disarm()
        return passed


class Campaigns:
    """The campaigns of all tests that were asked for; they run together, the first time that one is asked for.

    On a worker of pytest-xdist, which cannot know what the others do, each runs when it is asked for.
    """

    def __init__(self, rig: Rig, nursery: Nursery, kinds: Iterable[type[Scenario]], *, together: bool) -> None:
        self._all = {kind: Campaign(rig, nursery, kind) for kind in kinds}
        self._together = together

    async def of(self, kind: type[Scenario]) -> Campaign:
        """Return a campaign that was run."""
        if not self._all[kind].done:
            campaigns = list(self._all.values()) if self._together else [self._all[kind]]
            async with asyncio.TaskGroup() as group:
                for waiting in (False, True):  # those that need the processor, and beside them those that wait
                    group.create_task(_run([campaign for campaign in campaigns if campaign.kind.waits is waiting]))
        return self._all[kind]


async def _run(campaigns: Iterable[Campaign]) -> None:
    for campaign in campaigns:
        await campaign.run()


def unreached(missed: Iterable[list[str]]) -> list[list[str]]:
    """Return what has to be reached and was not: how many calls it takes to hear and say all is not always the same."""
    return [crashes for crashes in missed if all(point.endswith(":1") and "http." not in point for point in crashes)]


@pytest.fixture(scope="module")
def campaigns(request: pytest.FixtureRequest, rig: Rig, nursery: Nursery) -> Campaigns:
    items = (item for item in request.session.items if isinstance(item, pytest.Function) and item.module is MODULE)
    kinds = [cast("type[Scenario]", item.callspec.params["kind"]) for item in items]
    return Campaigns(rig, nursery, kinds, together=not hasattr(request.config, "workerinput"))


@pytest.mark.parametrize("kind", SCENARIOS, ids=lambda kind: kind.name)
async def test_a_kill_at_any_point_leaves_one_effect_and_one_true_report(
    kind: type[Scenario], campaigns: Campaigns
) -> None:
    campaign = await campaigns.of(kind)
    print(f"{kind.name}: {campaign.done} cases; not reached: {campaign.missed}")
    assert not campaign.failures, f"{len(campaign.failures)} of {campaign.done}:\n" + "\n".join(campaign.failures)
    assert unreached(campaign.missed) == []
