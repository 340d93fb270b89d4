"""What a damaged journal still gives: finished activities, so that no report is lost, and what was to run."""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import structlog

from agent.errors import JournalError
from agent.journal.database import look
from agent.journal.rescue import Store
from agent.journal.rows import Row, RowState, read_rows, stamp
from agent.protocol import Verb

log = structlog.get_logger(__name__)

_COLUMNS = (
    "id, sequence, runtime, action, digest, author_id, created_at, state, uncertain, received_at, started_at, "
    "finished_at, status, changed, recovered, code, message, hint, evidence"
)
_ORDERS = ("id", "id DESC")
"""A damaged page ends a reading; from both ends, what lies before and behind it is reached."""
_PASSING = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
    }
)
"""Primary result codes that do not speak of what is in the file: it may be readable later. sqlite.org/rescode.html."""
_BAD_SECTOR = frozenset({sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_CORRUPTFS})
"""Result codes of a disk that does not give a page: for a moment, or for good."""
_PATIENCE, _PAUSE = 5.0, 0.5
"""Seconds for which a page that the disk does not give is asked for again, and those between."""


def salvage(damaged: Path, target: sqlite3.Connection) -> None:
    """Copy what is still readable into a new journal: finished activities, and the last verb of each runtime.

    Only that: what was `received` is listed by the Supervisor again, and what was `started` cannot be trusted any more.

    Raises:
        sqlite3.Error: The old one cannot be read now, and perhaps later; or the new one cannot be written.
    """
    until = time.monotonic() + _PATIENCE
    for order in _ORDERS:
        statement = f"SELECT {_COLUMNS} FROM activities NOT INDEXED WHERE state = 'finished' ORDER BY {order}"  # noqa: S608 - constants
        for record in _readable(damaged, statement, until):
            _save(target, record)
    for runtime, verb in _readable(damaged, "SELECT runtime, last_verb FROM runtimes", until):
        if isinstance(runtime, str) and verb in set(Verb):
            target.execute("INSERT OR IGNORE INTO runtimes VALUES (?, NULL, ?, 0)", (runtime, verb))


def _readable(damaged: Path, statement: str, until: float) -> Iterator[tuple[Any, ...]]:
    """Read up to where the damage is; what is read anew, because the disk did not give a page, comes again."""
    while True:
        try:
            with closing(look(damaged)) as source:
                yield from map(tuple, source.execute(statement))
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code in _BAD_SECTOR and time.monotonic() < until:
                time.sleep(_PAUSE)
                continue
            if code is not None and code not in _BAD_SECTOR and code & 0xFF in _PASSING:
                raise
            log.warning("journal.salvage_ended", file=str(damaged), reading=statement, cause=str(error))
        return


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


def add_results(target: sqlite3.Connection, results: Sequence[tuple[Row, Store]]) -> None:
    """Write results that a damaged journal did not take into a new one."""
    columns = "id, sequence, runtime, action, digest, author_id, created_at, state, uncertain, received_at, started_at"
    for row, store in results:
        values = (
            *(row.id, row.sequence, row.runtime, row.action, row.digest, row.author_id, row.created_at),
            *(RowState.STARTED, 1, stamp(row.received_at), row.started_at and stamp(row.started_at)),
        )
        marks = ", ".join("?" * len(values))
        target.execute(f"INSERT OR IGNORE INTO activities ({columns}) VALUES ({marks})", values)  # noqa: S608 - constants
        store(target)
