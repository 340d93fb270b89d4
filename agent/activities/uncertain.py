"""What may have been done already is never done again: it is completed if it is true, else its outcome is unknown.

A journal that was lost, put back from an old copy, or pruned cannot know whether an activity that the Supervisor lists
was carried out before.
"""

from typing import Any

import structlog

from agent.activities.execution import Verdict
from agent.activities.work import Result
from agent.errors import Rejection
from agent.journal import Row
from agent.protocol import Action, ReasonCode, RuntimeState, Verb
from agent.runtimes.runtime import Runtime

log = structlog.get_logger(__name__)


async def judge_uncertain(runtime: Runtime, action: Action, row: Row) -> Verdict:
    """Judge an activity by what is seen, without any effect; what it is known to have done is told.

    Raises:
        Rejection: `outcome_unknown`, unless a start or a stop is seen to be true already.
    """
    evidence: dict[str, Any] = {"journal": "does not know whether it was done before"}
    try:
        seen = await runtime.driver.observe()
        evidence["after"] = seen.as_evidence()
        ready = seen.running and action.verb is Verb.START and (await runtime.probe_once()).ready
        down = seen.state in {RuntimeState.STOPPED, RuntimeState.FAILED} and action.verb is Verb.STOP
    except Rejection as rejection:
        evidence["after"] = {"unreadable": rejection.message}
        ready = down = False
    except Exception:  # what the agent cannot look at it does not know, whatever keeps it from that
        log.exception("activity.look_failed", activity_id=row.id)
        evidence["after"] = {"unreadable": "cannot look at it: a fault of the agent, see its log"}
        ready = down = False
    if ready or down:
        evidence["calls"] = [call.call for call in row.calls]
        return Verdict.completed(Result(changed=bool(row.calls), evidence=evidence))
    raise Rejection(
        ReasonCode.OUTCOME_UNKNOWN,
        f"cannot tell whether activity {row.id} was carried out: the journal that knew is lost; it is not done again",
        hint="look at the runtime, and dispatch the action again if it is still wanted",
        evidence=evidence,
    )
