"""Forgetting what was reported long ago. Runs inside one transaction of the journal's thread."""

import sqlite3
from datetime import UTC, datetime, timedelta

from agent.journal.rows import stamp

_DOOMED = (
    "state = 'reported' AND (reported_at < ? OR id IN (SELECT id FROM activities WHERE state = 'reported'"
    " ORDER BY reported_at DESC, id DESC LIMIT -1 OFFSET ?))"
)


def prune(connection: sqlite3.Connection, *, days: float, count: int) -> int:
    """Forget what is older than `days`, or beyond the newest `count`, and up to where; returns how many."""
    values = (stamp(datetime.now(UTC) - timedelta(days=days)), count)
    statement = f"SELECT max(sequence) FROM activities WHERE {_DOOMED}"  # noqa: S608 - a constant
    highest = connection.execute(statement, values).fetchone()[0]
    if highest is None:
        return 0
    connection.execute("UPDATE journal SET pruned_through = max(pruned_through, ?)", (highest,))
    return connection.execute(f"DELETE FROM activities WHERE {_DOOMED}", values).rowcount  # noqa: S608 - a constant
