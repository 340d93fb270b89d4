"""The rows of agents and runtimes that are stopped, set wrong, held back, killed or doubled, each for a short time."""

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.faults import clock, pauses, process_limits, two_agents, unruly
from tests.faults.fault import Fault
from tests.faults.playing import assert_good, play
from tests.faults.tally import Tally

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-processes"),
]

FAULTS = (*pauses.FAULTS, *clock.FAULTS, *process_limits.FAULTS, *unruly.FAULTS, *two_agents.FAULTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tallies() -> AsyncIterator[Mapping[str, Tally]]:
    """All rows, played once."""
    yield await play(FAULTS, {"rivals": 1, "clock.jump": 2}, usual=3)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
async def test_each_effect_comes_once_and_each_report_is_true(fault: Fault, tallies: Mapping[str, Tally]) -> None:
    assert_good(tallies[fault.key])
