"""Runtimes that live and end with the agent, for a container that holds both.

They are started with it, unless the last action on them was a stop, and stopped with it. That is no activity; but one
that is cut short by the stop gets it journaled as its last decisive call, so that the next agent knows what ended the
run, and brings it up again where the activity wanted it up.
"""

import asyncio
from collections.abc import Mapping

import structlog

from agent.conditions import Conditions
from agent.errors import JournalError, Rejection
from agent.journal import Journal
from agent.protocol import ReasonCode, RuntimeName, Verb
from agent.runtimes.driver import Recorder, Step
from agent.runtimes.runtime import Runtime

log = structlog.get_logger(__name__)

_MAY_PASS = frozenset(
    {
        ReasonCode.DRIVER_UNAVAILABLE,
        ReasonCode.NOT_PERMITTED,
        ReasonCode.NO_SPACE,
        ReasonCode.START_FAILED,
        ReasonCode.BUSY,
    }
)
"""Why a runtime was not started that may be over without anybody dispatching anything: the disk, no processes, a lock
that is held. None of them means that it ran: one that was started and ended is not started again."""


class OwnedRuntimes:
    """The owned runtimes of a node.

    Args:
        runtimes: Those that are owned.
        journal: Knows the last action, and what is under way.
        conditions: Where it says that one could not be started.
    """

    def __init__(self, runtimes: Mapping[RuntimeName, Runtime], journal: Journal, conditions: Conditions) -> None:
        self._runtimes = runtimes
        self._journal = journal
        self._conditions = conditions

    async def start(self, runtime: Runtime) -> bool:
        """Start a runtime with the agent, if it is owned and was not stopped by an action.

        Returns:
            Whether to try again later: what kept it from being started may pass.
        """
        if runtime.name not in self._runtimes:
            return False
        try:
            if await self._journal.last_verb(runtime.name) is Verb.STOP:
                log.info("owned.left_stopped", runtime=runtime.name)
                self._conditions.clear(_condition(runtime.name))
                return False
            outcome = await runtime.driver.start(_not_journaled)
        except (Rejection, JournalError) as error:
            self._conditions.set(_condition(runtime.name), error.message, hint=error.hint)
            return isinstance(error, JournalError) or error.code in _MAY_PASS
        log.info("owned.started", runtime=runtime.name, calls=list(outcome.calls))
        return False

    def seen_running(self, name: RuntimeName) -> None:
        """Note that a runtime runs, whoever started it."""
        self._conditions.clear(_condition(name))

    async def stop_all(self) -> None:
        """Stop all of them, side by side, each within its `stop_timeout`."""
        await asyncio.gather(*(self._stop(runtime) for runtime in self._runtimes.values()))

    async def _stop(self, runtime: Runtime) -> None:
        try:
            outcome = await runtime.driver.stop(await self._recorder(runtime))
        except Rejection as rejection:
            log.error("owned.not_stopped", runtime=runtime.name, cause=rejection.message)
        except Exception:  # a fault in stopping one is no reason to leave the other one up
            log.exception("owned.not_stopped", runtime=runtime.name)
        else:
            log.info("owned.stopped", runtime=runtime.name, exit_code=outcome.exit_code, killed=outcome.killed)

    async def _recorder(self, runtime: Runtime) -> Recorder:
        """Return where a stop is journaled: in the activity that is under way, if one is."""
        try:
            rows = [row for row in await self._journal.unfinished() if row.runtime == runtime.name]
        except JournalError:
            rows = []
        if not rows:
            return _not_journaled
        activity_id = rows[0].id

        async def record(step: Step) -> None:
            before = step.before
            try:
                await self._journal.record(
                    activity_id,
                    step.call,
                    decisive=step.decisive,
                    running=None if before is None else before.running,
                    incarnation=None if before is None else before.incarnation,
                    boot_id=step.boot_id,
                    detail={"by": "the end of the agent"},
                )
            except JournalError as error:
                # It ends with the agent all the same: gracefully is better.
                log.warning("owned.stop_not_journaled", runtime=runtime.name, cause=error.message)

        return record


def _condition(name: RuntimeName) -> str:
    return f"{name}_not_started"


async def _not_journaled(_step: Step) -> None:
    """Stand in for the journal where a runtime follows the agent: that is no activity."""
