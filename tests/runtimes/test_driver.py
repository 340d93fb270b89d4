"""What is said of a runtime in the words of the driver protocol."""

from typing import Any

import pytest

from agent.protocol import RuntimeState
from agent.runtimes.driver import Observation, Outcome, counted_as_running


@pytest.mark.parametrize(
    ("state", "run", "running"),
    [(RuntimeState.STARTING, "a", True), (RuntimeState.STARTING, None, False), (RuntimeState.STOPPED, "a", False)],
)
def test_as_a_of_a_call_a_run_on_its_way_up_counts_as_running(state: RuntimeState, run: Any, running: bool) -> None:
    before = Observation(state, incarnation=run)
    assert counted_as_running(before).running is running
    assert Outcome(before).replaced == (run if running else None)
