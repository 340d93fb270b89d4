"""Taking up again what a dead agent had started: settle, look the decision up, do it.

How the runtime has to be read before is told in `recovery`; here a decision becomes a deed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import assert_never

from agent.activities import actions, reconfigure
from agent.activities.recovery import Decision, decide
from agent.activities.work import Result, Work
from agent.conditions import Conditions
from agent.errors import Rejection
from agent.journal import GoingBack, JournaledCall, Row
from agent.protocol import DriverKind, ReasonCode, Verb
from agent.runtimes.driver import Incarnation, Observation, read_boot_id

ASK_AGAIN = 2.0
"""Seconds between two tries to read a runtime whose driver is away."""

BEGINNINGS: Mapping[Verb, Callable[[Work], Awaitable[Result]]] = {
    Verb.START: actions.start,
    Verb.STOP: actions.stop,
    Verb.RESTART: actions.restart,
    Verb.RECONFIGURE: reconfigure.reconfigure,
}


def told_by_a(row: Row) -> bool:
    """Tell whether A says what became of an activity, also when the journal is an old copy.

    Of another boot it does not: what was finished since looks as if its call had had no effect. So does a reconfigure
    that went back since.
    """
    call = row.decisive_call()
    return call is not None and call.boot_id == read_boot_id() and not row.action.startswith(Verb.RECONFIGURE)


async def settle(work: Work, conditions: Conditions) -> Observation:
    """Wait until the runtime can be read and nothing is under way; a driver that is away is waited for.

    Raises:
        Rejection: `timeout` when it can be read and never comes to rest within the action's time.
    """
    code = f"recovery_waits_{work.row.runtime}"
    try:
        return await _settle(work, conditions, code)
    finally:
        conditions.clear(code)


async def _settle(work: Work, conditions: Conditions, code: str) -> Observation:
    limit = work.runtime.timeouts.action
    while True:
        try:
            async with asyncio.timeout(limit):
                return await work.runtime.driver.settle()
        except TimeoutError as error:
            raise Rejection(
                ReasonCode.TIMEOUT,
                f"cannot recover the activity: {work.row.runtime} did not come to rest in {limit:g} s",
                hint="look for a job that never ends, or a crash loop",
            ) from error
        except Rejection as rejection:
            if rejection.code is not ReasonCode.DRIVER_UNAVAILABLE:
                raise
            conditions.set(
                code, f"activity {work.row.id} cannot be recovered yet: {rejection.message}", hint=rejection.hint
            )
            await asyncio.sleep(ASK_AGAIN)


async def resume(work: Work, seen: Observation) -> Result:
    """Go on with an activity that goes forward.

    Args:
        work: The activity, as the journal holds it.
        seen: The runtime, settled.

    Raises:
        Rejection: It failed, or `outcome_unknown`.
        Superseded: By a later action.
    """
    call = work.row.decisive_call()
    if call is None:
        return await BEGINNINGS[work.action.verb](work)
    decision = await _decide(work, seen, call)
    if work.action.verb is Verb.RECONFIGURE:
        return await reconfigure.finish_forward(work, not_this=await _again(work, call, decision, seen))
    if work.action.verb is not Verb.STOP:
        return await actions.finish_up(work, not_this=await _again(work, call, decision, seen))
    if decision is Decision.COMPLETED and seen.at_rest:
        work.saw(seen)
        return Result(changed=work.changed, evidence=work.all_evidence())
    if call.boot_id == read_boot_id():
        work.must_be = None if call.incarnation is None else Incarnation(call.incarnation)
    return await actions.stop(work)


async def resume_back(work: Work, going_back: GoingBack, seen: Observation | None) -> Rejection:
    """Go on with a reconfigure that had decided to go back; returns what it reports.

    Args:
        work: The activity, as the journal holds it.
        going_back: Its decision.
        seen: The runtime, settled; None when it never came to rest, as a crash loop does not.
    """
    call = work.row.decisive_call()
    if call is None:
        return await reconfigure.go_back(work, going_back)
    if seen is None:  # runs came and went since A
        return await reconfigure.finish_back(work, going_back, _a_if_running(call))
    try:
        not_this = await _again(work, call, await _decide(work, seen, call), seen)
    except Rejection as rejection:
        return await reconfigure.rollback_failed(work, going_back, rejection)
    return await reconfigure.finish_back(work, going_back, not_this)


async def _decide(work: Work, seen: Observation, call: JournaledCall) -> Decision:
    decision = decide(
        work.action.verb,
        seen,
        call,
        read_boot_id(),
        counts=await _counts(work, seen),
        each_body_has_runs_of_its_own=work.runtime.driver.kind is DriverKind.DOCKER,
    )
    work.evidence["recovery"] = {
        "decision": str(decision),
        "found": seen.as_evidence(),
        "last_call": call.call,
        "before_last_call": {"running": call.running, "incarnation": call.incarnation},
        "same_boot": call.boot_id == read_boot_id(),
    }
    return _refuse(decision, seen)


async def _counts(work: Work, seen: Observation) -> bool:
    """Tell whether what is seen can be the effect of a reconfigure: a container says which config it was made with."""
    if work.action.verb is not Verb.RECONFIGURE or work.runtime.driver.kind is not DriverKind.DOCKER:
        return True
    current = await work.runtime.current()
    return seen.config_sha256 == (None if current is None else current.sha256)


def _refuse(decision: Decision, seen: Observation) -> Decision:
    if decision is Decision.START_FAILED:
        raise Rejection(
            ReasonCode.START_FAILED,
            f"cannot complete it: a run began after the call and ended (exit code {_or_unknown(seen.exit_code)})",
            hint="look at the runtime's log",
        )
    if decision is Decision.OUTCOME_UNKNOWN:
        raise Rejection(
            ReasonCode.OUTCOME_UNKNOWN,
            "cannot tell what the call did before the agent died; it is not made again",
            hint="look at the runtime, and dispatch the action again if it is still wanted",
        )
    return decision


def _or_unknown(code: int | None) -> str:
    return "unknown" if code is None else str(code)


def _a_if_running(call: JournaledCall) -> Incarnation | None:
    return Incarnation(call.incarnation) if call.running and call.incarnation else None


async def _again(work: Work, call: JournaledCall, decision: Decision, seen: Observation) -> Incarnation | None:
    """Make the call again where the decision says so; returns the run that must not be the one seen ready."""
    driver = work.runtime.driver
    match decision:
        case Decision.WAIT if work.action.verb is Verb.START:
            return None  # A that was on its way up is what a start waits for
        case Decision.WAIT:
            return _a_if_running(call)
        case Decision.RUN if work.action.verb is not Verb.START:
            outcome = await driver.restart(work.record)
            work.note(outcome)
            return outcome.replaced
        case Decision.RUN | Decision.START_ONLY if seen.at_rest:
            work.note(await driver.start(work.record))
            return None
        case Decision.RUN | Decision.START_ONLY:
            # Its main process has ended, and what is left of it would not let a new one begin.
            work.note(await driver.restart(work.record))
            return None
        case Decision.COMPLETED | Decision.START_FAILED | Decision.OUTCOME_UNKNOWN:
            msg = f"nothing is done again after {decision}"
            raise AssertionError(msg)
        case _:
            assert_never(decision)
