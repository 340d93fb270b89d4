"""The journal: one SQLite file, one connection in its own thread, one transaction for each step of an activity's life.

`received → started → finished → reported → (pruned)`. Each step is durable before what it announces is done; whoever
cannot write does not act. The two neighbours that never meet are woken here: the lanes when there is work, the
reporter when there is a report.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import structlog

from agent.conditions import Conditions
from agent.errors import JournalError
from agent.journal import intake, opening
from agent.journal.database import Database
from agent.journal.rows import Row, RowState, SweepToken, Taken, as_json, as_text, read_rows, stamp
from agent.journal.wakeup import Wakeup
from agent.protocol import JournalStatus, Reason, Report, ReportOutcome, ReportStatus, Verb

log = structlog.get_logger(__name__)

T = TypeVar("T")


class _Keep(Enum):
    KEEP = "keep"


KEEP: Final = _Keep.KEEP
"""Leave the committed release as it is."""


class Journal:
    """The node's durable ledger of activities; see the package's docstring.

    Every method may raise `JournalError` when the file cannot be read or written. Nothing was written then, and the
    condition `journal_unwritable` is set until a write succeeds.
    """

    def __init__(self, path: Path, conditions: Conditions) -> None:
        self._database = Database(path)
        self._conditions = conditions
        self._listed: set[int] = set()
        self.revision = 0
        """Grows with every `started` write; travels with every call to the Supervisor."""
        self.cursor = 0
        """The highest sequence that was journaled."""
        self.lost = False
        """Whether it replaced another one and its first sweep has not ended."""
        self.compared = asyncio.Event()
        """Set once the Supervisor has told how far this node's journal had come."""
        self.work_ready = Wakeup()
        self.report_ready = Wakeup()
        self.started_written = Wakeup()

    # --- opening and closing

    @classmethod
    async def open(cls, folder: Path, *, journal_id: str | None, conditions: Conditions) -> Self:
        """Open the journal of a state folder.

        Args:
            folder: The state folder, held by a `StateLock`.
            journal_id: The journal that `identity.json` names; another one, a damaged one and a missing one are
                replaced by a new one that counts as lost.
            conditions: Where it says that it was lost, or cannot be written.

        Raises:
            JournalError: It cannot be opened, not even anew, or a newer version wrote it.
        """
        self = cls(folder / opening.FILE_NAME, conditions)
        try:
            replaced = await self._database.open(lambda: opening.prepare(folder, journal_id))
            self._note_head(await self._database.read(_read_head))
        except BaseException:
            await self._database.close()
            raise
        if replaced is not None:
            conditions.set(
                "journal_replaced",
                f"a new journal was begun, because {replaced}",
                hint="activities that may have been done are not done again; look at the runtimes, then dispatch anew",
            )
        self._show_lost()
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

    async def close(self) -> None:
        """Finish what was asked for and close the file."""
        await self._database.close()

    # --- for what talks to the Supervisor

    async def begin_sweep(self) -> SweepToken:
        """Remember what is `received` before the sweep's first request: only that can be withdrawn by it."""
        statement = "SELECT id FROM activities WHERE state = 'received'"
        ids = await self._database.read(lambda connection: [row["id"] for row in connection.execute(statement)])
        return SweepToken(frozenset(ids))

    async def take(self, items: Sequence[Any], *, sweep: SweepToken | None) -> Taken:
        """Journal the items of one answer, each by itself, in one transaction.

        Args:
            items: As they came, raw JSON values.
            sweep: The sweep that the answer belongs to; None for a poll.
        """
        page = intake.Page()

        def announce(taken: Taken) -> None:
            self._listed |= page.waiting
            if sweep is not None:
                sweep.add(page.listed, page.highest)
            if taken.conflicts:
                self._conditions.set(
                    "activity_conflict",
                    f"activities {taken.conflicts[:5]} came again with another content; the first one counts",
                    hint="an id must never be used twice; look at the Supervisor's store",
                )
            if taken.new or taken.known:
                self.work_ready.set()
            if taken.again or taken.invalid:
                self.report_ready.set()

        return await self._write(lambda connection: intake.take(connection, items, page), announce)

    async def end_sweep(self, token: SweepToken, *, last: int) -> list[int]:
        """End a complete sweep: withdraw what it did not list, and, if the journal was lost, set the mark.

        Args:
            token: Of `begin_sweep`.
            last: The highest sequence that the Supervisor ever gave this node.

        Returns:
            The ids that were withdrawn.
        """

        def announce(withdrawn: list[int]) -> None:
            self._listed.difference_update(withdrawn)
            self._show_lost()
            if withdrawn:
                self.report_ready.set()
            self.work_ready.set()

        return await self._write(lambda connection: intake.end_sweep(connection, token, last), announce)

    async def check_revision(self, revision: int) -> bool:
        """Compare with the highest revision that the Supervisor ever saw of this node.

        Returns:
            True when this journal is an old copy: it counts as lost from here on, and a sweep has to begin anew.
        """
        if revision <= self.revision:
            self.compared.set()
            return False

        def announce(_: None) -> None:
            self._show_lost()
            self.compared.set()

        await self._write(lambda connection: intake.doubt(connection, revision), announce)
        return True

    async def outbox(self, limit: int) -> list[Report]:
        """List the reports that the Supervisor has not answered for, oldest first."""
        rows = await self._rows("state = 'finished' ORDER BY finished_at, id LIMIT ?", limit)
        return [row.report() for row in rows]

    async def reported(self, results: Mapping[int, ReportOutcome]) -> None:
        """Note the Supervisor's answers; each is final."""

        def write(connection: sqlite3.Connection) -> None:
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
        return await self._first_listed("runtime = ?", runtime)

    async def queue(self, runtime: str) -> list[Row]:
        """List all that a lane may begin, in its order; empty while the journal is lost."""
        if self.lost:
            return []
        rows = await self._rows("state = 'received' AND runtime = ? ORDER BY sequence", runtime)
        return [row for row in rows if row.id in self._listed]

    async def next_foreign(self, lanes: Collection[str]) -> Row | None:
        """Return an activity that belongs to none of these lanes."""
        marks = ", ".join("?" * len(lanes))
        return await self._first_listed(f"runtime NOT IN ({marks})", *lanes)

    async def _first_listed(self, condition: str, *values: object) -> Row | None:
        statement = f"SELECT id FROM activities WHERE state = 'received' AND {condition} ORDER BY sequence"  # noqa: S608 - constants

        def read(connection: sqlite3.Connection) -> list[Row]:
            waiting = (row["id"] for row in connection.execute(statement, values))
            first = next((found for found in waiting if found in self._listed), None)
            return [] if first is None else read_rows(connection, "id = ?", first)

        return next(iter(await self._database.read(read)), None)

    async def unfinished(self) -> list[Row]:
        """List what was `started` and not finished: the work of recovery."""
        return await self._rows("state = 'started' ORDER BY sequence")

    async def start(self, activity_id: int, verb: Verb) -> bool:
        """Write `started`, before anything is done.

        Returns:
            False when it may not begin any more: withdrawn, or the journal turned out to be lost.
        """

        def write(connection: sqlite3.Connection) -> bool:
            count = connection.execute(
                "UPDATE activities SET state = 'started', started_at = ? WHERE id = ? AND state = 'received'"
                " AND uncertain = 0 AND (SELECT lost FROM journal) = 0",
                (stamp(), activity_id),
            ).rowcount
            if count:
                connection.execute("UPDATE journal SET revision = revision + 1")
            if count and verb is not Verb.RECONFIGURE:
                connection.execute(
                    "UPDATE runtimes SET last_verb = ? WHERE runtime = (SELECT runtime FROM activities WHERE id = ?)",
                    (verb, activity_id),
                )
            return bool(count)

        def announce(begun: bool) -> None:  # noqa: FBT001 - what `write` returned
            if begun:
                self.started_written.set()

        return await self._write(write, announce)

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
        text = as_json(detail)

        def write(connection: sqlite3.Connection) -> bool:
            count = connection.execute(
                "INSERT INTO calls SELECT id, (SELECT count(*) FROM calls WHERE activity_id = activities.id), ?, ?,"
                " going_back IS NOT NULL, ?, ?, ?, ?, ? FROM activities"
                " WHERE id = ? AND state = 'started' AND uncertain = 0",
                (call, decisive, running, incarnation, boot_id, text, stamp(), activity_id),
            ).rowcount
            return count == 1

        if not await self._write(write):
            raise _not_started(activity_id)

    async def go_back(self, activity_id: int, *, superseded: bool, reason: Reason, evidence: Mapping[str, Any]) -> None:
        """Write a reconfigure's decision to go back, before `current` is touched; from then on it only goes back.

        Raises:
            JournalError: It was not written, or the activity is not `started`: `current` must not be touched.
        """
        text = as_json({"superseded": superseded, "reason": reason.model_dump(), "evidence": dict(evidence)})

        def write(connection: sqlite3.Connection) -> bool:
            statement = "UPDATE activities SET going_back = ? WHERE id = ? AND state = 'started'"
            return connection.execute(statement, (text, activity_id)).rowcount == 1

        if not await self._write(write):
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
        committed: str | _Keep | None = KEEP,
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
        text = as_json(evidence or {})

        def write(connection: sqlite3.Connection) -> bool:
            count = connection.execute(
                "UPDATE activities SET state = 'finished', finished_at = ?, status = ?, changed = ?, recovered = ?,"
                " code = ?, message = ?, hint = ?, evidence = ?, body = NULL"
                " WHERE id = ? AND state IN ('received', 'started')",
                (
                    stamp(),
                    status,
                    changed,
                    recovered,
                    reason and as_text(reason.code),
                    reason and as_text(reason.message),
                    reason and reason.hint and as_text(reason.hint),
                    text,
                    activity_id,
                ),
            ).rowcount
            if count and not isinstance(committed, _Keep):
                connection.execute(
                    "UPDATE runtimes SET committed = ? WHERE runtime = (SELECT runtime FROM activities WHERE id = ?)",
                    (committed, activity_id),
                )
            return bool(count)

        def announce(finished: bool) -> None:  # noqa: FBT001 - what `write` returned
            self._listed.discard(activity_id)
            if finished:
                self.report_ready.set()

        return await self._write(write, announce)

    async def know_runtime(self, runtime: str, *, current: str | None) -> None:
        """Meet a runtime: in a journal that never knew it, its current release counts as the committed one."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO runtimes VALUES (?, ?, NULL)", (runtime, current))

        await self._write(write)

    async def committed(self, runtime: str) -> str | None:
        """Return the last release of a runtime that was seen ready, if any."""
        statement = "SELECT committed FROM runtimes WHERE runtime = ?"
        row = await self._database.read(lambda connection: connection.execute(statement, (runtime,)).fetchone())
        return None if row is None else row["committed"]

    async def last_verb(self, runtime: str) -> Verb | None:
        """Return the last start, stop or restart that was begun on a runtime, if any."""
        statement = "SELECT last_verb FROM runtimes WHERE runtime = ?"
        row = await self._database.read(lambda connection: connection.execute(statement, (runtime,)).fetchone())
        return None if row is None or row["last_verb"] is None else Verb(row["last_verb"])

    # --- for everybody

    async def counts(self) -> JournalStatus:
        """Count what is not finished, and what is not reported."""

        def read(connection: sqlite3.Connection) -> JournalStatus:
            statement = "SELECT state, count(*) FROM activities WHERE state != 'reported' GROUP BY state"
            by_state = {RowState(state): count for state, count in connection.execute(statement)}
            waiting = by_state.get(RowState.RECEIVED, 0) + by_state.get(RowState.STARTED, 0)
            return JournalStatus(waiting=waiting, unreported=by_state.get(RowState.FINISHED, 0))

        return await self._database.read(read)

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
        oldest = stamp(datetime.now(UTC) - timedelta(days=days))
        doomed = (
            "state = 'reported' AND (reported_at < ? OR id IN (SELECT id FROM activities WHERE state = 'reported'"
            " ORDER BY reported_at DESC, id DESC LIMIT -1 OFFSET ?))"
        )

        def write(connection: sqlite3.Connection) -> int:
            highest = connection.execute(
                f"SELECT max(sequence) FROM activities WHERE {doomed}",  # noqa: S608 - a constant
                (oldest, count),
            ).fetchone()[0]
            if highest is None:
                return 0
            connection.execute("UPDATE journal SET pruned_through = max(pruned_through, ?)", (highest,))
            statement = f"DELETE FROM activities WHERE {doomed}"  # noqa: S608 - a constant
            return connection.execute(statement, (oldest, count)).rowcount

        return await self._write(write)

    async def _rows(self, condition: str, *values: object) -> list[Row]:
        return await self._database.read(lambda connection: read_rows(connection, condition, *values))

    async def _write(
        self, work: Callable[[sqlite3.Connection], T], announce: Callable[[T], None] = lambda _: None
    ) -> T:
        """Run `work` in one transaction, and announce it once it is durable, even if nobody waits for it any more."""

        def committed(written: tuple[T, "_Head"]) -> None:
            result, head = written
            self._note_head(head)
            self._conditions.clear("journal_unwritable")
            announce(result)

        try:
            result, _ = await self._database.write(
                lambda connection: (work(connection), _read_head(connection)), committed
            )
        except JournalError as error:
            self._conditions.set("journal_unwritable", error.message, hint=error.hint)
            raise
        return result

    def _note_head(self, head: "_Head") -> None:
        self.revision, self.cursor, self.lost = head.revision, head.cursor, head.lost

    def _show_lost(self) -> None:
        if self.lost:
            self._conditions.set(
                "journal_lost",
                "the journal does not know what was done before it; nothing that may have been done is done again",
                hint="this ends by itself with the next complete answer of the Supervisor",
            )
        else:
            self._conditions.clear("journal_lost")


class _Head(NamedTuple):
    """What is remembered of the file's one line about itself; only of a committed one."""

    revision: int
    cursor: int
    lost: bool


def _read_head(connection: sqlite3.Connection) -> _Head:
    head = connection.execute("SELECT revision, cursor, lost FROM journal").fetchone()
    return _Head(head["revision"], head["cursor"], bool(head["lost"]))


def _not_started(activity_id: int) -> JournalError:
    return JournalError(f"cannot journal a step: activity {activity_id} is not started")
