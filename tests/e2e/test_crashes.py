"""kill -9 of the agent at every point of every action: one effect, one report, and the report is true.

The points are not listed here: each scenario is run once without a crash, and once again for each point that this run
passed. The points of recovery are found in the same way, from a run that crashed before. Where two scenarios begin or
end in the same way, one of them has the points of that part. `CRASHES=all` kills at all points of all scenarios, and
at each point of the recovery from each: thousands of cases, which take an hour.
"""

import asyncio
import os
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import cast

import pytest

from tests.e2e.habitats import PROCESSES
from tests.e2e.nursery import Nursery
from tests.e2e.rig import Rig
from tests.e2e.scenarios import SCENARIOS, Scenario
from tests.faults.crashes import Crashes, Stage, share, unreached
from tests.faults.tally import Tally

ALL = os.environ.get("CRASHES") == "all"
MODULE = sys.modules[__name__]
CALLED = "after:journal.record"

pytestmark = [
    pytest.mark.timeout(3600 if ALL else 240),
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.xdist_group("crashes"),
]


class Campaign:
    """All cases of one scenario, on a few nodes."""

    def __init__(self, rig: Rig, nursery: Nursery, kind: type[Scenario]) -> None:
        self.kind = kind
        self.tally = Tally(kind.name)
        self.stage = Stage(rig, nursery, PROCESSES, self.tally)

    async def run(self) -> None:
        """Find the points, then crash at each."""
        async with AsyncExitStack() as stack:
            nodes = [await self.stage.enter(stack, self.kind) for _ in range(self.kind.nodes)]
            first = self._own(await self.stage.trace(nodes[0], ()))
            cases: list[Crashes] = [(point,) for point in first]
            for point in first if ALL else self._points_to_recover_from(first):
                recovery = await self.stage.trace(nodes[0], (point,))
                cases += [(point, later) for later in recovery]
            await share(nodes, iter(cases), self.stage)

    def _own(self, points: list[str]) -> list[str]:
        """Leave out what another scenario has too."""
        if ALL:
            return points
        begin = points.index(self.kind.since) if self.kind.since else 0
        return points[begin : points.index(self.kind.until) if self.kind.until else None]

    def _points_to_recover_from(self, points: list[str]) -> list[str]:
        """Choose the last decisive call: from there on, recovery has most to do."""
        return [point for point in points if point.startswith(CALLED)][-1:] if self.kind.recovery else []


class Campaigns:
    """The campaigns of all tests that were asked for; they run together, the first time that one is asked for.

    On a worker of pytest-xdist, which cannot know what the others do, each runs when it is asked for.
    """

    def __init__(self, rig: Rig, nursery: Nursery, kinds: Iterable[type[Scenario]], *, together: bool) -> None:
        self._all = {kind: Campaign(rig, nursery, kind) for kind in kinds}
        self._together = together

    async def of(self, kind: type[Scenario]) -> Campaign:
        """Return a campaign that was run."""
        if not self._all[kind].tally.cases:
            campaigns = list(self._all.values()) if self._together else [self._all[kind]]
            async with asyncio.TaskGroup() as group:
                for waiting in (False, True):  # those that need the processor, and beside them those that wait
                    group.create_task(_run([campaign for campaign in campaigns if campaign.kind.waits is waiting]))
        return self._all[kind]


async def _run(campaigns: Iterable[Campaign]) -> None:
    for campaign in campaigns:
        await campaign.run()


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
    print(f"{kind.name}: {campaign.tally.injected} kills; not reached: {campaign.stage.missed}")
    assert campaign.tally.good, "\n".join(campaign.tally.stories)
    assert unreached(campaign.stage.missed) == []
