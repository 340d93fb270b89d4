"""The rows of load, each a small part of what it is in a campaign."""

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.faults import load
from tests.faults.fault import Fault
from tests.faults.playing import assert_good, play
from tests.faults.tally import Tally

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-load"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tallies() -> AsyncIterator[Mapping[str, Tally]]:
    """All rows, played once."""
    yield await play(load.FAULTS, {"load.soak": 8}, usual=1)


@pytest.mark.parametrize("fault", load.FAULTS, ids=lambda fault: fault.key)
async def test_all_is_done_once_and_in_order_and_nothing_grows(fault: Fault, tallies: Mapping[str, Tally]) -> None:
    assert_good(tallies[fault.key])
