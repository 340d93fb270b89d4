"""The rows of load, each a small part of what it is in a campaign."""

import pytest

from tests.faults import campaign, load
from tests.faults.fault import Budget, Fault

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("faults-load")]

ROUNDS = {"load.soak": 8}


@pytest.mark.parametrize("fault", load.FAULTS, ids=lambda fault: fault.key)
async def test_all_is_done_once_and_in_order_and_nothing_grows(fault: Fault) -> None:
    tally = await campaign.run(fault, seed=1, budget=Budget(30, most=ROUNDS.get(fault.key, 1)))
    print(tally.notes)
    assert tally.good, "\n".join(tally.stories) or "nothing was injected"
    assert tally.stories == []
    assert (tally.effects_seen, tally.reports_seen) == (tally.effects_expected, tally.reports_expected)
