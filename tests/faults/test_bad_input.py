"""The rows of bad input, each for a moment; `make faults` goes on for longer."""

import pytest

from tests.faults import bad_input, campaign
from tests.faults.fault import Budget, Fault

pytestmark = pytest.mark.xdist_group("faults-input")
SEED = 20261124


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.key) for fault in bad_input.FAULTS])
async def test_bad_input_is_refused_and_holds_up_nothing(fault: Fault) -> None:
    tally = await campaign.run(fault, SEED, Budget(0, most=1))
    assert tally.stories == []
    assert tally.good
