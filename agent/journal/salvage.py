"""What a damaged journal still gives: finished activities, so that no report is lost."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import structlog

from agent.errors import JournalError
from agent.journal.database import build, look
from agent.journal.rescue import Store
from agent.journal.rows import Row, RowState, read_rows, stamp

log = structlog.get_logger(__name__)

_COLUMNS = (
    "id, sequence, runtime, action, digest, author_id, created_at, state, uncertain, received_at, started_at, "
    "finished_at, status, changed, recovered, code, message, hint, evidence"
)
_ORDERS = ("id", "id DESC")
"""A damaged page ends a reading; from both ends, what lies before and behind it is reached."""


def salvage(damaged: Path, target: sqlite3.Connection) -> int:
    """Copy what is still readable as `finished` into a new journal; returns how many.

    Only that: what was `received` is listed by the Supervisor again, and what was `started` cannot be trusted any more.

    Raises:
        sqlite3.Error: The new journal cannot be written.
    """
    return sum(_save(target, record) for record in _readable(damaged))


def _readable(damaged: Path) -> Iterator[tuple[Any, ...]]:
    for order in _ORDERS:
        statement = f"SELECT {_COLUMNS} FROM activities NOT INDEXED WHERE state = 'finished' ORDER BY {order}"  # noqa: S608 - constants
        try:
            source = look(damaged)
            try:
                yield from map(tuple, source.execute(statement))
            finally:
                source.close()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            log.warning("journal.salvage_ended", file=str(damaged), order=order, cause=str(error))


def _save(target: sqlite3.Connection, record: tuple[Any, ...]) -> bool:
    marks = ", ".join("?" * len(record))
    statement = f"INSERT OR IGNORE INTO activities ({_COLUMNS}) VALUES ({marks})"  # noqa: S608 - a constant
    try:
        if target.execute(statement, record).rowcount != 1:
            return False
        read_rows(target, "id = ?", record[0])[0].report()
    except sqlite3.IntegrityError:
        return False
    except (JournalError, ValueError):
        target.execute("DELETE FROM activities WHERE id = ?", (record[0],))
        return False
    return True


def add_results(new: Path, results: Sequence[tuple[Row, Store]]) -> None:
    """Write results that a damaged journal did not take into a new one that nobody uses yet; the caller syncs it.

    Raises:
        sqlite3.Error: It cannot be written.
    """
    columns = "id, sequence, runtime, action, digest, author_id, created_at, state, uncertain, received_at, started_at"
    with closing(build(new)) as connection:
        for row, store in results:
            values = (
                *(row.id, row.sequence, row.runtime, row.action, row.digest, row.author_id, row.created_at),
                *(RowState.STARTED, 1, stamp(row.received_at), row.started_at and stamp(row.started_at)),
            )
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT OR IGNORE INTO activities ({columns}) VALUES ({marks})", values)  # noqa: S608 - constants
            store(connection)
