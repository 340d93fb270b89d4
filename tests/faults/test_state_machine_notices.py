"""With a protection switched off, the state machine finds what that protection is for; so each is needed, and tested.

What it cannot see by its nature is listed, with the reason, in `tests.faults.weakened.NOT_SEEN`.
"""

import pytest

from tests.faults.state_machine import explore
from tests.faults.tally import FalseReportError, LostError, RepeatedError
from tests.faults.weakened import WEAKENINGS

ENOUGH = 300
"""Stories within which each has to be noticed; most are within the first ten."""


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> None:
    """Leave the rule aside that holds elsewhere: here the work of the threads is done on the loop, on purpose."""


@pytest.mark.parametrize("protection", WEAKENINGS)
def test_the_machine_notices_when_it_lacks(protection: str) -> None:
    weaken, about, seed = WEAKENINGS[protection]
    with weaken(), pytest.raises((FalseReportError, LostError, RepeatedError)):
        explore(ENOUGH, about=about, from_seed=seed, shrink=False)
