"""The rows of bad input, each for a moment; `make faults` goes on for longer."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.faults import bad_input, campaign
from tests.faults.fault import Budget, Fault
from tests.faults.tally import Tally

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-input"),
]
SEED = 20261124


APART = "input.supervisor_api"
"""It is played by a process of its own; the others take turns, for one reads what this process prints."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tallies() -> AsyncIterator[Mapping[str, Tally]]:
    """All rows, played once."""
    async with asyncio.TaskGroup() as group:
        (apart,) = (group.create_task(_played(fault)) for fault in bad_input.FAULTS if fault.key == APART)
        in_turn = {fault.key: await _played(fault) for fault in bad_input.FAULTS if fault.key != APART}
    yield {**in_turn, APART: apart.result()}


async def _played(fault: Fault) -> Tally:
    return await campaign.run(fault, SEED, Budget(0, most=1))


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.key) for fault in bad_input.FAULTS])
async def test_bad_input_is_refused_and_holds_up_nothing(fault: Fault, tallies: Mapping[str, Tally]) -> None:
    tally = tallies[fault.key]
    assert tally.stories == []
    assert tally.good
