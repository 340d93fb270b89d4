"""A short part of the rows that kill agents whose runtimes are units of a real systemd."""

import os
import random
from collections.abc import Iterator

import pytest

from tests.faults.fault import Budget
from tests.faults.inside import InsideError, boot, play
from tests.faults.kills_systemd import BRIEF
from tests.system.booted import Booted, missing

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("faults-systemd")]

RANDOM = 3
"""Random cases of each action."""


@pytest.fixture(scope="module")
def system() -> Iterator[Booted]:
    """A systemd of these tests' own; where none can be had they are skipped, in CI they fail."""
    if lacks := missing():
        message = f"a booted systemd cannot be had here; missing: {', '.join(lacks)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    system = boot()
    try:
        yield system
    finally:
        system.end()


async def test_a_kill_around_a_call_to_systemd_leaves_one_effect_and_one_true_report(system: Booted) -> None:
    tally = await play(system, BRIEF.key, random.randrange(2**32), Budget(30, most=2 * RANDOM))
    assert tally.good, "\n".join(tally.stories) or "nothing was injected"
    assert (tally.effects_seen, tally.reports_seen) == (tally.effects_expected, tally.reports_expected)
    assert tally.injected > RANDOM


async def test_what_ends_inside_without_a_result_is_an_error(system: Booted) -> None:
    with pytest.raises(InsideError, match=r"(?s)no\.such\.row, played inside, ended with 1 .*Error"):
        await play(system, "no.such.row", 1, Budget(0))
