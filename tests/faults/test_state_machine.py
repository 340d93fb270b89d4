"""The machine finds nothing in the agent as it is; how far it would, `test_state_machine_notices.py` shows."""

from pathlib import Path

import pytest

from tests.faults.fault import Budget, Ground
from tests.faults.state_machine import FAULTS, explore
from tests.faults.tally import Tally


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> None:
    """Leave the rule aside that holds elsewhere: here the work of the threads is done on the loop, on purpose."""


@pytest.mark.timeout(600)  # what is found is made short, and that may take five minutes
def test_no_interleaving_loses_repeats_or_falsifies_anything() -> None:
    explore(60)


async def test_the_row_of_the_campaign_counts_what_it_did(tmp_path: Path) -> None:
    tally = Tally(FAULTS[0].name)
    await FAULTS[0].run(Ground(tmp_path, 1), Budget(1.0, most=1), tally)
    assert tally.good, tally.stories
    assert tally.cases > 0
