"""One activity while it is carried out: what the actions need, and what they gather for its report."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from agent.errors import Rejection
from agent.journal import KEEP, Journal, Row
from agent.protocol import Action, Config, ReasonCode
from agent.runtimes.driver import Call, Incarnation, Observation, Outcome, Step
from agent.runtimes.readiness import Readiness
from agent.runtimes.runtime import Runtime

log = structlog.get_logger(__name__)

LOG_TAIL_CODES = frozenset(
    {ReasonCode.START_FAILED, ReasonCode.STOP_FAILED, ReasonCode.NOT_READY, ReasonCode.UNSTABLE, ReasonCode.TIMEOUT}
)
"""Rejections that are about a run of the runtime, so that what it logged is evidence."""

LOOK_AGAIN = 0.5
"""Seconds after which a runtime on its way is looked at again, should no change have been pushed."""


@dataclass(frozen=True, slots=True)
class Result:
    """A completed action.

    Args:
        changed: Whether anything was done.
        evidence: What was seen.
        committed: The release that was seen ready with it; KEEP when it says nothing about releases.
    """

    changed: bool
    evidence: dict[str, Any]
    committed: Any = KEEP


class Superseded(Exception):  # noqa: N818 - it is the word of the protocol
    """A later action of the same runtime ended the wait for readiness."""

    def __init__(self, by: Row) -> None:
        super().__init__(f"superseded by activity {by.id}")
        self.by = by

    def rejection(self) -> Rejection:
        """Return what the earlier activity reports."""
        return Rejection(
            ReasonCode.SUPERSEDED,
            f"cannot wait any longer until it is ready: activity {self.by.id} ({self.by.action}) came after it",
            hint="look at the result of the later activity",
            evidence={"superseded_by": self.by.id},
        )


@dataclass(slots=True)
class Work:
    """One activity under way on its runtime.

    Args:
        runtime: What it acts on.
        journal: Where each call is written before it is made.
        row: The activity as journaled when it was taken up.
        action: Its verb and config id.
        config: Of a reconfigure.
        successor: Returns when a later action wants the wait for readiness to end.
        recovered: Whether it goes on after a crash of the agent.
        must_be: A stop that is made again may only hit this run.
    """

    runtime: Runtime
    journal: Journal
    row: Row
    action: Action
    config: Config | None
    successor: Callable[[], Awaitable[Row]]
    recovered: bool = False
    must_be: Incarnation | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    last_seen: Observation | None = None

    async def record(self, step: Step) -> None:
        """Write a call before it is made.

        Raises:
            JournalError: It could not be written; the call must not be made.
            Rejection: `outcome_unknown`: a stop that is made again would hit another run than A.
        """
        before = step.before
        if self.must_be is not None and before is not None and before.incarnation != self.must_be:
            raise Rejection(
                ReasonCode.OUTCOME_UNKNOWN,
                "cannot stop it again: another run began meanwhile",
                hint="look at the runtime, and dispatch a stop if it is still wanted",
            )
        await self.journal.record(
            self.row.id,
            step.call,
            decisive=step.decisive,
            running=None if before is None else before.running,
            incarnation=None if before is None else before.incarnation,
            boot_id=step.boot_id,
            detail=step.detail,
        )
        self.calls.append(step.call)

    def note(self, outcome: Outcome) -> None:
        """Keep what a driver's verb did as evidence."""
        self.evidence.setdefault("before", outcome.before.as_evidence())
        self.last_seen = outcome.before
        facts = {"exit_code": outcome.exit_code, "killed": outcome.killed, **outcome.detail}
        if outcome.killed is None:
            facts.pop("exit_code")
            facts.pop("killed")
        self.evidence.update(facts)

    def saw(self, observation: Observation) -> None:
        """Keep what was seen last as evidence."""
        self.last_seen = observation
        self.evidence["after"] = observation.as_evidence()

    async def at_rest(self, *, patience: float = 0.0) -> Observation:
        """Look at the runtime once nothing is under way; the action's deadline bounds it.

        Args:
            patience: Seconds that a driver which cannot be asked is waited for.

        Raises:
            Rejection: It cannot be seen.
        """
        driver = self.runtime.driver
        give_up_at = time.monotonic() + patience
        while True:
            try:
                seen = await driver.observe()
            except Rejection as rejection:
                if rejection.code is not ReasonCode.DRIVER_UNAVAILABLE or time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(LOOK_AGAIN)
                continue
            if seen.at_rest:
                return seen
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await driver.wait_for_change()

    async def wait_until_ready(self) -> Readiness:
        """Wait until the runtime is ready and stable, or a later action ends the wait.

        Raises:
            Rejection: `start_failed`, `not_ready`, `unstable`, `timeout`.
            Superseded: By a later stop, restart or reconfigure.
        """
        ready = asyncio.ensure_future(self.runtime.wait_until_ready())
        later = asyncio.ensure_future(self.successor())
        try:
            await asyncio.wait({ready, later}, return_when=asyncio.FIRST_COMPLETED)
            if later.done() and (fault := later.exception()):
                log.error("activity.fault", activity_id=self.row.id, error=repr(fault), exc_info=fault)
                await asyncio.wait({ready})
            if ready.done():
                readiness = ready.result()
                self.saw(readiness.observation)
                self.evidence["probe"] = dict(readiness.probe)
                self.evidence["ready_after_seconds"] = round(readiness.seconds, 3)
                return readiness
            raise Superseded(later.result())
        finally:
            await _end(ready, later)

    async def explain(self, rejection: Rejection) -> None:
        """Add what the runtime looks like now, and what it logged, to the evidence of a failure."""
        seen = await self.runtime.seen_or_why_not()
        if isinstance(seen, str):
            self.evidence["after"] = {"unreadable": seen}
            return
        self.saw(seen)
        if rejection.code in LOG_TAIL_CODES and self.last_seen is not None and self.last_seen.incarnation:
            self.evidence.update(await self.runtime.log_tail(self.last_seen.incarnation))

    @property
    def changed(self) -> bool:
        """Whether a call was made, now or before a crash."""
        return bool(self.row.calls or self.calls)

    def made(self, *calls: Call) -> bool:
        """Say whether one of these calls was made, in any direction, now or before a crash."""
        return not {call.call for call in self.row.calls}.union(self.calls).isdisjoint(calls)

    def all_evidence(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the evidence so far, with the calls that were made."""
        calls = [call.call for call in self.row.calls] + self.calls
        return {**self.evidence, **(more or {}), "calls": calls}


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and see them end; what they then come to does not take the place of what is known already."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            log.debug("activity.wait_ended", error=repr(error))
