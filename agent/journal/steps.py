"""The steps of an activity's life after it was taken in. Each runs inside one transaction of the journal's thread."""

import sqlite3
from enum import Enum
from typing import Any, Final

from agent.journal.rows import as_text, stamp
from agent.protocol import Reason, ReportStatus, Verb


class Keep(Enum):
    """One word, so that it has a type of its own."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP
"""Leave the committed release as it is."""


def is_waiting(connection: sqlite3.Connection, activity_id: int) -> bool:
    """Tell whether an activity is taken in, and not begun."""
    statement = "SELECT 1 FROM activities WHERE id = ? AND state = 'received'"
    return connection.execute(statement, (activity_id,)).fetchone() is not None


def start(connection: sqlite3.Connection, activity_id: int, verb: Verb) -> bool:
    """Write `started`; returns False when it may not begin any more."""
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


def record(
    connection: sqlite3.Connection,
    activity_id: int,
    call: str,
    *,
    decisive: bool,
    before: tuple[bool | None, str | None, str | None],
    detail: str,
) -> bool:
    """Write a call; returns False when the activity is not `started`.

    Args:
        connection: With a transaction open.
        activity_id: Which.
        call: What is about to be made.
        decisive: Whether it is the action's decisive call.
        before: A, as whether it runs, its incarnation, and the boot id.
        detail: As JSON.
    """
    count = connection.execute(
        "INSERT INTO calls SELECT id, (SELECT count(*) FROM calls WHERE activity_id = activities.id), ?, ?,"
        " going_back IS NOT NULL, ?, ?, ?, ?, ? FROM activities"
        " WHERE id = ? AND state = 'started' AND uncertain = 0",
        (call, decisive, *before, detail, stamp(), activity_id),
    ).rowcount
    return count == 1


def go_back(connection: sqlite3.Connection, activity_id: int, decision: str) -> bool:
    """Write a reconfigure's decision to go back, as JSON; returns False when the activity is not `started`."""
    statement = "UPDATE activities SET going_back = ? WHERE id = ? AND state = 'started'"
    return connection.execute(statement, (decision, activity_id)).rowcount == 1


def finish(
    connection: sqlite3.Connection,
    activity_id: int,
    *,
    status: ReportStatus,
    changed: bool,
    recovered: bool,
    reason: Reason | None,
    evidence: str,
    committed: Any,
) -> bool:
    """Write a result, and forget the body; returns False when the activity was finished already."""
    count = connection.execute(
        "UPDATE activities SET state = 'finished', finished_at = ?, status = ?, changed = ?, recovered = ?,"
        " code = ?, message = ?, hint = ?, evidence = ?, body = NULL"
        " WHERE id = ? AND state IN ('received', 'started')",
        (
            *(stamp(), status, changed, recovered),
            *(reason and as_text(reason.code), reason and as_text(reason.message)),
            *(reason and reason.hint and as_text(reason.hint), evidence, activity_id),
        ),
    ).rowcount
    if count and not isinstance(committed, Keep):
        connection.execute(
            "UPDATE runtimes SET committed = ? WHERE runtime = (SELECT runtime FROM activities WHERE id = ?)",
            (committed, activity_id),
        )
    return bool(count)
