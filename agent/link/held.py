"""Reports that wait before they are tried again, while the others go on."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(slots=True)
class _Hold:
    until: float
    times: int
    refused: bool


class Held:
    """Which reports wait, and until when; in memory only, so that a new start tries them all.

    Args:
        refused_for: Seconds that a refused report waits.
        missing_first: Seconds after the first answer that left a report out; doubles up to `missing_cap`.
        missing_cap: Seconds.
        monotonic: Returns seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        refused_for: float = 3600.0,
        missing_first: float = 1.0,
        missing_cap: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refused_for = refused_for
        self._missing_first = missing_first
        self._missing_cap = missing_cap
        self._monotonic = monotonic
        self._holds: dict[int, _Hold] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def waits(self, activity_id: int) -> bool:
        """Whether a report is not to be tried now."""
        hold = self._holds.get(activity_id)
        return hold is not None and hold.until > self._monotonic()

    def missing(self, activity_id: int) -> None:
        """Hold a report that an answer left out, longer each time."""
        known = self._holds.get(activity_id)
        times = known.times if known else 0
        seconds = min(self._missing_cap, self._missing_first * 2.0 ** min(times, 32))
        self._holds[activity_id] = _Hold(self._monotonic() + seconds, times + 1, refused=False)

    def refused(self, activity_id: int) -> None:
        """Hold a report that the Supervisor does not take in any form."""
        self._holds[activity_id] = _Hold(self._monotonic() + self._refused_for, 0, refused=True)

    def answered(self, activity_id: int) -> None:
        """Forget a report that was answered for."""
        self._holds.pop(activity_id, None)

    def keep_only(self, activity_ids: Collection[int]) -> None:
        """Forget all others, for they left the outbox."""
        self._holds = {activity_id: hold for activity_id, hold in self._holds.items() if activity_id in activity_ids}

    def try_refused(self) -> None:
        """Try the refused ones now."""
        for hold in self._holds.values():
            if hold.refused:
                hold.until = 0.0

    def refused_ids(self) -> list[int]:
        """List the refused ones, lowest first; each until it was answered for."""
        return sorted(activity_id for activity_id, hold in self._holds.items() if hold.refused)

    def seconds_to_next(self) -> float | None:
        """Return the seconds until one of them is to be tried; None when none waits."""
        if not self._holds:
            return None
        return max(0.0, min(hold.until for hold in self._holds.values()) - self._monotonic())
