"""The journal: one SQLite file, one connection in its own thread, one transaction for each step of an activity's life.

`received → started → finished → reported → (pruned)`. Each step is durable before what it announces is done; whoever
cannot write does not act. The two neighbours that never meet are woken here: the lanes when there is work, the
reporter when there is a report.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog

from agent.conditions import Conditions
from agent.errors import JournalError, JournalFullError
from agent.journal import intake, opening, retention, steps
from agent.journal.database import Database
from agent.journal.file import JournalFile
from agent.journal.rows import Row, RowState, SweepToken, Taken, as_json, read_head, read_rows, shorten, stamp
from agent.journal.steps import KEEP, Keep
from agent.journal.wakeup import Wakeup
from agent.protocol import MAX_ID, JournalStatus, Reason, Report, ReportOutcome, ReportStatus, Verb

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Journal(JournalFile):
    """The node's durable ledger of activities; see the package's docstring.

    Every method may raise `JournalError` when the file cannot be read or written. Nothing was written then, and a
    condition says so: `journal_unwritable` until a write succeeds, `journal_unreadable` until what could not be read
    can, `disk_full` while only the reserve is left to write with. After a `JournalDamagedError`, `journal_damaged`
    stays: the agent is to end.
    """

    def __init__(
        self, folder: Path, journal_id: str | None, conditions: Conditions, boot_id: Callable[[], str]
    ) -> None:
        super().__init__(folder, journal_id, conditions)
        self._boot_id = boot_id
        self._listed: dict[int, str] = {}
        """What may begin, because the Supervisor listed it since the agent started; each with its runtime."""
        self.compared = asyncio.Event()
        """Set once the Supervisor has told how far this node's journal had come."""
        self.work_ready = Wakeup()
        self.report_ready = Wakeup()
        self.started_written = Wakeup()

    # --- opening

    @classmethod
    async def open(
        cls, folder: Path, *, journal_id: str | None, conditions: Conditions, boot_id: Callable[[], str] = str
    ) -> Self:
        """Open the journal of a state folder.

        Args:
            folder: The state folder, held by a `StateLock`.
            journal_id: The journal that `identity.json` names; another one, a damaged one and a missing one are
                replaced by a new one that counts as lost.
            conditions: Where it says that it was lost, or cannot be written.
            boot_id: Reads the machine's boot, in the thread; without it A is believed in no boot.

        Raises:
            JournalError: It cannot be opened, not even anew, or a newer version wrote it.
        """
        self = cls(folder, journal_id, conditions, boot_id)
        try:
            replaced = await self._database.open(lambda: opening.prepare(folder, journal_id))
            self._note_head(await self._database.read(read_head))
            await self._mend()
        except BaseException:
            await self.close()
            raise
        if replaced is not None:
            self._health.replaced(replaced)
        self._health.lost(self.lost)
        return self

    @staticmethod
    async def create(folder: Path) -> str:
        """Make a journal for a node that enrols, unless a sound one is there; returns its id.

        Args:
            folder: The state folder, held by a `StateLock`.

        Raises:
            JournalError: It cannot be made.
        """
        database = Database(folder / opening.FILE_NAME)
        try:
            return await database.run(lambda: opening.create_for_enrolment(folder))
        finally:
            await database.close()

    # --- for what talks to the Supervisor

    async def begin_sweep(self) -> SweepToken:
        """Remember what is `received` before the sweep's first request: only that can be withdrawn by it."""
        statement = "SELECT id FROM activities WHERE state = 'received'"
        ids = await self._read("sweep", lambda connection: [row["id"] for row in connection.execute(statement)])
        return SweepToken(frozenset(ids))

    async def take(self, items: Sequence[Any], *, sweep: SweepToken | None, last: int | None = None) -> Taken:
        """Journal the items of one answer, each by itself, in one transaction.

        Args:
            items: As they came, raw JSON values.
            sweep: The sweep that the answer belongs to; None for a poll.
            last: The highest sequence that the Supervisor ever gave, as the same answer says; None when it does not.
        """
        reserve = self._database.reserve

        def take_in(connection: sqlite3.Connection, *, refusing: bool = False) -> tuple[Taken, intake.Page]:
            page = intake.Page(MAX_ID if last is None else last)
            return intake.take(connection, items, page, no_space=refusing), page

        def refuse(connection: sqlite3.Connection) -> tuple[Taken, intake.Page]:
            reserve.keep_for_results(connection)
            return take_in(connection, refusing=True)

        def write(connection: sqlite3.Connection) -> tuple[Taken, intake.Page]:
            return take_in(connection) if not items or reserve.has_room() else refuse(connection)

        def announce(written: tuple[Taken, intake.Page]) -> None:
            taken, page = written
            self._listed.update(page.waiting)
            if sweep is not None:
                sweep.add(page.listed, page.highest, conflicts=bool(taken.conflicts))
            if taken.conflicts:
                self._health.conflicts(taken.conflicts)
            if taken.new or taken.known:
                self.work_ready.set()
            if taken.refused:
                self._health.space(whole=False)
            if taken.again or taken.invalid or taken.refused:
                self.report_ready.set()

        taken, _ = await self._write(write, announce, when_full=refuse)
        return taken

    async def end_sweep(self, token: SweepToken, *, last: int) -> list[int]:
        """End a complete sweep: withdraw what it did not list, and, if the journal was lost, set the mark.

        Args:
            token: Of `begin_sweep`.
            last: The highest sequence that the Supervisor ever gave this node.

        Returns:
            The ids that were withdrawn.
        """

        def announce(withdrawn: list[int]) -> None:
            for activity_id in withdrawn:
                self._listed.pop(activity_id, None)
            self._health.lost(self.lost)
            if not token.conflicts:
                self._health.no_conflicts()
            if withdrawn:
                self.report_ready.set()
            self.work_ready.set()

        def write(connection: sqlite3.Connection) -> list[int]:
            self._database.reserve.keep_for_results(connection)
            return intake.end_sweep(connection, token, last)

        return await self._write(write, announce)

    async def check_revision(self, revision: int) -> bool:
        """Compare with the highest revision that the Supervisor ever saw of this node.

        Returns:
            True when this journal is an old copy: it counts as lost from here on, and a sweep has to begin anew.
        """
        if revision <= self.revision:
            self.compared.set()
            return False

        def announce(_: None) -> None:
            self._health.lost(self.lost)
            self.compared.set()

        await self._write(lambda connection: intake.doubt(connection, revision, self._boot_id()), announce)
        return True

    async def outbox(self, limit: int) -> list[Report]:
        """List the reports that the Supervisor has not answered for, oldest first."""
        rows = await self._rows("state = 'finished' ORDER BY finished_at, id LIMIT ?", limit)
        return [row.report() for row in rows]

    async def reported(self, results: Mapping[int, ReportOutcome]) -> None:
        """Note the Supervisor's answers; each is final."""

        def write(connection: sqlite3.Connection) -> None:
            self._database.reserve.keep_for_results(connection)
            connection.executemany(
                "UPDATE activities SET state = 'reported', reported_at = ?, outcome = ?"
                " WHERE id = ? AND state = 'finished'",
                [(stamp(), outcome, activity_id) for activity_id, outcome in results.items()],
            )

        await self._write(write)

    # --- for what acts on the node

    async def next(self, runtime: str) -> Row | None:
        """Return what a lane may begin now: its lowest sequence that was listed since the agent started.

        None while the journal is lost. The row may be uncertain: then it must not be carried out, only finished.
        """
        if self.lost:
            return None
        listed = {found for found, of in self._listed.items() if of == runtime}
        return await self._first(listed, "runtime = ?", runtime)

    async def queue(self, runtime: str) -> list[Row]:
        """List all that a lane may begin, in its order; empty while the journal is lost."""
        if self.lost or runtime not in self._listed.values():
            return []
        rows = await self._rows("state = 'received' AND runtime = ? ORDER BY sequence", runtime)
        return [row for row in rows if row.id in self._listed]

    async def next_foreign(self, lanes: Collection[str]) -> Row | None:
        """Return an activity that belongs to none of these lanes."""
        listed = {found for found, of in self._listed.items() if of not in lanes}
        return await self._first(listed, f"runtime NOT IN ({', '.join('?' * len(lanes))})", *lanes)

    async def _first(self, listed: Collection[int], condition: str, *values: object) -> Row | None:
        if not listed:
            return None
        statement = f"SELECT id FROM activities WHERE state = 'received' AND {condition} ORDER BY sequence"  # noqa: S608 - constants

        def read(connection: sqlite3.Connection) -> list[Row]:
            waiting = (row["id"] for row in connection.execute(statement, values))
            first = next((found for found in waiting if found in listed), None)
            return [] if first is None else read_rows(connection, "id = ?", first)

        return next(iter(await self._read(f"next {values}", read)), None)

    async def unfinished(self) -> list[Row]:
        """List what was `started` and not finished: the work of recovery."""
        loop = asyncio.get_running_loop()

        def read(connection: sqlite3.Connection) -> list[Row]:
            rows = read_rows(connection, "state = 'started' ORDER BY sequence")
            loop.call_soon_threadsafe(self.rescue.begun, rows)  # in order with what is written before and after
            return rows

        return await self._read("unfinished", read)

    async def start(self, activity_id: int, verb: Verb) -> Row | None:
        """Write `started`, before anything is done.

        Returns:
            The activity as it is now; None when it may not begin any more: withdrawn, or the journal turned out to be
            lost.

        Raises:
            JournalFullError: It is to be rejected, for it is not sure that its result could be stored.
            JournalDamagedError: The file is damaged, also if it would take this.
        """
        if self.rescue.damage is not None:
            raise self.rescue.damage

        def write(connection: sqlite3.Connection) -> list[Row] | None:
            if not self._database.reserve.allows(connection, activity_id):
                return None
            return read_rows(connection, "id = ?", activity_id) if steps.start(connection, activity_id, verb) else []

        def announce(started: list[Row] | None) -> None:
            if started:
                self.rescue.begun(started)
                self._listed.pop(activity_id, None)
                self.started_written.set()

        started = await self._write(write, announce)
        if started is None:
            self._health.space(whole=False)
            raise JournalFullError(intake.NO_SPACE, hint=intake.NO_SPACE_HINT)
        return started[0] if started else None

    async def record(
        self,
        activity_id: int,
        call: str,
        *,
        decisive: bool,
        running: bool | None,
        incarnation: str | None,
        boot_id: str | None,
        detail: Mapping[str, str],
    ) -> None:
        """Write a call, before it is made; with A and the boot id at the decisive one.

        Raises:
            JournalError: It was not written, or the activity is not `started`: the call must not be made.
        """
        text, before = as_json(detail), (running, incarnation, boot_id)

        def write(connection: sqlite3.Connection) -> bool:
            return steps.record(connection, activity_id, call, decisive=decisive, before=before, detail=text)

        await self._write_step(activity_id, write)

    async def go_back(self, activity_id: int, *, superseded: bool, reason: Reason, evidence: Mapping[str, Any]) -> None:
        """Write a reconfigure's decision to go back, before `current` is touched; from then on it only goes back.

        Raises:
            JournalError: It was not written, or the activity is not `started`: `current` must not be touched.
        """
        text = as_json({"superseded": superseded, "reason": reason.model_dump(), "evidence": dict(evidence)})

        await self._write_step(activity_id, lambda connection: steps.go_back(connection, activity_id, text))

    async def _write_step(self, activity_id: int, write: Callable[[sqlite3.Connection], bool]) -> None:
        try:
            written = await self._write(write)
        except JournalError:
            self.rescue.stuck(activity_id)
            raise
        if not written:
            raise _not_started(activity_id)

    async def finish(
        self,
        activity_id: int,
        *,
        status: ReportStatus,
        changed: bool = False,
        recovered: bool = False,
        reason: Reason | None = None,
        evidence: Mapping[str, Any] | None = None,
        committed: str | Keep | None = KEEP,
    ) -> bool:
        """Write an activity's result, before its report is sent; its body, which may hold secrets, is forgotten.

        Args:
            activity_id: Which.
            status: The agent's final word.
            changed: Whether anything was done.
            recovered: Whether it was finished after a crash of the agent.
            reason: Of a rejection.
            evidence: What was seen, as JSON.
            committed: The release that was seen ready with it; None for none; KEEP leaves it.

        Returns:
            False when it was finished already (withdrawn meanwhile); then nothing was written.
        """
        whole = as_json(evidence or {})

        def store(connection: sqlite3.Connection, text: str = whole) -> bool:
            return steps.finish(
                connection,
                activity_id,
                status=status,
                changed=changed,
                recovered=recovered,
                reason=reason,
                evidence=text,
                committed=committed,
            )

        def write(connection: sqlite3.Connection, text: str = whole) -> bool:
            if steps.is_waiting(connection, activity_id):
                self._database.reserve.keep_for_results(connection)
            return store(connection, text)

        def announce(finished: bool) -> None:  # noqa: FBT001 - what `write` returned
            self.rescue.stored(activity_id)
            self._listed.pop(activity_id, None)
            if finished:
                self.report_ready.set()

        def write_short(connection: sqlite3.Connection) -> bool:
            return write(connection, as_json(shorten(evidence or {})))

        self.rescue.came_to(activity_id, store)
        return await self._write(write, announce, when_full=write_short)

    async def knows_runtime(self, runtime: str) -> bool:
        """Tell whether it met a runtime before."""
        row = await self._runtime(runtime)
        return row is not None and bool(row["known"])

    async def know_runtime(self, runtime: str, *, current: str | None) -> None:
        """Meet a runtime: in a journal that never knew it, its current release counts as the committed one."""
        statement = (
            "INSERT INTO runtimes (runtime, committed) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET committed = excluded.committed, known = 1 WHERE known = 0"
        )
        await self._write(lambda connection: connection.execute(statement, (runtime, current)).rowcount)

    async def committed(self, runtime: str) -> str | None:
        """Return the last release of a runtime that was seen ready, if any."""
        row = await self._runtime(runtime)
        return None if row is None else row["committed"]

    async def last_verb(self, runtime: str) -> Verb | None:
        """Return the last start, stop or restart that was begun on a runtime, if any."""
        row = await self._runtime(runtime)
        return None if row is None or row["last_verb"] is None else Verb(row["last_verb"])

    async def _runtime(self, runtime: str) -> sqlite3.Row | None:
        statement = "SELECT committed, last_verb, known FROM runtimes WHERE runtime = ?"
        row: sqlite3.Row | None = await self._read(
            f"runtime {runtime}", lambda connection: connection.execute(statement, (runtime,)).fetchone()
        )
        return row

    # --- for everybody

    async def counts(self) -> JournalStatus:
        """Count what is not finished, and what is not reported."""

        def read(connection: sqlite3.Connection) -> JournalStatus:
            statement = "SELECT state, count(*) FROM activities WHERE state != 'reported' GROUP BY state"
            by_state = {RowState(state): count for state, count in connection.execute(statement)}
            waiting = by_state.get(RowState.RECEIVED, 0) + by_state.get(RowState.STARTED, 0)
            return JournalStatus(waiting=waiting, unreported=by_state.get(RowState.FINISHED, 0))

        return await self._read("counts", read)

    async def recent(self, limit: int) -> list[Row]:
        """List the newest activities, newest first."""
        newest = "SELECT id FROM activities ORDER BY sequence DESC LIMIT ?"
        return await self._rows(f"id IN ({newest}) ORDER BY sequence DESC", limit)

    async def get(self, activity_id: int) -> Row | None:
        """Return one activity."""
        rows = await self._rows("id = ?", activity_id)
        return rows[0] if rows else None

    async def prune(self, *, days: float, count: int) -> int:
        """Forget reported activities that are older than `days`, or beyond the newest `count`; returns how many."""

        def write(connection: sqlite3.Connection) -> int:
            self._database.reserve.keep_for_results(connection)
            return retention.prune(connection, days=days, count=count)

        return await self._write(write)

    async def _rows(self, condition: str, *values: object) -> list[Row]:
        return await self._read(f"{condition} {values}", lambda connection: read_rows(connection, condition, *values))


def _not_started(activity_id: int) -> JournalError:
    return JournalError(f"cannot journal a step: activity {activity_id} is not started")
