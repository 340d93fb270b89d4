"""Ids and sequences that are never used twice, also not after an old copy of the store was put back.

Each is `max(last + 1, clock-based)`: `last + 1` covers a clock that was set back and two in the same moment, the clock
covers a store that has forgotten what it gave out. Not covered: both at once.
"""

import sqlite3

EPOCH_MICROSECONDS = 1_577_836_800_000_000
"""2020-01-01T00:00:00Z: keeps ids above 2^53 (as the public API's are) and below 2^63 until 2089."""
PER_MILLISECOND_BITS = 22


def clock_id(now: int) -> int:
    """Return the lowest id that the clock allows: milliseconds since 2020, with room for four million each."""
    return (now - EPOCH_MICROSECONDS) // 1000 << PER_MILLISECOND_BITS


def allocate_ids(connection: sqlite3.Connection, count: int, now: int) -> range:
    """Take `count` ids that nobody ever had; the caller's transaction makes them durable."""
    (last,) = connection.execute(
        "UPDATE counters SET last = max(last + 1, ?) + ? WHERE name = 'id' RETURNING last", (clock_id(now), count - 1)
    ).fetchone()
    return range(last - count + 1, last + 1)


def allocate_id(connection: sqlite3.Connection, now: int) -> int:
    """Take one id that nobody ever had."""
    return allocate_ids(connection, 1, now)[0]


def next_sequence(last: int, now: int) -> int:
    """Return a node's next sequence: microseconds since 2020, or one more than its last."""
    return max(last + 1, now - EPOCH_MICROSECONDS)
