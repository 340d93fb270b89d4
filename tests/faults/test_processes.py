"""The rows of agents and runtimes that are stopped, set wrong, held back, killed or doubled: each for a short time.

They run side by side, for most of it is waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.faults import campaign, clock, pauses, process_limits, two_agents, unruly
from tests.faults.fault import Budget, Fault
from tests.faults.tally import Tally

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-processes"),
]

ROUNDS = {"rivals": 1, "clock.jump": 2, "pause": 3}
USUAL_ROUNDS = 4
FAULTS = (*pauses.FAULTS, *clock.FAULTS, *process_limits.FAULTS, *unruly.FAULTS, *two_agents.FAULTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tallies() -> AsyncIterator[Mapping[str, Tally]]:
    """All rows, run once."""
    async with asyncio.TaskGroup() as group:
        tasks = {fault.key: group.create_task(_run(fault)) for fault in FAULTS}
    yield {key: task.result() for key, task in tasks.items()}


async def _run(fault: Fault) -> Tally:
    rounds = ROUNDS.get(fault.key, USUAL_ROUNDS)
    return await campaign.run(fault, seed=1, budget=Budget(60, most=rounds))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
async def test_each_effect_comes_once_and_each_report_is_true(fault: Fault, tallies: Mapping[str, Tally]) -> None:
    tally = tallies[fault.key]
    assert tally.good, "\n".join(tally.stories) or "nothing was injected"
    assert tally.stories == []
    assert (tally.effects_seen, tally.reports_seen) == (tally.effects_expected, tally.reports_expected)
