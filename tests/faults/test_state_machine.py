"""The machine finds nothing in the agent as it is; how far it would, `test_state_machine_notices.py` shows."""

import pytest

from tests.faults.state_machine import explore


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> None:
    """Leave the rule aside that holds elsewhere: here the work of the threads is done on the loop, on purpose."""


@pytest.mark.timeout(120)
def test_no_interleaving_loses_repeats_or_falsifies_anything() -> None:
    explore(150)
