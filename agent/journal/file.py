"""The journal's file in use: read and written in one thread, until it is closed or turns out damaged.

What is damaged in use cannot be mended in use: the agent is to end, and the next start begins a new file. Start-up may
find a file sound that was damaged here, so it is not left to find that out again: the file is set aside before.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from agent.conditions import Conditions
from agent.errors import JournalDamagedError, JournalError, JournalFullError
from agent.journal import opening
from agent.journal.database import Database
from agent.journal.health import Health
from agent.journal.rescue import Rescue
from agent.journal.rows import Head, read_head

log = structlog.get_logger(__name__)

T = TypeVar("T")


class JournalFile:
    """The file of one journal.

    Args:
        folder: The state folder.
        journal_id: Of the journal that `identity.json` names.
        conditions: Where it says what is wrong with it.
    """

    def __init__(self, folder: Path, journal_id: str | None, conditions: Conditions) -> None:
        self._folder = folder
        self._id = journal_id
        path = folder / opening.FILE_NAME
        self._database = Database(path, inspect=lambda: opening.find_damage(path, journal_id), damaged=self._notice)
        self._health = Health(conditions)
        self.is_set_aside = False
        """Whether it turned out damaged and was set aside."""
        self.rescue = Rescue()
        """Knows whether the file turned out damaged, and keeps the results that it did not take."""
        self.revision = 0
        """Grows with every `started` write; travels with every call to the Supervisor."""
        self.cursor = 0
        """The highest sequence that was journaled."""
        self.lost = False
        """Whether it replaced another one and its first sweep has not ended."""

    async def close(self) -> None:
        """Finish what was asked for and close the file; one that turned out damaged is set aside, if it can be."""
        if self.rescue.damage is not None and not self.is_set_aside:
            try:
                await self.set_aside()
            except JournalError as error:
                log.error("journal.not_set_aside", cause=error.message, results_lost=len(self.rescue.results))
        await self._database.close()

    async def set_aside(self) -> None:
        """Let go of a file that turned out damaged, and set it aside, so that the next start begins with a new one.

        Raises:
            JournalError: The disk does not let it; it may be tried again.
        """
        results = self.rescue.results
        await self._database.leave(lambda: opening.set_aside(self._folder, self._id, results))
        self.is_set_aside = True

    async def since_set_aside(self) -> float | None:
        """Return for how many seconds the last damaged journal has been set aside; None if none was.

        Raises:
            JournalError: The disk is at fault.
        """
        since = await self._database.run(lambda: opening.since_set_aside(self._folder))
        return None if since is None else since.total_seconds()

    def _notice(self, damage: JournalDamagedError) -> None:
        if self.rescue.notice(damage):
            self._health.damaged(damage)

    async def mend_reserve(self) -> None:
        """Make the space for results whole again where there is room, and read again what could not be read."""
        try:
            await self._mend()
        except JournalError as error:
            self._health.unwritable(error)
            raise
        for kind, reading in self._health.failed_readings().items():
            await self._read(kind, reading)

    async def _mend(self) -> None:
        try:
            whole = await self._database.mend()
        except JournalFullError:  # as SQLite tells a quota that is used up
            whole = False
        self._health.space(whole=whole)

    async def _read(self, kind: str, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            result = await self._database.read(work)
        except JournalError as error:
            self._health.unreadable(kind, work, error)
            raise
        self._health.readable(kind)
        return result

    async def _write(
        self,
        work: Callable[[sqlite3.Connection], T],
        announce: Callable[[T], None] = lambda _: None,
        *,
        when_full: Callable[[sqlite3.Connection], T] | None = None,
    ) -> T:
        """Run `work` in one transaction, and announce it once it is durable, even if nobody waits for it any more.

        Args:
            work: Runs in the thread.
            announce: Called with what it returned.
            when_full: Is run instead when the disk has no room for that.
        """

        def write(connection: sqlite3.Connection) -> tuple[T, Head, bool]:
            before = connection.total_changes
            result = work(connection)
            return result, read_head(connection), connection.total_changes > before

        def committed(written: tuple[T, Head, bool]) -> None:
            result, head, changed = written
            self._note_head(head)
            if changed:
                self._health.written()
            announce(result)

        try:
            return (await self._database.write(write, committed))[0]
        except JournalError as error:
            if when_full is None or not isinstance(error, JournalFullError):
                self._health.unwritable(error)
                raise
        return await self._write(when_full, announce)

    def _note_head(self, head: Head) -> None:
        self.revision, self.cursor, self.lost = head.revision, head.cursor, head.lost
