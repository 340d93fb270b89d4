"""What the journal says of itself: each of its conditions is set and cleared here."""

import sqlite3
from collections.abc import Callable

from agent.conditions import Conditions
from agent.errors import JournalDamagedError, JournalError

UNWRITABLE, UNREADABLE, DAMAGED = "journal_unwritable", "journal_unreadable", "journal_damaged"
LOST, REPLACED, FULL, CONFLICT = "journal_lost", "journal_replaced", "disk_full", "activity_conflict"


class Health:
    """The conditions of one journal; used from the event loop only."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._unreadable: dict[str, Callable[[sqlite3.Connection], object]] = {}

    def damaged(self, error: JournalDamagedError) -> None:
        """Show that the file is damaged; that is not over before another agent begins another one."""
        self._conditions.set(DAMAGED, error.message, hint=error.hint)
        for covered in (UNWRITABLE, UNREADABLE):
            self._conditions.clear(covered)

    def unwritable(self, error: JournalError) -> None:
        """Show that a write failed."""
        if DAMAGED not in self._conditions:
            self._conditions.set(UNWRITABLE, error.message, hint=error.hint)

    def written(self) -> None:
        """Note that something was written."""
        self._conditions.clear(UNWRITABLE)

    def unreadable(self, kind: str, work: Callable[[sqlite3.Connection], object], error: JournalError) -> None:
        """Show that a reading failed, until the last one of its kind that failed has succeeded."""
        if DAMAGED not in self._conditions:
            self._unreadable[kind] = work
            self._conditions.set(UNREADABLE, error.message, hint=error.hint)

    def readable(self, kind: str) -> None:
        """Note that a reading that had failed succeeded."""
        self._unreadable.pop(kind, None)
        if not self._unreadable:
            self._conditions.clear(UNREADABLE)

    def failed_readings(self) -> dict[str, Callable[[sqlite3.Connection], object]]:
        """Return the readings that failed last, by kind."""
        return dict(self._unreadable)

    def space(self, *, whole: bool) -> None:
        """Show whether the disk has room."""
        if whole:
            self._conditions.clear(FULL)
        else:
            self._conditions.set(
                FULL,
                "the disk of the state folder is full: what is new is rejected (no_space); what runs can be finished",
                hint="free space on it; this ends by itself within seconds",
            )

    def replaced(self, reason: str) -> None:
        """Show, until the agent ends, that the journal was begun in place of another one."""
        self._conditions.set(
            REPLACED,
            f"a new journal was begun, because {reason}",
            hint="activities that may have been done are not done again; look at the runtimes, then dispatch anew",
        )

    def lost(self, lost: bool) -> None:  # noqa: FBT001 - what the journal holds
        """Show whether the journal does not know what was done before it."""
        if lost:
            self._conditions.set(
                LOST,
                "the journal does not know what was done before it; nothing that may have been done is done again",
                hint="this ends by itself with the next complete answer of the Supervisor",
            )
        else:
            self._conditions.clear(LOST)

    def conflicts(self, ids: list[int]) -> None:
        """Show that ids came with another content, until a complete sweep lists none such."""
        self._conditions.set(
            CONFLICT,
            f"activities {ids[:5]} came again with another content; the first one counts",
            hint="an id must never be used twice; look at the Supervisor's store",
        )

    def no_conflicts(self) -> None:
        """Note that a complete sweep listed none."""
        self._conditions.clear(CONFLICT)
