"""SQLite behind one thread: a whole transaction for each call, and errors in the agent's own words."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from agent.errors import JournalDamagedError, JournalError, JournalFullError
from agent.files import FULL
from agent.journal.reserve import Reserve

log = structlog.get_logger(__name__)

T = TypeVar("T")

_OLDEST_SQLITE = (3, 37)
"""The first with STRICT tables, sqlite.org/stricttables.html; an older one takes a sound file for a damaged one."""


_NO_SHARED_MEMORY = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
"""Primary result codes of a shared memory that cannot be made: sqlite.org/rescode.html."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Primary result codes by which SQLite says that the file is damaged."""
_WAL_FORMAT = b"\x02\x02"
"""How a file says that it is written with a WAL, from byte 18 on: sqlite.org/fileformat2.html."""
_DOUBTFUL = frozenset({None, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH})
"""Those that a sound file never leads to, for the statements are always the same, but a fault of the agent might. None
is a text that is not UTF-8, which Python finds."""
INSPECT_EVERY = 60.0
"""Seconds between two inspections of a file because of such a one."""


def look(path: Path) -> sqlite3.Connection:
    """Open an existing database for reading; neither its file nor its WAL is changed, whatever they hold.

    One without a WAL, which nobody else has open, is read without the shared memory that a full disk has no room for.
    """
    return _open(path, "ro" if Path(f"{path}-wal").exists() else "ro&immutable=1")


def draft() -> sqlite3.Connection:
    """Begin a database in memory, for `content_of`."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def content_of(connection: sqlite3.Connection) -> bytearray:
    """Return a draft as a file that is opened without being written: `connect` needs no room on the disk for it."""
    content = bytearray(connection.serialize())
    content[18:20] = _WAL_FORMAT
    return content


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database so that what was committed is on the disk: WAL with synchronous=FULL.

    Where the disk has no room for the file of its shared memory, it is opened for this process alone, which needs none:
    sqlite.org/wal.html#noshm.
    """
    try:
        return _connect(path, "NORMAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _NO_SHARED_MEMORY:
            raise
    return _connect(path, "EXCLUSIVE")


def _connect(path: Path, locking: str) -> sqlite3.Connection:
    connection = _open(path, "rw")
    try:
        connection.execute(f"PRAGMA locking_mode = {locking}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA user_version").fetchone()  # now it opens the WAL, not with the first transaction
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(
            "PRAGMA temp_store = MEMORY"
        )  # a container's root may be read-only: sqlite.org/tempfiles.html
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path, mode: str) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        msg = f"cannot use the journal {path}: SQLite {sqlite3.sqlite_version} is too old"
        raise JournalError(msg, hint=f"use a Python with SQLite {'.'.join(map(str, _OLDEST_SQLITE))} or newer")
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, timeout=5, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


class Database:
    """One connection in a thread of its own; used from the event loop.

    Every method may raise `JournalError`; nothing was written then.

    Args:
        path: Of its file.
        inspect: Says what is wrong with the content of the file, or None; runs in the thread.
        damaged: Told when it turned out damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        inspect: Callable[[], str | None] = lambda: None,
        damaged: Callable[[JournalDamagedError], None] = lambda _: None,
    ) -> None:
        self.path = path
        self.reserve = Reserve(path)
        self._inspect = inspect
        self._damaged = damaged
        self._inspect_from = 0.0
        self._found: str | None = None
        self._executor = ThreadPoolExecutor(1, "journal")
        self._connection: sqlite3.Connection | None = None
        self._closing: Future[None] | None = None

    async def open(self, prepare: Callable[[], T]) -> T:
        """Run `prepare`, which leaves a sound file behind, and connect to it."""

        def work() -> T:
            result = prepare()
            self.reserve.attach()
            self._connection = connect(self.path)
            self.reserve.open(self._connection)
            return result

        return await self.run(work)

    async def close(self) -> None:
        """Finish what was asked for and close the file, also when the caller is cancelled; twice is harmless."""
        if self._closing is None:
            self._closing = self._executor.submit(self._disconnect)
            self._executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closing))

    async def leave(self, work: Callable[[], T]) -> T:
        """Let go of the file for good, and run `work` on it."""

        def leaving() -> T:
            self._disconnect()
            return work()

        return await self.run(leaving)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self.reserve.close()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which only reads."""
        return await self.run(lambda: work(self._connected()))

    async def write(self, work: Callable[[sqlite3.Connection], T], committed: Callable[[T], None]) -> T:
        """Run `work` in one transaction; when this returns, what it wrote is on the disk.

        Args:
            work: Runs in the thread.
            committed: Called on the event loop once it is on the disk, also when the caller was cancelled meanwhile.
        """
        loop = asyncio.get_running_loop()

        def transaction() -> T:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            loop.call_soon_threadsafe(committed, result)
            self.reserve.tend(connection)
            return result

        return await self.run(transaction)

    async def mend(self) -> bool:
        """Make the space for results whole again; returns whether it is, and the disk has room for more."""
        return await self.read(self.reserve.mend)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread, and say what SQLite or the disk refused."""

        def translated() -> T:
            try:
                return work()
            except (sqlite3.Error, ValueError, JournalError) as error:
                if (said := self._explain(error)) is error:
                    raise
                raise said from error
            except MemoryError as error:  # also what SQLite calls SQLITE_NOMEM
                msg = f"cannot use the journal {self.path}: no memory is left"
                raise JournalError(msg, hint="give the agent or the machine more memory") from error
            except OSError as error:
                msg = f"cannot use the journal {self.path}: {error.strerror or error}"
                if error.errno in FULL:
                    raise JournalFullError(msg, hint="free space on the disk of the state folder") from error
                raise JournalError(msg, hint="the folder must exist and belong to the agent's user") from error

        try:
            future: Future[T] = self._executor.submit(translated)
        except RuntimeError as error:
            msg = f"cannot use the journal {self.path}: it is closed"
            raise JournalError(msg) from error
        try:
            return await asyncio.wrap_future(future)
        except JournalDamagedError as error:
            self._damaged(error)
            raise

    def _explain(self, error: Exception) -> Exception:
        """Tell a damaged file from a disk that refuses; what is neither is said as it is."""
        if damage := self._find_damage(error):
            return JournalDamagedError(
                f"cannot go on with the journal {self.path}: it is damaged: {damage}",
                hint="the agent sets it aside, saves its results and ends; start it again if nothing does, and look at"
                " the disk",
            )
        if not isinstance(error, sqlite3.Error | UnicodeDecodeError):
            return error
        msg = f"cannot use the journal {self.path}: {error}"
        if self._is_full(error):
            return JournalFullError(msg, hint="free space on the disk of the state folder")
        return JournalError(msg, hint="look at the disk: is it full, read-only or failing?")

    def _find_damage(self, error: Exception) -> str | None:
        """Say what is wrong with the file; where SQLite does not say so itself, it is inspected, if not just before."""
        code = getattr(error, "sqlite_errorcode", None)
        code = None if code is None else code & 0xFF
        if code in _DAMAGED:
            return str(error)
        refused = isinstance(error, JournalFullError) or self._connection is None
        if refused or code not in _DOUBTFUL:
            return None
        if self._found is None and time.monotonic() >= self._inspect_from:
            self._inspect_from = time.monotonic() + INSPECT_EVERY
            try:
                self._found = self._inspect()
            except (JournalError, sqlite3.Error, OSError) as fault:  # of the disk, which the error itself speaks of
                log.debug("journal.not_inspected", cause=str(fault))
        return self._found

    def _is_full(self, error: Exception) -> bool:
        """Tell whether a write failed for want of space; what a quota refuses is an I/O error to SQLite."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR:
            with suppress(OSError):  # it cannot be written at all, which the error itself says
                return not self.reserve.has_room()
        return bool(code == sqlite3.SQLITE_FULL)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            msg = f"cannot use the journal {self.path}: it is closed"
            raise JournalError(msg)
        return self._connection
