"""What is kept of a journal whose file turns out damaged while the agent runs: the results of what is under way.

Such a file may take no result any more, or not give it again. So they stay in memory until the file is set aside, and
the journal that replaces it begins with them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable

from agent.errors import JournalDamagedError
from agent.journal.rows import Row

Store = Callable[[sqlite3.Connection], object]
"""Writes the result of an activity that is there, and not finished."""


class Rescue:
    """What one agent has begun and not finished, and what came of it; used from the event loop only."""

    def __init__(self) -> None:
        self.damage: JournalDamagedError | None = None
        """Why the file cannot be used any more, once that was noticed."""
        self.noticed = asyncio.Event()
        """Set once it was."""
        self.over = asyncio.Event()
        """Set once it was, and nothing that is under way can come to a result any more that it has not come to."""
        self._under_way: dict[int, Row] = {}
        self._results: dict[int, tuple[Row, Store]] = {}

    @property
    def results(self) -> list[tuple[Row, Store]]:
        """What came of activities and is not known to be safe in the file, with each as it was before."""
        return list(self._results.values())

    def begun(self, rows: Iterable[Row]) -> None:
        """Note what is under way."""
        self._under_way.update((row.id, row) for row in rows)

    def came_to(self, activity_id: int, store: Store) -> None:
        """Note a result before it is written: whatever becomes of that, and of who waits for it, it is known.

        That of what never began is not kept: the Supervisor lists it again.
        """
        row = self._under_way.get(activity_id)
        if row is not None:
            self._results[activity_id] = (row, store)
        self._look()

    def stored(self, activity_id: int) -> None:
        """Note that the file took a result; a damaged one may not give it again, so it is kept then all the same."""
        if self.damage is None:
            self._under_way.pop(activity_id, None)
            self._results.pop(activity_id, None)

    def stuck(self, activity_id: int) -> None:
        """Note that a damaged file did not take a step of an activity, so that it does not go on."""
        if self.damage is not None:
            self._under_way.pop(activity_id, None)
            self._look()

    def notice(self, damage: JournalDamagedError) -> bool:
        """Note that the file is damaged; returns whether that is new."""
        if self.damage is not None:
            return False
        self.damage = damage
        self.noticed.set()
        self._look()
        return True

    def _look(self) -> None:
        if self.damage is not None and self._under_way.keys() <= self._results.keys():
            self.over.set()
