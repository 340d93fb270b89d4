"""Space for results inside the journal's own files, so that what was done can be written when the disk is full.

Blocks that are given back when they are needed may be gone before the journal has them: what fills a disk goes on
writing. So these are never given back. SQLite's write-ahead log, `journal.db-wal`, is allocated ahead and written in
place, and its blocks have a second name, the hard link `journal.reserve`: SQLite removes its own name when it closes,
and finds the same blocks there when it opens. The database file has some free pages, so that what is in the log can be
brought over without growing it.

Where even what is written in place needs new blocks (btrfs, ZFS) this reserves nothing: a result that finds no room is
tried again until there is some. All methods block; they run in the journal's thread.
"""

import errno
import os
import sqlite3
import tempfile
import time
from pathlib import Path

import structlog

from agent.errors import JournalFullError
from agent.files import FULL, fsync_folder

log = structlog.get_logger(__name__)

_MIB = 1024 * 1024
RESULT = _MIB
"""Bytes of log that one activity takes at most from `started` to its result, besides what its config takes.

Two texts of evidence with a log's end each (16 KiB, six times that where every byte is escaped), which are rewritten
with their row once or twice, and a dozen calls: 240 frames of 4 KiB. An ordinary restart takes 15.
"""
ROUTINE = _MIB
"""Bytes for what is taken in and refused meanwhile, and for noting what was reported: over a hundred activities."""
ORDINARY = _MIB // 8
"""Bytes that one transaction may take that only notes what was refused, withdrawn or reported."""
CYCLE = _MIB
"""Bytes after which the log is brought over into the database file, and begun again."""
AHEAD = 2 * RESULT + ROUTINE
"""Bytes that are free in the log: both runtimes may be at work."""
SIZE = CYCLE + AHEAD
ROOM = _MIB // 4
"""Bytes that have to be free on the disk before anything begins: the drivers write small files too."""
TRY_EVERY = 60.0
"""Seconds between two times of taking that room, to notice a quota before anything is dispatched."""
_FEW_PAGES, _ENOUGH_PAGES = 64, 192
"""Free pages in the database file: with fewer than the first it gets more, up to the second; 4 KiB each."""

_HEADER, _FRAME_HEADER = 32, 24
"""Bytes: sqlite.org/fileformat2.html#walformat."""
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
_ZEROS = bytes(64 * 1024)


class Reserve:
    """The space that one journal keeps for its results.

    Args:
        database: The journal's file.
    """

    def __init__(self, database: Path) -> None:
        self._log = Path(f"{database}-wal")
        self._kept = database.with_suffix(".reserve")
        self._descriptor = -1
        self._frame = 0
        self._salts = b""
        self._frames = 0
        self._brought_over: tuple[bytes, int] | None = None
        self._failing = False
        self._refused = False
        self._try_at = 0.0

    # --- around the connection

    def become(self, target: Path, content: bytearray) -> bool:
        """Make a file of the kept blocks, for a content that the disk has no other room for; it is on the disk then.

        Nobody has the database open.

        Returns:
            Whether it was made: the blocks were there, with no other name, and are enough.

        Raises:
            OSError: The disk is at fault.
        """
        try:
            descriptor = os.open(self._kept, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            kept = os.fstat(descriptor)
            if kept.st_nlink > 1 or kept.st_size < len(content):
                return False
            write_all(descriptor, content)
            os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._kept.rename(target)
        return True

    def attach(self) -> None:
        """Have SQLite find the kept blocks as its log; nobody has the database open.

        Raises:
            OSError: The disk is at fault; that it is full is none: there is no reserve then.
        """
        try:
            if self._log.exists():
                self._keep_log()
            else:
                self._lend()
        except OSError as error:
            if error.errno not in FULL | _NO_LINKS:
                raise
            log.warning("journal.reserve_not_kept", file=str(self._kept), cause=error.strerror)
        fsync_folder(self._kept.parent)

    def _keep_log(self) -> None:
        """Give a log that a killed agent left its second name, if it has not got it."""
        if not (self._kept.exists() and self._kept.samefile(self._log)):
            self._kept.unlink(missing_ok=True)
            self._kept.hardlink_to(self._log)

    def _lend(self) -> None:
        """Name the kept blocks as the log, emptied: what is in them belongs to a log that is over.

        Blocks with yet another name are a damaged log that was set aside, or somebody's copy, and stay as they are.
        """
        if self._kept.exists() and self._kept.stat().st_nlink > 1:
            self._kept.unlink()
        descriptor = os.open(self._kept, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if any(os.pread(descriptor, _HEADER, 0)):
                _wipe(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            self._log.hardlink_to(self._kept)
        except OSError:
            self._kept.unlink()
            raise

    def open(self, connection: sqlite3.Connection) -> None:
        """Look after the log of a connection from here on."""
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA journal_size_limit = -1")
        self._frame = _FRAME_HEADER + int(connection.execute("PRAGMA page_size").fetchone()[0])
        try:
            self._descriptor = os.open(self._log, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError as error:  # nor can SQLite write it, and whoever wants to write is told so
            log.warning("journal.reserve_not_kept", file=str(self._log), cause=error.strerror)

    def close(self) -> None:
        """Let go of the log, whose connection was closed; what was in it, secrets too, is wiped."""
        if self._descriptor == -1:
            return
        try:
            if not self._log.exists() and os.fstat(self._descriptor).st_nlink == 1:
                _wipe(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- how much there is

    def has_room(self) -> bool:
        """Tell whether the disk has a little room.

        Raises:
            OSError: Nothing can be written at all.
        """
        found = os.statvfs(self._kept.parent)
        return (found.f_bavail * found.f_frsize >= 4 * ROOM and not self._refused) or self._try_room()

    def _try_room(self) -> bool:
        """Take the room for a moment: a quota is not told otherwise. Not before each write: the next sync pays for it.

        Raises:
            OSError: Nothing can be written at all.
        """
        self._refused = True
        try:
            with tempfile.TemporaryFile(dir=self._kept.parent) as file:
                _allocate(file.fileno(), 0, ROOM)
        except OSError as error:
            if error.errno in FULL:
                return False
            raise
        self._refused = False
        return True

    def left(self) -> int:
        """Return how many bytes of the log can be written without any new block."""
        if self._descriptor == -1:
            return SIZE
        return os.fstat(self._descriptor).st_size - self._used()

    def allows(self, connection: sqlite3.Connection, activity_id: int) -> bool:
        """Tell whether an activity may begin: its result, and those of all under way, are sure to find their place.

        Args:
            connection: Inside a transaction.
            activity_id: Which.

        Raises:
            OSError: Nothing can be written at all.
        """
        needed = self._promised(connection, activity_id) + ROUTINE
        return self.has_room() and (self.left() >= needed or self._extend(needed))

    def keep_for_results(self, connection: sqlite3.Connection) -> None:
        """Refuse to write what is no result, where the rest of the reserve belongs to what is under way.

        Raises:
            JournalFullError: It is not to be written now.
        """
        if self.left() >= AHEAD:
            return
        needed = self._promised(connection) + ORDINARY
        if self.left() < needed and not (self.has_room() and self._extend(needed)):
            msg = "cannot use the journal: the disk is full, and what is kept free belongs to what is under way"
            raise JournalFullError(msg, hint="free space on the disk of the state folder")

    def _promised(self, connection: sqlite3.Connection, beginning: int | None = None) -> int:
        """Add up what the results of all that is under way may take.

        A config is written anew with its row when its activity starts and when it goes back, and is wiped in the end.
        """
        statement = (
            "SELECT count(*), coalesce(sum(length(CAST(body AS BLOB))), 0) FROM activities"
            " WHERE state = 'started' OR id = ?"
        )
        count, size = connection.execute(statement, (beginning,)).fetchone()
        return int(count) * RESULT + int(size) * 5

    def _used(self) -> int:
        """Return where the log goes on, in bytes: behind its last committed frame.

        Frames are valid while their salts are the header's; one that ends a transaction has a size in it.
        """
        salts = os.pread(self._descriptor, _HEADER, 0)[16:24]
        if salts != self._salts:
            self._salts, self._frames = salts, 0
        at = self._frames
        while True:
            frame = os.pread(self._descriptor, 16, _HEADER + at * self._frame)
            if len(frame) < 16 or frame[8:] != salts or not any(salts):
                break
            at += 1
            if any(frame[4:8]):
                self._frames = at
        if self._brought_over == (self._salts, self._frames):
            return 0
        return _HEADER + self._frames * self._frame

    # --- making it whole

    def tend(self, connection: sqlite3.Connection) -> None:
        """Keep enough of the log free, between two transactions. Never raises.

        What was committed before is on the disk, so a failure here is no failure of that; `mend` says what is wrong.
        """
        try:
            self._tend(connection)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        else:
            self._failing = False

    def _tend(self, connection: sqlite3.Connection) -> bool:
        """Return whether there is enough."""
        if self._descriptor == -1:
            return True
        if self._used() >= CYCLE:
            self._bring_over(connection)
        return self.left() >= AHEAD or self._extend(AHEAD)

    def mend(self, connection: sqlite3.Connection) -> bool:
        """Make all of it whole again; returns whether it is, and the disk has room for more.

        Raises:
            OSError: Nothing can be written at all, or the disk fails.
            sqlite3.Error: The disk fails, or the file is damaged.
        """
        if time.monotonic() >= self._try_at:
            self._try_room()
            self._try_at = time.monotonic() + TRY_EVERY
        if not self.has_room() or not self._tend(connection):
            return False
        if self._descriptor == -1:
            return True
        self._extend(SIZE - self._used())
        try:
            if connection.execute("PRAGMA freelist_count").fetchone()[0] < _FEW_PAGES:
                _add_free_pages(connection)
                self._bring_over(connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise
            self._failed(error)
        return self.left() >= AHEAD

    def _failed(self, error: Exception) -> None:
        """Say once that it does not go."""
        if not self._failing:
            log.warning("journal.reserve_not_tended", cause=str(error))
        self._failing = True

    def _bring_over(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the database file; complete, the next write begins it again: sqlite.org/wal.html#ckpt."""
        try:
            busy, frames, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise
            return  # the file cannot grow; the log goes on
        if not busy and frames == done:
            self._used()
            self._brought_over = (self._salts, self._frames)

    def _extend(self, wanted: int) -> bool:
        """Allocate more, so that so many bytes are left; returns whether it could be done."""
        size = os.fstat(self._descriptor).st_size
        missing = self._used() + wanted - size
        if missing <= 0:
            return True
        try:
            _allocate(self._descriptor, size, missing)
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno in FULL:
                return False
            raise
        return True


def _add_free_pages(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        size = (_ENOUGH_PAGES - _FEW_PAGES) * 4096
        connection.execute(f"CREATE TABLE spare AS SELECT zeroblob({size}) AS content")
        connection.execute("DROP TABLE spare")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _allocate(descriptor: int, start: int, length: int) -> None:
    """Give a file blocks from `start` on; by writing zeros where the file system cannot do it otherwise."""
    try:
        os.posix_fallocate(descriptor, start, length)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        _write_zeros(descriptor, start, start + length)


def _wipe(descriptor: int) -> None:
    """Overwrite what a log has held; it gets its usual size again."""
    if os.fstat(descriptor).st_size > SIZE:
        os.ftruncate(descriptor, SIZE)
    _write_zeros(descriptor, 0, os.fstat(descriptor).st_size)


def write_all(descriptor: int, content: bytearray) -> None:
    """Write a whole content from the beginning of a file on.

    Raises:
        OSError: The disk is at fault.
    """
    done = 0
    with memoryview(content) as view:
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], done)


def _write_zeros(descriptor: int, start: int, end: int) -> None:
    while start < end:
        start += os.pwrite(descriptor, _ZEROS[: end - start], start)
