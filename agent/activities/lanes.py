"""One lane for each runtime: its activities run one at a time, in order of sequence; lanes run side by side.

What may begin was listed by the Supervisor since the agent started; what was started before is recovered first, also
with the Supervisor away. A lane never ends because of an activity.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from time import monotonic

import structlog

from agent.activities import execution, reconfigure, resume
from agent.activities.execution import Verdict
from agent.activities.foreign import ForeignLane
from agent.activities.uncertain import judge_uncertain
from agent.activities.work import Work
from agent.conditions import Conditions
from agent.errors import JournalError, JournalFullError, Rejection
from agent.journal import Journal, Row, RowState
from agent.progress import Mark, Progress
from agent.protocol import (
    Action,
    Config,
    Reason,
    ReasonCode,
    ReconfigureOutcome,
    ReportStatus,
    RuntimeName,
    Verb,
    format_time,
)
from agent.runtimes.runtime import Runtime

log = structlog.get_logger(__name__)

WRITE_AGAIN = 1.0
"""Seconds between two tries to use a journal that cannot be written."""
LONGEST_STEP = 120.0
"""Seconds; more than what a lane does between two activities can take. Past it the lane is stuck."""
TIDY_AGAIN = 2.0
"""Seconds between two tries to set up or to tidy up, where a driver could not, while there is nothing else to do."""
COMPARE_PATIENCE = 2.0
"""Seconds that the recovery of what would begin anew waits for the Supervisor's first answer."""
SUPERSEDING = frozenset({Verb.STOP, Verb.RESTART, Verb.RECONFIGURE})
"""Verbs that end an earlier activity's wait for readiness, so that the fix is never blocked by the fault."""


def parse_action(row: Row) -> Action:
    """Parse a row's action.

    Raises:
        Rejection: `unknown_action`.
    """
    try:
        return Action.parse(row.action)
    except ValueError as error:
        raise Rejection(
            ReasonCode.UNKNOWN_ACTION,
            f"cannot carry it out: {error}",
            hint="compare the versions of the Supervisor and the agent",
        ) from error


class Lane:
    """The queue of one runtime.

    Args:
        runtime: What its activities act on.
        journal: Where they come from and go to.
        now: The Supervisor's time, which expiry is judged by.
        permitted: Whether this agent may act; False once another instance took over, or the node is decommissioned.
        conditions: Where it says that it has to wait, or cannot tidy up.
        on_recovered: Awaited once recovery is over, before anything new begins; again, while it returns True and there
            is nothing else to do.
        mark: Shows that the lane goes on.
    """

    def __init__(
        self,
        runtime: Runtime,
        journal: Journal,
        *,
        now: Callable[[], datetime],
        permitted: Callable[[], bool],
        conditions: Conditions,
        on_recovered: Callable[[Runtime], Awaitable[bool | None]],
        mark: Mark,
    ) -> None:
        self.runtime = runtime
        self.current: int | None = None
        """The activity that is acting on the runtime now."""
        self._journal = journal
        self._now = now
        self._permitted = permitted
        self._conditions = conditions
        self._on_recovered = on_recovered
        self._mark = mark
        self._work_ready = journal.work_ready.subscribe()
        self._stopping = False
        self._untidy = False
        self._untidy_code = f"{runtime.name}_not_tidied"
        self._not_set_up = False
        self._checked: dict[int, bool] = {}

    def stop(self) -> None:
        """Begin nothing more; what is under way goes on."""
        self._stopping = True
        self._work_ready.set()

    async def run(self) -> None:
        """Recover, then take up one activity after the other, until `stop`."""
        await self._recover()
        await self._set_up()
        while not self._stopping:
            self._mark.within(LONGEST_STEP)
            row = await self._next()
            if row is None:
                await self._wait_for_work()
            else:
                await self._survive(row, self._take_up(row))

    async def _set_up(self) -> None:
        try:
            self._not_set_up = bool(await self._on_recovered(self.runtime))
        except Exception as error:  # noqa: BLE001 - what fails between two activities ends no lane
            self._say_fault(f"{self.runtime.name}_not_started", "set up", error)
            self._not_set_up = True

    def _say_fault(self, code: str, deed: str, error: Exception) -> None:
        """Say that a fault of the agent keeps something from being done; its traceback is logged when that begins."""
        name = self.runtime.name
        if code not in self._conditions:
            log.error("lane.fault", runtime=name, deed=deed, error=repr(error), exc_info=error)
        self._conditions.set(
            code,
            f"cannot {deed} {name}: {type(error).__name__}",
            hint="this is a fault of the agent; its log has the traceback",
        )

    async def _wait_for_work(self) -> None:
        """Wait until there may be something to do; meanwhile try again to set up and to tidy up, if that failed."""
        self._mark.rest()
        if not ((self._untidy or self._not_set_up) and self._permitted()):
            await self._work_ready.wait()
            return
        try:
            async with asyncio.timeout(TIDY_AGAIN):
                await self._work_ready.wait()
        except TimeoutError:
            self._mark.within(LONGEST_STEP)
            if self._not_set_up:
                await self._set_up()
            if self._untidy:
                await self._tidy()

    async def _survive(self, row: Row, deed: Awaitable[None], *, is_recovery: bool = False) -> None:
        """Await a deed; whatever fault of the agent it runs into is reported, and never ends the lane.

        What was begun is recovered first, as after a crash at that moment: so no runtime is left stopped between two
        calls, and no config half applied. What is reported is a fault in that as well.
        """
        try:
            await deed
        except Exception as error:  # noqa: BLE001 - see above
            fault = execution.internal(row, error)
            row = await self._reread(row)
            if row.state is RowState.STARTED and not is_recovery:
                await self._survive(row, self._recover_row(row), is_recovery=True)
            else:
                await self._refuse(row, fault, recovered=is_recovery)

    async def _next(self) -> Row | None:
        while not self._stopping and self._permitted():
            try:
                return await self._journal.next(self.runtime.name)
            except JournalError:
                await self._pause()
        return None

    async def _pause(self) -> None:
        """Wait until a journal that cannot be used may be tried again; the lane is not stuck meanwhile."""
        self._mark.within(LONGEST_STEP)
        await asyncio.sleep(WRITE_AGAIN)

    async def _take_up(self, row: Row) -> None:
        """Judge whether it may begin, write `started`, and carry it out."""
        try:
            action = parse_action(row)
            if row.uncertain:
                await self._finish(row, await judge_uncertain(self.runtime, action, row))
                return
            self._refuse_expired(row)
            config = await self._check(row, action)
        except Rejection as rejection:
            await self._refuse(row, rejection)
            return
        except Exception as error:  # noqa: BLE001 - reported like any other, with the facts of a reconfigure
            await self._refuse(row, execution.internal(row, error))
            return
        started = await self._begin(row, action)
        if started is not None:
            log.info("activity.started", activity_id=row.id, runtime=row.runtime, action=row.action)
            self._not_set_up &= action.verb not in {Verb.START, Verb.RESTART}  # this one starts it now
            await self._carry_out(self._work(started, action, config, recovered=False))

    async def _begin(self, row: Row, action: Action) -> Row | None:
        """Write `started`; None when it is refused, or could not be written yet."""
        try:
            await self._know_runtime()
            return await self._journal.start(row.id, action.verb)
        except JournalFullError as error:
            await self._refuse(row, Rejection(ReasonCode.NO_SPACE, error.message, hint=error.hint))
        except JournalError:
            await self._pause()
        except Rejection as rejection:
            await self._refuse(row, rejection)
        return None

    async def _know_runtime(self) -> None:
        """In a journal that does not know the runtime, what is current before the first effect counts as committed.

        A damaged one too: to take it for none would let a later config go back to none, and call that the last one.

        Raises:
            Rejection: What is current cannot be told.
        """
        if not await self._journal.knows_runtime(self.runtime.name):
            current = await self.runtime.current_name()
            await self._journal.know_runtime(self.runtime.name, current=current)

    async def _refuse(self, row: Row, rejection: Rejection, *, recovered: bool = False) -> None:
        """Finish what is not carried out, or no further; a reconfigure states its three facts here too."""
        if row.action.startswith(Verb.RECONFIGURE) and "outcome" not in rejection.evidence:
            unknown = row.calls or row.uncertain or rejection.code is ReasonCode.OUTCOME_UNKNOWN
            config = row.activity.config if row.activity else None
            outcome = None if unknown else ReconfigureOutcome.NOT_APPLIED
            try:
                rejection.evidence.update(await reconfigure.facts(self.runtime, config, outcome))
            except Exception:  # the report goes out without them
                log.exception("activity.facts_missing", activity_id=row.id)
        await self._finish(row, Verdict.refused(row, rejection), recovered=recovered)

    def _refuse_expired(self, row: Row) -> None:
        expires_at = row.activity.expires_at if row.activity else None
        if expires_at is not None and self._now() >= expires_at:
            raise Rejection(
                ReasonCode.EXPIRED,
                f"cannot begin: it was to begin before {format_time(expires_at)}",
                hint="dispatch it again if it is still wanted",
            )

    async def _check(self, row: Row, action: Action) -> Config | None:
        if action.verb is not Verb.RECONFIGURE or row.activity is None:
            return None
        return await reconfigure.check(self.runtime, row.activity, action.config_id)

    def _work(self, row: Row, action: Action, config: Config | None, *, recovered: bool) -> Work:
        return Work(
            runtime=self.runtime,
            journal=self._journal,
            row=row,
            action=action,
            config=config,
            successor=lambda: self._successor(row.sequence),
            recovered=recovered,
        )

    # --- recovery

    async def _recover(self) -> None:
        """Finish what the journal holds as started; there is at most one, for a lane runs one at a time."""
        for row in await self._unfinished():
            log.info("activity.recovering", activity_id=row.id, runtime=row.runtime, action=row.action)
            await self._survive(row, self._recover_row(row), is_recovery=True)
        await self._tidy()

    async def _unfinished(self) -> list[Row]:
        while True:
            try:
                rows = await self._journal.unfinished()
            except JournalError:
                await asyncio.sleep(WRITE_AGAIN)
            else:
                return [row for row in rows if row.runtime == self.runtime.name]

    async def _recover_row(self, row: Row) -> None:
        """Recover at once; only where it might be done anew is the Supervisor's word on the journal's age waited for.

        An old copy of the journal holds activities as begun that were finished since; those that A does not tell about
        become uncertain with the first answer.
        """
        if not resume.told_by_a(row):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMPARE_PATIENCE):
                    await self._journal.compared.wait()
            row = await self._reread(row)
        config = row.activity.config if row.activity else None
        try:
            action = parse_action(row)
            if row.uncertain or (row.from_old_copy and not resume.told_by_a(row)):
                await self._finish(row, await judge_uncertain(self.runtime, action, row), recovered=True)
                return
            if not row.calls and row.going_back is None:
                self._refuse_expired(row)
        except Rejection as rejection:
            await self._refuse(row, rejection, recovered=True)
            return
        await self._carry_out(self._work(row, action, config, recovered=True))

    async def _carry_out(self, work: Work) -> None:
        """Carry it out; when a step could not be written, take it up again by the rules of recovery."""
        self.current = work.row.id
        began = monotonic()
        try:
            while (verdict := await self._try_to_carry_out(work)) is None:
                await asyncio.sleep(WRITE_AGAIN)
                row = await self._reread(work.row)
                if row.uncertain:
                    await self._recover_row(row)
                    return
                work = self._work(row, work.action, work.config, recovered=True)
            await self._finish(work.row, verdict, recovered=work.recovered, seconds=monotonic() - began)
            await self._tidy()
            if work.action.verb is Verb.RECONFIGURE:
                await self._forget_old_releases()
        finally:
            self.current = None

    async def _tidy(self) -> None:
        """Have the driver let go of what nothing can go back to any more, now that the verdict is durable."""
        try:
            await self.runtime.tidy(await self._journal.committed(self.runtime.name))
        except JournalError as error:  # a condition says so
            log.debug("runtime.not_tidied", runtime=self.runtime.name, cause=error.message)
            self._untidy = True
        except Rejection as rejection:
            self._conditions.set(self._untidy_code, rejection.message, hint=rejection.hint)
            self._untidy = True
        except Exception as error:  # noqa: BLE001 - as in `_set_up`
            self._say_fault(self._untidy_code, "tidy up", error)
            self._untidy = True
        else:
            self._conditions.clear(self._untidy_code)
            self._untidy = False

    async def _forget_old_releases(self) -> None:
        """Remove the releases that nothing can go back to any more."""
        try:
            committed = await self._journal.committed(self.runtime.name)
            if committed is None or await self.runtime.get_release(committed) is not None:
                await self.runtime.prune({committed} if committed else set())
        except (JournalError, Rejection) as error:
            log.warning("releases.not_pruned", runtime=self.runtime.name, cause=error.message)

    async def _try_to_carry_out(self, work: Work) -> Verdict | None:
        """Carry it out; None when a step could not be written."""
        if work.recovered:  # a driver that is away is waited for
            self._mark.rest()
        else:  # its deadline, that of going back, and what is written around both
            self._mark.within(2 * self.runtime.timeouts.action + LONGEST_STEP)
        try:
            if work.recovered:
                return await execution.recover(work, self._conditions)
            return await execution.carry_out(work)
        except JournalError:
            return None

    # --- the journal

    async def _reread(self, row: Row) -> Row:
        while True:
            try:
                return await self._journal.get(row.id) or row
            except JournalError:
                await self._pause()

    async def _finish(self, row: Row, verdict: Verdict, *, recovered: bool = False, seconds: float = 0.0) -> None:
        """Write the verdict, however long it takes: an activity is not over before its report is durable."""
        while (written := await self._try_to_finish(row, verdict, recovered=recovered)) is None:
            await self._pause()
        self._checked.pop(row.id, None)
        if not written:
            return
        say = log.info if verdict.status is ReportStatus.COMPLETED else log.warning
        say(
            f"activity.{verdict.status}",
            activity_id=row.id,
            runtime=row.runtime,
            action=row.action,
            code=verdict.reason and verdict.reason.code,
            message=verdict.reason and verdict.reason.message,
            changed=verdict.changed,
            recovered=recovered,
            seconds=round(seconds, 3),
        )

    async def _try_to_finish(self, row: Row, verdict: Verdict, *, recovered: bool) -> bool | None:
        """Write the verdict; None when it could not be written, False when the activity was over already."""
        redactor = self.runtime.redactor
        try:
            return await self._journal.finish(
                row.id,
                status=verdict.status,
                changed=verdict.changed,
                recovered=recovered,
                reason=verdict.reason and Reason.model_validate(redactor.data(verdict.reason.model_dump())),
                evidence=redactor.data(verdict.evidence),
                committed=verdict.committed,
            )
        except JournalError:
            return None

    # --- superseding

    async def _successor(self, sequence: int) -> Row:
        """Return the first later activity that wants the wait for readiness to end.

        One with a lower sequence that came late is older, and waits for its turn.
        """
        while True:
            try:
                for row in await self._journal.queue(self.runtime.name):
                    if row.sequence > sequence and await self._supersedes(row):
                        return row
            except JournalError:
                await asyncio.sleep(WRITE_AGAIN)
                continue
            await self._work_ready.wait()

    async def _supersedes(self, row: Row) -> bool:
        if row.uncertain or row.state is not RowState.RECEIVED or not self._permitted():
            return False
        if row.id not in self._checked:
            try:
                action = parse_action(row)
                if action.verb in SUPERSEDING:
                    await self._check(row, action)
                self._checked[row.id] = action.verb in SUPERSEDING
            except Rejection:
                self._checked[row.id] = False
            except Exception as error:  # reported when its turn comes; what is under way has no part in it
                log.warning("activity.not_checked", activity_id=row.id, error=repr(error), exc_info=error)
                return False
        try:
            self._refuse_expired(row)
        except Rejection:
            return False
        return self._checked[row.id]


class Lanes:
    """All lanes of a node, and the answer for activities that belong to none."""

    def __init__(
        self,
        runtimes: Mapping[RuntimeName, Runtime],
        journal: Journal,
        *,
        now: Callable[[], datetime],
        permitted: Callable[[], bool],
        conditions: Conditions,
        on_recovered: Callable[[Runtime], Awaitable[bool | None]],
        progress: Progress | None = None,
    ) -> None:
        progress = progress or Progress()
        self._foreign = ForeignLane(journal, [str(name) for name in runtimes], permitted=permitted)
        self._lanes = {
            name: Lane(
                runtime,
                journal,
                now=now,
                permitted=permitted,
                conditions=conditions,
                on_recovered=on_recovered,
                mark=progress.mark(f"lane of {name}"),
            )
            for name, runtime in runtimes.items()
        }

    def current(self, name: RuntimeName) -> int | None:
        """Return the activity that is acting on a runtime now, if any."""
        return self._lanes[name].current

    def stop(self) -> None:
        """Begin nothing more; what is under way goes on."""
        self._foreign.stop()
        for lane in self._lanes.values():
            lane.stop()

    async def run(self) -> None:
        """Run all lanes; returns after `stop`, once what was under way is finished."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._foreign.run(), name="lane of foreign activities")
            for name, lane in self._lanes.items():
                group.create_task(lane.run(), name=f"lane of {name}")
