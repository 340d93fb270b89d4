"""How long to wait after a failure: exponential, with full jitter and a cap.

Full jitter (a delay anywhere between nothing and the ceiling) spreads a fleet that lost its Supervisor at one moment.
"""

import random
import time
from collections.abc import Callable, Container

from agent.errors import AgentError, SupervisorError

LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a longer Retry-After is cut to this, so that a slip of the Supervisor does not silence a node for days."""
REFUSED_FIRST, REFUSED_CAP = 60.0, 600.0
"""Seconds between calls that are refused: that heals by a person, not by trying."""
REFUSALS = frozenset({401, 403})
"""Statuses that are about the node token, or the node's state."""
DISK_CAP = 5.0
"""Seconds between tries while the journal cannot be written: that harms nobody else, and may be over at any moment."""


class Backoff:
    """The delays of one loop.

    Args:
        first: Ceiling of the first delay, in seconds; it doubles with each failure.
        cap: Highest ceiling, in seconds.
        refusals: Statuses that are tried again after minutes only.
        stable_for: Seconds without a failure, counted from the first success after one, that make the next failure a
            first one again. One success alone resets nothing: a Supervisor that answers every other call is not well.
        chance: Returns a number from 0 to 1.
        monotonic: Returns seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        first: float = 0.5,
        cap: float = 60.0,
        refusals: Container[int | None] = REFUSALS,
        stable_for: float = 30.0,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._cap = cap
        self._refusals = refusals
        self._stable_for = stable_for
        self._chance = chance
        self._monotonic = monotonic
        self._failures = 0
        self._well_since: float | None = None

    def succeeded(self) -> None:
        """Note a success."""
        if self._well_since is None:
            self._well_since = self._monotonic()

    def reset(self) -> None:
        """Make the next failure a first one, where one success is proof enough."""
        self._failures = 0
        self._well_since = None

    def failed(self, error: AgentError | None = None) -> float:
        """Note a failure, and return the seconds to wait before the next try.

        Args:
            error: What failed. A SupervisorError's Retry-After is waited for, and what it refused is tried rarely.
        """
        if self._well_since is not None and self._monotonic() - self._well_since >= self._stable_for:
            self._failures = 0
        self._well_since = None
        # Bounded, for 2.0 ** 1024 overflows after a long night.
        factor = 2.0 ** min(self._failures, 32)
        self._failures += 1
        if isinstance(error, SupervisorError):
            asked = min(error.retry_after or 0.0, LONGEST_RETRY_AFTER)
            if error.status in self._refusals:
                ceiling = min(REFUSED_CAP, REFUSED_FIRST * factor)
                return max(asked, ceiling / 2 + self._chance() * ceiling / 2)
            return asked + self._chance() * min(self._cap, self._first * factor)
        return self._chance() * min(self._cap, self._first * factor)
