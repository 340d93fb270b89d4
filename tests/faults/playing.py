"""Plays rows side by side for a short time, for the tests; most of it is waiting."""

import asyncio
from collections.abc import Iterable, Mapping

from tests.faults import campaign
from tests.faults.fault import Budget, Fault
from tests.faults.tally import Tally

LONGEST = 60.0
"""Seconds after which nothing new begins, on a machine that has much to do."""


async def play(faults: Iterable[Fault], rounds: Mapping[str, int], *, usual: int) -> dict[str, Tally]:
    """Run each row for some rounds.

    Args:
        faults: The rows.
        rounds: How many, by key.
        usual: How many of the others.
    """
    async with asyncio.TaskGroup() as group:
        tasks = {
            fault.key: group.create_task(_run(fault, Budget(LONGEST, most=rounds.get(fault.key, usual))))
            for fault in faults
        }
    return {key: task.result() for key, task in tasks.items()}


async def _run(fault: Fault, budget: Budget) -> Tally:
    return await campaign.run(fault, seed=1, budget=budget)


def assert_good(tally: Tally) -> None:
    """Check that each effect came once, and that each report is there and true."""
    assert tally.good, "\n".join(tally.stories) or "nothing was injected"
    assert tally.stories == []
    assert (tally.effects_seen, tally.reports_seen) == (tally.effects_expected, tally.reports_expected)
