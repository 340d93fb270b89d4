"""What to do about an activity that was `started` when the agent died, once its runtime is settled.

This is the table of docs/recovery.md, and only that: pure, so that each cell is a test. It was checked with an
explicit-state model of all drivers, actions, kills, deaths, revivals and reboots; each clause is there because a trace
breaks without it.

Before it is asked, the runtime must be settled (readable, nothing pending, not between two runs) and the activity's
decisive call must be in the journal, with **A**, the run that was seen just before it, and the boot id of that moment.
An activity whose decisive call is not journaled simply runs from its beginning.
"""

from enum import StrEnum
from typing import assert_never

from agent.journal import JournaledCall
from agent.protocol import Verb
from agent.runtimes.driver import Observation


class Decision(StrEnum):
    """What recovery does."""

    RUN = "run"
    """The call had no effect, or not the whole: make it again, journaled, with A read anew."""
    START_ONLY = "start_only"
    """The stop had its effect, the start had not: start it, journaled, with A read anew."""
    WAIT = "wait"
    """Another run than A is up: wait until it is ready; `completed` means ready here too."""
    COMPLETED = "completed"
    """The aim is reached."""
    START_FAILED = "start_failed"
    """A run began since A and ended: the call had its effect, and it did not last."""
    OUTCOME_UNKNOWN = "outcome_unknown"
    """It cannot be told what the call did; it is not made again."""


def decide(
    verb: Verb,
    seen: Observation,
    call: JournaledCall,
    boot_id: str,
    *,
    counts: bool = True,
    each_body_has_runs_of_its_own: bool = False,
) -> Decision:
    """Decide by the table.

    Args:
        verb: Of the activity; a reconfigure's restart is a restart.
        seen: The runtime, settled.
        call: The last decisive call that was journaled.
        boot_id: The machine's boot now.
        counts: Whether what is seen can be the effect of the call: a container that was made with another config than
            the one that is asked for is not.
        each_body_has_runs_of_its_own: A container that never ran is no sign of a run that cannot be known: it was made
            since, and nothing was started in it.
    """
    same_boot = call.boot_id == boot_id
    if seen.running:
        still_a = bool(call.running) and seen.incarnation == call.incarnation
        return _running(verb, still_a=still_a or not counts, same_boot=same_boot)
    if verb is Verb.STOP:
        return Decision.COMPLETED
    again = Decision.RUN if verb is Verb.START else Decision.START_ONLY
    if not same_boot or not counts or (seen.incarnation_known and seen.incarnation == call.incarnation):
        return again
    if seen.incarnation_known and seen.incarnation is None and each_body_has_runs_of_its_own:
        return again
    if not seen.incarnation_known or seen.incarnation is None:
        return Decision.OUTCOME_UNKNOWN
    return Decision.START_FAILED


def _running(verb: Verb, *, still_a: bool, same_boot: bool) -> Decision:
    match verb:
        case Verb.START:
            return Decision.WAIT
        case Verb.STOP:
            if still_a or not same_boot:
                return Decision.RUN
            return Decision.OUTCOME_UNKNOWN
        case Verb.RESTART | Verb.RECONFIGURE:
            return Decision.RUN if still_a else Decision.WAIT
        case _:
            assert_never(verb)
