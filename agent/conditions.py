"""What is wrong with the agent right now: set where it is noticed, shown everywhere (status, heartbeat, log).

A condition has a stable code, a sentence, a hint and since when. Setting one again only refreshes its sentence; it is
logged when it begins and when it ends, so a fault that lasts a night is two lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is wrong."""

    code: str
    message: str
    hint: str | None
    since: datetime


class Conditions:
    """The set of what is wrong, by code; used from the event loop only."""

    def __init__(self) -> None:
        self._by_code: dict[str, Condition] = {}
        self._listeners: list[Callable[[], None]] = []

    def set(self, code: str, message: str, *, hint: str | None = None) -> None:
        """Say that something is wrong."""
        known = self._by_code.get(code)
        if known is not None:
            self._by_code[code] = replace(known, message=message, hint=hint)
            return
        self._by_code[code] = Condition(code, message, hint, datetime.now(UTC))
        log.warning("condition.began", condition=code, message=message, hint=hint)
        self._notify()

    def clear(self, code: str) -> None:
        """Say that it is over; nothing happens if it was not set."""
        if condition := self._by_code.pop(code, None):
            seconds = (datetime.now(UTC) - condition.since).total_seconds()
            log.info("condition.ended", condition=code, seconds=round(seconds, 3))
            self._notify()

    def all(self) -> list[Condition]:
        """List them, oldest first."""
        return sorted(self._by_code.values(), key=lambda condition: condition.since)

    def __contains__(self, code: object) -> bool:
        return code in self._by_code

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever one begins or ends."""
        self._listeners.append(listener)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
