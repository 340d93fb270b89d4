"""The table of docs/recovery.md, cell by cell."""

from datetime import UTC, datetime

import pytest

from agent.activities.recovery import Decision, decide
from agent.journal import JournaledCall
from agent.protocol import RuntimeState, Verb
from agent.runtimes.driver import Incarnation, Observation

A, B = Incarnation("run-a"), Incarnation("run-b")
BOOT, LATER_BOOT = "boot-1", "boot-2"


def call_after_reading(*, running: bool, incarnation: str | None) -> JournaledCall:
    return JournaledCall(
        call="restart",
        decisive=True,
        going_back=False,
        at=datetime.now(UTC),
        running=running,
        incarnation=incarnation,
        boot_id=BOOT,
        detail={},
    )


A_RUNNING = call_after_reading(running=True, incarnation=A)
A_ENDED = call_after_reading(running=False, incarnation=A)
NONE_EVER = call_after_reading(running=False, incarnation=None)


def running(incarnation: Incarnation) -> Observation:
    return Observation(RuntimeState.RUNNING, incarnation=incarnation)


def ended(incarnation: Incarnation | None, *, known: bool = True) -> Observation:
    return Observation(RuntimeState.STOPPED, incarnation=incarnation, incarnation_known=known)


RUN, START_ONLY, WAIT = Decision.RUN, Decision.START_ONLY, Decision.WAIT
COMPLETED, FAILED, UNKNOWN = Decision.COMPLETED, Decision.START_FAILED, Decision.OUTCOME_UNKNOWN

# name of the row, what is seen, the journaled call, the boot now; then what start, stop and restart do
TABLE = [
    ("running, still A", running(A), A_RUNNING, BOOT, WAIT, RUN, RUN),
    ("running, still A, new boot", running(A), A_RUNNING, LATER_BOOT, WAIT, RUN, RUN),
    ("running, not A", running(B), A_RUNNING, BOOT, WAIT, UNKNOWN, WAIT),
    ("running, A had ended", running(B), A_ENDED, BOOT, WAIT, UNKNOWN, WAIT),
    ("running, A had ended, and seems to run again", running(A), A_ENDED, BOOT, WAIT, UNKNOWN, WAIT),
    ("running, not A, new boot", running(B), A_RUNNING, LATER_BOOT, WAIT, RUN, WAIT),
    ("running, there was none", running(B), NONE_EVER, BOOT, WAIT, UNKNOWN, WAIT),
    ("not running, last was A", ended(A), A_RUNNING, BOOT, RUN, COMPLETED, START_ONLY),
    ("not running, last was A, which had ended", ended(A), A_ENDED, BOOT, RUN, COMPLETED, START_ONLY),
    ("not running, there was none", ended(None), NONE_EVER, BOOT, RUN, COMPLETED, START_ONLY),
    ("not running, new boot", ended(B), A_RUNNING, LATER_BOOT, RUN, COMPLETED, START_ONLY),
    (
        "not running, new boot, last unknown",
        ended(None, known=False),
        A_RUNNING,
        LATER_BOOT,
        RUN,
        COMPLETED,
        START_ONLY,
    ),
    ("not running, another began since and ended", ended(B), A_RUNNING, BOOT, FAILED, COMPLETED, FAILED),
    ("not running, the first ever began since and ended", ended(B), NONE_EVER, BOOT, FAILED, COMPLETED, FAILED),
    ("not running, the last is unknown", ended(None, known=False), A_RUNNING, BOOT, UNKNOWN, COMPLETED, UNKNOWN),
    (
        "not running, the last is unknown, A was too",
        ended(None, known=False),
        NONE_EVER,
        BOOT,
        UNKNOWN,
        COMPLETED,
        UNKNOWN,
    ),
    ("not running, A is forgotten", ended(None), A_RUNNING, BOOT, UNKNOWN, COMPLETED, UNKNOWN),
]
CELLS = [
    pytest.param(verb, seen, call, boot_id, decision, id=f"{name}: {verb}")
    for name, seen, call, boot_id, *decisions in TABLE
    for verb, decision in zip((Verb.START, Verb.STOP, Verb.RESTART), decisions, strict=True)
]


@pytest.mark.parametrize(("verb", "seen", "call", "boot_id", "decision"), CELLS)
def test_each_cell(verb: Verb, seen: Observation, call: JournaledCall, boot_id: str, decision: Decision) -> None:
    assert decide(verb, seen, call, boot_id) is decision


@pytest.mark.parametrize(("name", "seen", "call", "boot_id", "_start", "_stop", "decision"), TABLE)
def test_a_reconfigures_restart_is_a_restart(
    name: str,
    seen: Observation,
    call: JournaledCall,
    boot_id: str,
    _start: Decision,
    _stop: Decision,
    decision: Decision,
) -> None:
    assert decide(Verb.RECONFIGURE, seen, call, boot_id) is decision, name


@pytest.mark.parametrize(
    ("seen", "call", "decision"),
    [
        (running(B), A_RUNNING, RUN),
        (running(A), A_RUNNING, RUN),
        (ended(B), A_RUNNING, START_ONLY),
        (ended(None), A_RUNNING, START_ONLY),
    ],
)
def test_a_container_with_another_config_is_no_effect_of_the_reconfigure(
    seen: Observation, call: JournaledCall, decision: Decision
) -> None:
    assert decide(Verb.RECONFIGURE, seen, call, BOOT, counts=False) is decision


@pytest.mark.parametrize(("verb", "decision"), [(Verb.START, RUN), (Verb.RESTART, START_ONLY), (Verb.STOP, COMPLETED)])
def test_a_container_that_never_ran_was_made_since_and_can_be_started(verb: Verb, decision: Decision) -> None:
    assert decide(verb, ended(None), A_RUNNING, BOOT, each_body_has_runs_of_its_own=True) is decision
