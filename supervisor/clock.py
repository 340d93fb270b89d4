"""Time as it is stored: microseconds since 1970, of the wall clock."""

import time
from datetime import UTC, datetime, timedelta

from agent.protocol import format_time

SECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_microseconds() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1000


def from_microseconds(moment: int) -> datetime:
    """Return a stored time as a moment in UTC."""
    return _EPOCH + timedelta(microseconds=moment)


def to_microseconds(moment: datetime) -> int:
    """Return a moment as it is stored."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def exact_time(microseconds: int) -> str:
    """Write a stored time as the agent protocol does: RFC 3339, UTC, nothing cut off."""
    return format_time(from_microseconds(microseconds))


def whole_time(microseconds: int | None) -> str | None:
    """Write a stored time as the public API does: RFC 3339, UTC, whole seconds."""
    return None if microseconds is None else format_time(from_microseconds(microseconds).replace(microsecond=0))
