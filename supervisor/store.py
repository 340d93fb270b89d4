"""The durable truth of the Supervisor: one writer with group commit, one reader, neither on the event loop.

While one transaction is being made durable the next requests gather, and all of them go into the next transaction: a
disk that syncs in a millisecond then serves thousands of writes per second. An answer goes out after its commit only.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import structlog

from supervisor.database import connect, transaction
from supervisor.problems import Code, ProblemError

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_BATCH = 500
"""Writes in one transaction: keeps the lock short for the commands of other processes."""
MAX_WAITING = 50_000
"""Writes that may wait; beyond it a request is refused rather than memory filled."""


@dataclass(slots=True)
class _Write:
    work: Callable[[sqlite3.Connection], Any]
    then: Callable[[Any], None] | None
    done: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Store:
    """The store as the event loop sees it.

    `then` of a write is called on the loop, in the order of the commits and before any answer goes out: what is kept in
    memory follows the disk, never the other way round.
    """

    def __init__(self, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._waiting: list[_Write] = []
        self._commits: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Open the store, making it when it is missing.

        Raises:
            StoreError: It cannot be opened.
        """

        def connections() -> tuple[sqlite3.Connection, sqlite3.Connection]:
            writer = connect(folder, create=True)
            reader = connect(folder)
            reader.execute("PRAGMA query_only = ON")
            return writer, reader

        return cls(*await asyncio.to_thread(connections))

    async def write(self, work: Callable[[sqlite3.Connection], T], then: Callable[[T], None] | None = None) -> T:
        """Run `work` in a durable transaction, which it may share with others; what it raises undoes its part only.

        Raises:
            ProblemError: The store cannot be written (503), or `work` raised it.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise ProblemError(Code.OVERLOADED, "cannot write: too many writes are waiting already")
        write = _Write(work, then, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._commits is None:
            self._commits = asyncio.create_task(self._commit_all(), name="store-commits")
        return cast("T", await write.done)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on what is committed, in one snapshot.

        Raises:
            ProblemError: The store cannot be read (503), or `work` raised it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._read_thread, self._snapshot, work)

    async def changed_outside(self) -> int:
        """Return a number that changes whenever another process has committed something.

        Raises:
            ProblemError: The store cannot be read (503).
        """

        def version() -> int:
            try:
                number: int = self._writer.execute("PRAGMA data_version").fetchone()[0]
            except sqlite3.Error as error:
                raise _unavailable(error) from error
            return number

        # On the writing connection, for which its own commits do not count.
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, version)

    async def close(self) -> None:
        """Finish what is waiting, and close; the last connection folds the WAL into the one file."""
        if self._commits is not None:
            await self._commits
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._read_thread, self._reader.close)
        await loop.run_in_executor(self._write_thread, self._writer.close)
        # Both have nothing left to do; waiting for them to end would block the loop.
        self._read_thread.shutdown(wait=False)
        self._write_thread.shutdown(wait=False)

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await loop.run_in_executor(self._write_thread, self._commit, batch)
                for write in batch:
                    _deliver(write)
        finally:
            self._commits = None

    def _commit(self, batch: list[_Write]) -> None:
        try:
            with transaction(self._writer):
                for write in batch:
                    self._run(write)
        except sqlite3.Error as error:
            for write in batch:
                write.error = _unavailable(error)

    def _run(self, write: _Write) -> None:
        self._writer.execute("SAVEPOINT request")
        try:
            write.result = write.work(self._writer)
        except sqlite3.OperationalError:
            # A full disk or a damaged page: SQLite may have undone everything already, so nobody's part is kept.
            raise
        except Exception as error:  # noqa: BLE001 - it is delivered to whoever asked, and undone here
            write.error = error
            self._writer.execute("ROLLBACK TO request")
        self._writer.execute("RELEASE request")

    def _snapshot(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._reader.execute("BEGIN")
            try:
                return work(self._reader)
            finally:
                self._reader.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _unavailable(error) from error


def _deliver(write: _Write) -> None:
    if write.error is None and write.then is not None:
        write.then(write.result)
    if write.done.done():  # whoever asked has gone; what was committed stays
        return
    if write.error is not None:
        write.done.set_exception(write.error)
    else:
        write.done.set_result(write.result)


def _unavailable(error: sqlite3.Error) -> ProblemError:
    log.error("store.unavailable", error=str(error))
    return ProblemError(Code.STORE_UNAVAILABLE, f"cannot use the store: {error}")
