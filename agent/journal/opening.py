"""Opening the journal: what is damaged, and what a journal that replaces another one begins with.

A journal is never deleted and never silently begun anew. `identity.json` names it; one that is missing, damaged or
another one's is replaced by a new one that is marked *lost*, because it cannot know what was done before.
"""

import os
import sqlite3
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from agent.errors import JournalError
from agent.files import FULL, fsync_folder
from agent.journal.database import connect, content_of, draft, look
from agent.journal.rescue import Store
from agent.journal.reserve import Reserve, write_all
from agent.journal.rows import Row, read_rows, stamp
from agent.journal.salvage import add_results, salvage
from agent.journal.schema import APPLICATION_ID, SCHEMA_VERSION, expected_statements, migrate, statements
from agent.protocol import Verb

log = structlog.get_logger(__name__)

FILE_NAME = "journal.db"
_COMPANIONS = ("", "-wal", "-shm")
_STAMP = "%Y%m%dT%H%M%S%fZ"
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
"""Result codes that speak of the file's content, not of the disk or of permissions: sqlite.org/rescode.html.

SQLITE_ERROR too, because the statements are always the same: only another content makes one of them wrong.
"""


def prepare(folder: Path, journal_id: str | None) -> str | None:
    """Leave a sound journal behind; returns why a new one was begun, if one was.

    Raises:
        JournalError: It was written by a newer version of the agent.
        sqlite3.Error: The disk, or a permission, is at fault; a sound journal is where it was.
        OSError: The same.
    """
    path = folder / FILE_NAME
    reason = None
    damage = find_damage(path, journal_id)
    if damage is not None:
        if _is_ready(path, journal_id):
            damage = "the one before was damaged"
        saved = _replace(path, journal_id)
        reason = f"{damage} ({saved} reports were saved from the old one)"
    _discard(_new(path))
    Reserve(path).attach()  # a full disk has no other room for a step to a newer version
    connection = connect(path)
    try:
        migrate(connection)
    finally:
        connection.close()
    return reason


def create_for_enrolment(folder: Path) -> str:
    """Make a journal for a node that enrols, unless a sound one is there; returns its id.

    In place of a damaged one it counts as lost, for the node may be the one that it was before.
    """
    path = folder / FILE_NAME
    if not path.exists() and not _is_ready(path, None):
        _build(path, lost=False, journal_id=None, damaged=None)
        _set_aside(path)  # a WAL without its file would be read into the new one
        _put_in_place(path)
    elif find_damage(path, None) is not None:
        _replace(path, None)
    connection = connect(path)
    try:
        return str(connection.execute("SELECT journal_id FROM journal").fetchone()[0])
    finally:
        connection.close()


def set_aside(folder: Path, journal_id: str | None, results: Sequence[tuple[Row, Store]]) -> None:
    """Set a journal aside that turned out damaged in use; the next start puts a new one in its place, and says so.

    That one is made here, for it begins with results that nobody else knows. It is whole before the old one is moved.

    Args:
        folder: The state folder.
        journal_id: Of the new one too.
        results: What the damaged one did not take.

    Raises:
        sqlite3.Error: The disk, or a permission, is at fault.
        OSError: The same.
    """
    path = folder / FILE_NAME
    if not path.exists() and _is_ready(path, journal_id):
        return
    _build(path, lost=True, journal_id=journal_id, damaged=path if path.exists() else None, results=results)
    aside = _set_aside(path)
    log.error("journal.set_aside", file=str(path), set_aside=aside and str(aside), results=len(results))


def since_set_aside(folder: Path) -> timedelta | None:
    """Return for how long the last journal has been set aside; None if none was."""
    moments = []
    for path in folder.glob(f"{FILE_NAME}.damaged-*Z"):
        with suppress(ValueError):  # a name that somebody gave it
            moments.append(datetime.strptime(path.name.partition(".damaged-")[2], _STAMP).replace(tzinfo=UTC))
    return datetime.now(UTC) - max(moments) if moments else None


def find_damage(path: Path, journal_id: str | None) -> str | None:
    """Say what is wrong with a journal's file, or None when it is sound and the right one; changes nothing.

    Raises:
        JournalError: It was written by a newer version of the agent.
        sqlite3.Error: The disk, and not the file, is at fault.
        OSError: The same.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "it is missing"
    if size == 0:
        return "it is empty"
    try:
        connection = look(path)
        try:
            return _inspect(connection, path, journal_id)
        finally:
            connection.close()
    except UnicodeDecodeError:
        return "a text in it cannot be decoded"
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)  # none: a text that is not UTF-8, which Python finds
        if code is None or code & 0xFF in _DAMAGE:
            return str(error)
        raise


def _inspect(connection: sqlite3.Connection, path: Path, journal_id: str | None) -> str | None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        return "it is not a journal of this agent"
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        msg = f"cannot open the journal {path}: it was written by a newer version (schema {version})"
        raise JournalError(msg, hint=f"install the newer agent again; this one knows schema {SCHEMA_VERSION}")
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        return str(verdict)
    if not statements(connection) >= expected_statements(version):
        return "its tables are not those that were made"
    found = connection.execute("SELECT * FROM journal").fetchone()
    if found is None or (journal_id is not None and found["journal_id"] != journal_id):
        return "it is not the one that identity.json names"
    return _find_unreadable(connection)


def _find_unreadable(connection: sqlite3.Connection) -> str | None:
    """Say what still matters and cannot be what was written: a flipped bit in a text passes all checks."""
    for row in connection.execute("SELECT runtime, committed, last_verb FROM runtimes"):
        if row["last_verb"] is not None and row["last_verb"] not in set(Verb):
            return f"what it holds of {row['runtime']} cannot be read"
    for row in connection.execute("SELECT id, state FROM activities WHERE state != 'reported'"):
        try:
            for read in read_rows(connection, "id = ?", row["id"]):
                if row["state"] == "finished":
                    read.report()
        except (JournalError, ValueError):
            return f"activity {row['id']} in it cannot be read"
    return None


def _replace(path: Path, journal_id: str | None) -> int:
    """Put a new journal, with the old one's reports, in place of one that is damaged, which is set aside.

    The new one is whole before the old one is moved, so that neither a crash nor a full disk loses a report between.

    Returns:
        How many reports were saved.
    """
    if not _is_ready(path, journal_id):
        _build(path, lost=True, journal_id=journal_id, damaged=path if path.exists() else None)
    connection = look(_new(path))
    try:
        saved = int(connection.execute("SELECT count(*) FROM activities").fetchone()[0])
    finally:
        connection.close()
    aside = _set_aside(path)
    _put_in_place(path)
    log.error("journal.replaced", file=str(path), set_aside=aside and str(aside), salvaged=saved)
    return saved


def _is_ready(path: Path, journal_id: str | None) -> bool:
    """Tell whether the old one was set aside and the new one not put in its place: by `set_aside`, or a crash."""
    return not path.exists() and find_damage(_new(path), journal_id) is None


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _build(
    path: Path,
    *,
    lost: bool,
    journal_id: str | None,
    damaged: Path | None,
    results: Sequence[tuple[Row, Store]] = (),
) -> None:
    """Make a whole new journal, one file without a WAL, beside the place where it is to be; on the disk in the end.

    On a full disk it is made of the blocks that the old one kept for its results: now they are needed.
    """
    new = _new(path)
    _discard(new)
    content = _compose(lost=lost, journal_id=journal_id, damaged=damaged, results=results)
    try:
        _write(new, content)
    except OSError as error:
        _discard(new)
        if error.errno not in FULL or not Reserve(path).become(new, content):
            raise
        log.warning("journal.built_of_reserve", file=str(new))


def _compose(
    *, lost: bool, journal_id: str | None, damaged: Path | None, results: Sequence[tuple[Row, Store]]
) -> bytearray:
    with closing(draft()) as connection:
        migrate(connection)
        connection.execute("BEGIN IMMEDIATE")
        values = (journal_id or uuid.uuid4().hex, int(lost), stamp())
        connection.execute("INSERT INTO journal VALUES (1, ?, 0, 0, ?, 0, 0, ?)", values)
        if damaged is not None:
            salvage(damaged, connection)
        add_results(connection, results)
        connection.execute("COMMIT")
        return content_of(connection)


def _write(new: Path, content: bytearray) -> None:
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(new: Path) -> None:
    """Remove what a crash while building left; it never was a journal."""
    new.unlink(missing_ok=True)


def _put_in_place(path: Path) -> None:
    _new(path).rename(path)
    fsync_folder(path.parent)


def _set_aside(path: Path) -> Path | None:
    """Rename a damaged journal, its WAL with it, to a name that says when; nothing is deleted.

    The file goes first: without its WAL it might pass for a sound, older one.
    """
    when = datetime.now(UTC).strftime(_STAMP)
    aside = path.with_name(f"{path.name}.damaged-{when}")
    present = [companion for companion in _COMPANIONS if Path(f"{path}{companion}").exists()]
    for companion in present:
        Path(f"{path}{companion}").rename(f"{aside}{companion}")
    fsync_folder(path.parent)
    return aside if present else None
