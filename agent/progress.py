"""Which loops still go round: each says by when it will be back, and one that is late is stuck.

A loop that waits for something that may never come says so too, and is never late. The watchdog of the service manager
is fed from here, so it is fed only while the agent does its work, not while a timer of its own runs.
"""

from time import monotonic


class Mark:
    """One loop's word; used from the event loop only."""

    def __init__(self) -> None:
        self._due: float | None = None

    def within(self, seconds: float) -> None:
        """Promise to come back here, or to another mark of this loop, within so many seconds."""
        self._due = monotonic() + seconds

    def rest(self) -> None:
        """Promise nothing: what is waited for now may never come."""
        self._due = None

    @property
    def late(self) -> bool:
        """Whether a promise was broken."""
        return self._due is not None and monotonic() > self._due


class Progress:
    """The marks of all loops, by name."""

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}

    def mark(self, name: str) -> Mark:
        """Make the mark of one loop."""
        mark = self._marks[name] = Mark()
        return mark

    def rest(self) -> None:
        """Take all promises back: their loops were ended."""
        for mark in self._marks.values():
            mark.rest()

    def late(self) -> list[str]:
        """Name the loops that are late."""
        return [name for name, mark in self._marks.items() if mark.late]
