"""What the journal holds, as the rest of the agent sees it."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from agent.errors import JournalError
from agent.protocol import Activity, Reason, Report, ReportOutcome, ReportStatus


class RowState(StrEnum):
    """Where an activity stands in its life; each step is one transaction, written before what it announces."""

    RECEIVED = "received"
    """Journaled; begins once the Supervisor has listed it since the agent started."""
    STARTED = "started"
    """Something may have been done; recovered at once after a crash."""
    FINISHED = "finished"
    """Its report is on its way."""
    REPORTED = "reported"
    """The Supervisor answered for it; kept for duplicates, then pruned."""


@dataclass(frozen=True, slots=True)
class JournaledCall:
    """A call that was about to be made; when it is decisive, with A and the boot in which A was read."""

    call: str
    decisive: bool
    going_back: bool
    at: datetime
    running: bool | None
    incarnation: str | None
    boot_id: str | None
    detail: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GoingBack:
    """A reconfigure's decision to go back: why, and whether a later action made it."""

    superseded: bool
    reason: Reason
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One activity as journaled."""

    id: int
    sequence: int
    runtime: str
    action: str
    digest: str
    """Of its content: the same id with another one is not taken in."""
    state: RowState
    activity: Activity | None
    """Whole while it is not finished; None when it did not parse."""
    uncertain: bool
    """It may have been done already, and the journal cannot know: it must not be carried out."""
    from_old_copy: bool
    """It was taken in before the journal turned out to be an old copy, or a new one that may not know it."""
    author_id: int | None
    created_at: str | None
    received_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reported_at: datetime | None
    status: ReportStatus | None
    changed: bool
    recovered: bool
    reason: Reason | None
    evidence: dict[str, Any]
    outcome: ReportOutcome | None
    going_back: GoingBack | None
    calls: tuple[JournaledCall, ...]

    def phase(self) -> tuple[JournaledCall, ...]:
        """Return the calls of the direction that the activity is going in now."""
        back = self.going_back is not None
        return tuple(call for call in self.calls if call.going_back is back)

    def decisive_call(self) -> JournaledCall | None:
        """Return the last decisive call of this direction, with the A that recovery compares with."""
        return next((call for call in reversed(self.phase()) if call.decisive), None)

    def report(self) -> Report:
        """Return the report of a finished activity."""
        if self.status is None or self.finished_at is None:
            msg = f"activity {self.id} is not finished"
            raise ValueError(msg)
        return Report(
            activity_id=self.id,
            status=self.status,
            # Not after its end, also when the clock was set back in between.
            started_at=self.started_at and min(self.started_at, self.finished_at),
            finished_at=self.finished_at,
            changed=self.changed,
            recovered=self.recovered,
            reason=self.reason,
            evidence=self.evidence,
        )


@dataclass(slots=True)
class SweepToken:
    """One sweep under way: what was `received` before its first request, and what it has listed so far."""

    received: frozenset[int]
    listed: set[int] = field(default_factory=set)
    highest: int = 0
    conflicts: bool = False
    """Whether an id came with another content."""

    def add(self, listed: set[int], highest: int, *, conflicts: bool) -> None:
        """Count an answer that was journaled."""
        self.listed |= listed
        self.highest = max(self.highest, highest)
        self.conflicts = self.conflicts or conflicts


@dataclass(slots=True)
class Taken:
    """What an answer's items became."""

    new: int = 0
    known: int = 0
    again: int = 0
    """Finished here and listed all the same: reported again."""
    invalid: int = 0
    """Did not parse: journaled and rejected."""
    refused: int = 0
    """Journaled and rejected, because the disk has no room."""
    skipped: int = 0
    """Had no id and sequence: nothing that could be answered."""
    conflicts: list[int] = field(default_factory=list)
    """Ids that came with another content: not taken in."""


_LONG = 2000
"""Characters."""


class Head(NamedTuple):
    """What is remembered of the file's one line about itself; only of a committed one."""

    revision: int
    cursor: int
    lost: bool


def read_head(connection: sqlite3.Connection) -> Head:
    """Read that line."""
    head = connection.execute("SELECT revision, cursor, lost FROM journal").fetchone()
    return Head(head["revision"], head["cursor"], bool(head["lost"]))


def stamp(moment: datetime | None = None) -> str:
    """Write a moment so that text order is time order."""
    return (moment or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")


def as_text(text: str) -> str:
    """Replace what is not a character (a lone surrogate), which neither SQLite nor JSON on the wire can hold."""
    return text.encode("utf-8", "replace").decode()


def as_json(content: Mapping[str, Any]) -> str:
    """Write what was seen as JSON that can be stored and sent; what JSON does not know is written as its text."""
    return as_text(json.dumps(content, default=str, ensure_ascii=False))


def shorten(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is long, such as the end of a log, where a full disk has no room for it."""
    return {
        key: value if len(as_json({key: value})) < _LONG else "left out: disk full" for key, value in evidence.items()
    }


def _read_object(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if not isinstance(content, dict):
        msg = "a JSON object was written there"
        raise TypeError(msg)
    return content


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _moment_or_none(text: str | None) -> datetime | None:
    return None if text is None else _moment(text)


def _read_call(record: sqlite3.Row) -> JournaledCall:
    """Read one line of the table `calls`."""
    return JournaledCall(
        call=record["call"],
        decisive=bool(record["decisive"]),
        going_back=bool(record["going_back"]),
        at=_moment(record["at"]),
        running=None if record["running"] is None else bool(record["running"]),
        incarnation=record["incarnation"],
        boot_id=record["boot_id"],
        detail=_read_object(record["detail"]),
    )


def _read_going_back(text: str | None) -> GoingBack | None:
    if text is None:
        return None
    content = json.loads(text)
    return GoingBack(
        superseded=content["superseded"],
        reason=Reason.model_validate(content["reason"]),
        evidence=content["evidence"],
    )


def _read_row(record: sqlite3.Row, calls: tuple[JournaledCall, ...]) -> Row:
    """Read one line of the table `activities`."""
    reason = None
    if record["code"] is not None:
        reason = Reason(code=record["code"], message=record["message"], hint=record["hint"])
    body = record["body"]
    return Row(
        id=record["id"],
        sequence=record["sequence"],
        runtime=record["runtime"],
        action=record["action"],
        digest=record["digest"],
        state=RowState(record["state"]),
        activity=None if body is None else Activity.model_validate_json(body),
        uncertain=bool(record["uncertain"]),
        from_old_copy=bool(record["from_old_copy"]),
        author_id=record["author_id"],
        created_at=record["created_at"],
        received_at=_moment(record["received_at"]),
        started_at=_moment_or_none(record["started_at"]),
        finished_at=_moment_or_none(record["finished_at"]),
        reported_at=_moment_or_none(record["reported_at"]),
        status=None if record["status"] is None else ReportStatus(record["status"]),
        changed=bool(record["changed"]),
        recovered=bool(record["recovered"]),
        reason=reason,
        evidence=_read_object(record["evidence"]),
        outcome=None if record["outcome"] is None else ReportOutcome(record["outcome"]),
        going_back=_read_going_back(record["going_back"]),
        calls=calls,
    )


def read_rows(connection: sqlite3.Connection, condition: str, *values: object) -> list[Row]:
    """Read the lines of the table `activities` that a condition selects, with their calls.

    Raises:
        JournalError: One of them cannot be what was written.
    """
    rows = []
    old = "(SELECT lost OR activities.sequence <= mark FROM journal) AS from_old_copy"
    selected = f"SELECT *, {old} FROM activities WHERE {condition}"  # noqa: S608 - constants
    for record in connection.execute(selected, values).fetchall():
        statement = "SELECT * FROM calls WHERE activity_id = ? ORDER BY number"
        try:
            calls = tuple(_read_call(call) for call in connection.execute(statement, (record["id"],)))
            rows.append(_read_row(record, calls))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            msg = f"cannot read activity {record['id']} in the journal: {type(error).__name__}"
            raise JournalError(msg, hint="look at the disk; one that was reported is forgotten in time") from error
    return rows
