"""Opening the journal: who may, what is damaged, what is salvaged, and what a journal that was lost begins with.

A journal is never deleted and never silently begun anew. `identity.json` names it; one that is missing, damaged or
another one's is replaced by a new one that is marked *lost*, because it cannot know what was done before.
"""

import fcntl
import os
import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from agent.errors import JournalError, JournalInUseError
from agent.files import fsync_folder
from agent.journal.database import connect
from agent.journal.rows import stamp
from agent.journal.schema import APPLICATION_ID, SCHEMA_VERSION, migrate

log = structlog.get_logger(__name__)

FILE_NAME = "journal.db"
_COMPANIONS = ("", "-wal", "-shm")
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Result codes that speak of the file itself, not of the disk or of permissions: sqlite.org/rescode.html."""


class StateLock:
    """Holds a state folder for one agent, until the process ends or leaves the context.

    Raises:
        JournalInUseError: Another process holds it; says which.
        JournalError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"cannot use the state folder {self._path.parent}: {error.strerror}"
            raise JournalError(msg, hint="create it, owned by the agent's user, or set agent.state_dir") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            msg = f"cannot use the state folder {self._path.parent}: another agent holds it, process {holder}"
            raise JournalInUseError(msg, hint="only one agent runs on a state folder; stop the other one") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def create(folder: Path, *, lost: bool, journal_id: str | None = None) -> str:
    """Make a new, empty journal; returns its id."""
    path = folder / FILE_NAME
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = connect(path)
    try:
        migrate(connection)
        journal_id = journal_id or uuid.uuid4().hex
        connection.execute("INSERT INTO journal VALUES (1, ?, 0, 0, ?, 0, 0, ?)", (journal_id, int(lost), stamp()))
    finally:
        connection.close()
    fsync_folder(folder)
    return journal_id


def find_damage(path: Path, journal_id: str | None) -> str | None:
    """Say what is wrong with a journal's file, or None when it is sound and the right one.

    Raises:
        JournalError: It was written by a newer version of the agent; nothing is set aside then.
        sqlite3.Error: The disk, and not the file, is at fault; nothing is set aside then.
        OSError: The same.
    """
    if not path.exists():
        return "it is missing"
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        connection = connect(path)
        try:
            return _inspect(connection, path, journal_id)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _DAMAGE:
            return str(error)
        raise


def _inspect(connection: sqlite3.Connection, path: Path, journal_id: str | None) -> str | None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        return "it is not a journal of this agent"
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        msg = f"cannot open the journal {path}: it was written by a newer version (schema {version})"
        raise JournalError(msg, hint=f"install the newer agent again; this one knows schema {SCHEMA_VERSION}")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        return str(verdict)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables >= {"journal", "activities", "calls", "runtimes"}:
        return "it has lost its tables"
    found = connection.execute("SELECT journal_id FROM journal").fetchone()
    if found is None or (journal_id is not None and found["journal_id"] != journal_id):
        return "it is not the one that identity.json names"
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged journal, its WAL with it, to a name that says when; nothing is deleted."""
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    aside = path.with_name(f"{path.name}.damaged-{when}")
    for companion in _COMPANIONS:
        source = Path(f"{path}{companion}")
        if source.exists():
            source.rename(f"{aside}{companion}")
    fsync_folder(path.parent)
    return aside


def salvage(damaged: Path, path: Path) -> int:
    """Copy what is still readable as `finished` out of a damaged journal, so that no report is lost; returns how many.

    Only finished activities: what was `received` is listed by the Supervisor again, and what was `started` can not be
    trusted any more.
    """
    columns = (
        "id, sequence, runtime, action, digest, author_id, created_at, state, uncertain, received_at, started_at, "
        "finished_at, status, changed, recovered, code, message, hint, evidence"
    )
    saved = 0
    source = target = None
    try:
        source, target = connect(damaged), connect(path)
        for record in source.execute(f"SELECT {columns} FROM activities WHERE state = 'finished'"):  # noqa: S608 - a constant
            marks = ", ".join("?" * len(record))
            statement = f"INSERT OR IGNORE INTO activities ({columns}) VALUES ({marks})"  # noqa: S608 - a constant
            saved += target.execute(statement, tuple(record)).rowcount
    except sqlite3.DatabaseError as error:
        log.warning("journal.salvage_ended", file=str(damaged), saved=saved, cause=str(error))
    finally:
        for connection in (source, target):
            if connection is not None:
                connection.close()
    return saved


def prepare(folder: Path, journal_id: str | None) -> str | None:
    """Leave a sound journal behind; returns why a new one was begun, if one was."""
    path = folder / FILE_NAME
    damage = find_damage(path, journal_id)
    if damage is not None:
        aside = set_aside(path) if path.exists() else None
        create(folder, lost=True, journal_id=journal_id)
        saved = salvage(aside, path) if aside is not None else 0
        log.error("journal.replaced", file=str(path), set_aside=str(aside), cause=damage, salvaged=saved)
        return f"{damage} ({saved} reports were saved from the old one)"
    connection = connect(path)
    try:
        migrate(connection)
    finally:
        connection.close()
    return None


def create_for_enrolment(folder: Path) -> str:
    """Make a journal for a node that enrols, unless a sound one is there; returns its id."""
    path = folder / FILE_NAME
    if not path.exists():
        return create(folder, lost=False)
    if (damage := find_damage(path, None)) is not None:
        aside = set_aside(path)
        log.error("journal.replaced", file=str(path), set_aside=str(aside), cause=damage, salvaged=0)
        return create(folder, lost=True)
    connection = connect(path)
    try:
        return str(connection.execute("SELECT journal_id FROM journal").fetchone()[0])
    finally:
        connection.close()
