"""The demo's exit code stands on its ledger: it has to see what is repeated, lost, wrong or unasked."""

from types import SimpleNamespace
from typing import cast

from agent.protocol import ActivityStatus, RuntimeName
from tests.demo.ledger import Ledger
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig

COMPLETED, REJECTED, PROCESSING = ActivityStatus.COMPLETED, ActivityStatus.REJECTED, ActivityStatus.PROCESSING


def ledger_of(runs: int) -> Ledger:
    """A ledger that expects one restart of iggy and one refused reconfigure; iggy was started so many times."""
    births = {RuntimeName.IGGY: [None] * runs, RuntimeName.CONNECTORS: []}
    ledger = Ledger(cast("Rig", SimpleNamespace(births=births.__getitem__)))
    ledger.births[RuntimeName.IGGY] = 2
    ledger.results = {1: (COMPLETED, None), 2: (REJECTED, "config_invalid")}
    return ledger


def activity(number: int, status: ActivityStatus, code: str | None = None) -> Activity:
    return Activity(number, "iggy", "restart", 7, status, code, None, {})


GOOD = [activity(1, COMPLETED), activity(2, REJECTED, "config_invalid")]


def test_what_is_as_expected_is_no_problem() -> None:
    ledger = ledger_of(runs=2)
    verdict = ledger.close(GOOD)
    assert ledger.problems == []
    assert verdict.line(12.34) == "demo: completed=1 rejected=1 repeated=0 lost=0 seconds=12.3"


def test_a_run_too_many_is_repeated_and_one_too_few_is_lost() -> None:
    for runs, repeated, lost in ((3, 1, 0), (1, 0, 1)):
        ledger = ledger_of(runs)
        verdict = ledger.close(GOOD)
        assert (verdict.repeated, verdict.lost) == (repeated, lost)
        assert ledger.problems


def test_an_activity_without_a_result_or_without_a_trace_is_lost() -> None:
    for listed in ([activity(1, PROCESSING), GOOD[1]], [GOOD[1]]):
        ledger = ledger_of(runs=2)
        verdict = ledger.close(listed)
        assert (verdict.repeated, verdict.lost) == (0, 1)
        assert ledger.problems


def test_an_activity_that_nobody_dispatched_is_repeated() -> None:
    ledger = ledger_of(runs=2)
    assert ledger.close([*GOOD, activity(3, COMPLETED)]).repeated == 1
    assert ledger.problems


def test_another_status_or_another_code_is_a_problem() -> None:
    for wrong in (activity(2, COMPLETED), activity(2, REJECTED, "internal")):
        ledger = ledger_of(runs=2)
        ledger.judge(wrong)
        assert len(ledger.problems) == 1
        verdict = ledger.close([GOOD[0], wrong])
        assert (verdict.repeated, verdict.lost, len(ledger.problems)) == (0, 0, 2)


def test_a_run_too_many_is_noticed_right_after_the_action() -> None:
    ledger = ledger_of(runs=3)
    ledger.judge(GOOD[0])
    assert ledger.problems == ["after iggy restart (1), iggy had been started 3 times, not 2"]
