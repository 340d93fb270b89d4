"""A short part of the rows that kill agents of the process driver; test_crashes.py is that of each point."""

import pytest

from tests.faults import away, campaign, kills, mutations
from tests.faults.fault import Budget, Fault

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("faults-kills")]

ROUNDS = 8
CHOSEN = campaign.chosen(
    [*kills.FAULTS, *away.FAULTS],
    ["kill.random.process", "kill.both.process", "kill.machine.process", "kill.launcher.process", "away"],
)


@pytest.mark.parametrize("fault", CHOSEN, ids=lambda fault: fault.key)
async def test_each_effect_comes_once_and_each_report_is_true(fault: Fault) -> None:
    tally = await campaign.run(fault, seed=1, budget=Budget(10, most=ROUNDS))
    assert tally.good, "\n".join(tally.stories) or "nothing was injected"
    assert (tally.effects_seen, tally.reports_seen) == (tally.effects_expected, tally.reports_expected)


@pytest.mark.parametrize("name", ["pid", "sweep"])
async def test_the_campaign_notices_a_missing_protection(name: str) -> None:
    (mutation,) = (mutation for mutation in mutations.MUTATIONS if mutation.name == name)
    tally = await mutations.play(mutation, rounds=ROUNDS, seconds=30)
    assert tally.wrong


def test_a_mutation_changes_nothing_where_it_is_not_asked_for() -> None:
    names = [mutation.name for mutation in mutations.MUTATIONS]
    assert len(set(names)) == len(names)
