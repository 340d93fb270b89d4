"""Carrying one activity out, within its deadline, to the one verdict that is journaled and reported."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from agent.activities import reconfigure, resume
from agent.activities.work import Result, Superseded, Work
from agent.conditions import Conditions
from agent.errors import JournalError, Rejection
from agent.journal import KEEP, GoingBack, Row
from agent.protocol import Reason, ReasonCode, ReconfigureOutcome, ReportStatus, Verb

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an activity comes to."""

    status: ReportStatus
    reason: Reason | None = None
    changed: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)
    committed: Any = KEEP

    @classmethod
    def completed(cls, result: Result) -> "Verdict":
        """Make the verdict of an aim that was seen reached."""
        return cls(ReportStatus.COMPLETED, None, result.changed, result.evidence, result.committed)

    @classmethod
    def refused(cls, row: Row, rejection: Rejection) -> "Verdict":
        """Make the verdict of what is not carried out, or no further, with what the journal knows was done."""
        calls = [call.call for call in row.calls]
        return cls(ReportStatus.REJECTED, rejection.reason(), bool(calls), {**rejection.evidence, "calls": calls})

    @classmethod
    def rejected(cls, rejection: Rejection, work: Work) -> "Verdict":
        """Make the verdict of an action that failed."""
        return cls(ReportStatus.REJECTED, rejection.reason(), work.changed, work.all_evidence(rejection.evidence))


async def carry_out(work: Work) -> Verdict:
    """Carry an activity out from its beginning.

    Raises:
        JournalError: A step could not be written; the activity is taken up again by `recover`.
    """
    return await _forward(work, lambda: resume.BEGINNINGS[work.action.verb](work))


async def recover(work: Work, conditions: Conditions) -> Verdict:
    """Take an activity up again that the journal holds as started.

    Raises:
        JournalError: As for `carry_out`.
    """
    decision = work.row.going_back
    if decision is not None:
        return await _recover_back(work, decision, conditions)
    try:
        seen = await resume.settle(work, conditions)
    except Exception as error:  # noqa: BLE001 - as in `_forward`
        return await _failed(work, _cause(work, error))
    return await _forward(work, lambda: resume.resume(work, seen))


async def _recover_back(work: Work, decision: GoingBack, conditions: Conditions) -> Verdict:
    """Go back, also from a crash loop, which never comes to rest: going back is what ends it.

    One that was superseded only waited for readiness, with no call under way that could come after what it does now: it
    goes back at once, so that what superseded it does not wait for a crash loop.
    """
    if decision.superseded:
        return await _backward(work, decision, lambda: reconfigure.go_back(work, decision))
    seen = None
    try:
        seen = await resume.settle(work, conditions)
    except Exception as error:  # noqa: BLE001 - as in `_forward`
        cause = _cause(work, error)
        if cause.code is not ReasonCode.TIMEOUT:
            return Verdict.rejected(await reconfigure.rollback_failed(work, decision, cause), work)
    return await _backward(work, decision, lambda: resume.resume_back(work, decision, seen))


def _cause(work: Work, error: Exception) -> Rejection:
    return error if isinstance(error, Rejection) else internal(work.row, error)


async def _forward(work: Work, action: Callable[[], Awaitable[Result]]) -> Verdict:
    seconds = work.runtime.timeouts.action
    limit = asyncio.timeout(seconds)
    cause: Rejection | Superseded
    try:
        async with limit:
            return Verdict.completed(await action())
    except JournalError:
        raise
    except (Rejection, Superseded) as error:
        cause = error
    except Exception as error:  # noqa: BLE001 - a fault of the agent is reported like any other, and never ends a lane
        cause = _timeout(work, seconds) if limit.expired() else internal(work.row, error)
    return await _failed(work, cause)


async def _failed(work: Work, cause: Rejection | Superseded) -> Verdict:
    if work.action.verb is Verb.RECONFIGURE and reconfigure.touched(work):
        decision = await reconfigure.decide_to_go_back(work, cause)
        return await _backward(work, decision, lambda: reconfigure.go_back(work, decision))
    rejection = cause.rejection() if isinstance(cause, Superseded) else cause
    await work.explain(rejection)
    if work.action.verb is Verb.RECONFIGURE:
        rejection.evidence.update(
            await reconfigure.facts(work.runtime, work.config, ReconfigureOutcome.NOT_APPLIED, work.last_seen)
        )
    return Verdict.rejected(rejection, work)


async def _backward(work: Work, decision: GoingBack, action: Callable[[], Awaitable[Rejection]]) -> Verdict:
    """Go back, within a budget of its own that the deadline of the action does not shorten."""
    seconds = work.runtime.timeouts.action
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            rejection = await action()
    except JournalError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        cause = _timeout(work, seconds) if limit.expired() else internal(work.row, error)
        rejection = await reconfigure.rollback_failed(work, decision, cause)
    return Verdict.rejected(rejection, work)


def _timeout(work: Work, seconds: float) -> Rejection:
    return Rejection(
        ReasonCode.TIMEOUT,
        f"cannot finish {work.action} of {work.row.runtime}: its {seconds:g} s were over",
        hint="look at the evidence for what it was waiting for; action_timeout is a setting",
    )


def internal(row: Row, error: Exception) -> Rejection:
    """Turn a fault of the agent into a rejection; its traceback goes to the log."""
    log.error("activity.fault", activity_id=row.id, error=repr(error), exc_info=error)
    return Rejection(
        ReasonCode.INTERNAL,
        f"cannot finish {row.action} of {row.runtime}: {type(error).__name__}",
        hint="this is a fault of the agent; its log has the traceback",
    )
