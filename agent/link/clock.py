"""The Supervisor's clock, as this node knows it: what its answers said, carried on by a clock that nobody can set.

The expiry of an activity is judged by the Supervisor's clock, so a node whose clock is wrong, or is set while the agent
runs, does the right thing all the same.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from agent.conditions import Conditions
from agent.link.dates import http_date

SKEWED = "clock_skew"
"""Condition: the two clocks are more than `SKEW_SHOWN` apart."""
SKEW_SHOWN = timedelta(seconds=60)
LONGEST_ROUND_TRIP = 10.0
"""Seconds; an answer that took longer (a held poll) says too little about now."""
STEP = timedelta(seconds=5)
"""A difference above this is a clock that was set, and is taken at once; below it the offset follows slowly."""
SMOOTHING = 0.25
SENSIBLE_YEARS = range(2020, 2200)
"""A time outside is nonsense, and would overflow the arithmetic of dates sooner or later."""


def since_boot() -> float:
    """Return the seconds since the machine started, suspended ones included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SupervisorClock:
    """The Supervisor's time at the last answer plus what passed since; used from the event loop only.

    Args:
        conditions: Shows that the node's clock is off.
        elapsed: Returns seconds of a clock that is never set, and goes on while the machine is suspended.
    """

    def __init__(self, conditions: Conditions, *, elapsed: Callable[[], float] = since_boot) -> None:
        self._conditions = conditions
        self._elapsed = elapsed
        self._sample: tuple[datetime, float] | None = None
        self._precise = False
        self._doubt = timedelta()
        """How wrong the last precise time can have been that was taken as it was."""
        self._dates_agree = True

    @property
    def known(self) -> bool:
        """Whether an answer told the time since the agent started; until then it is the node's own that is told."""
        return self._sample is not None

    def now(self) -> datetime:
        """Tell the Supervisor's time, in UTC; the node's own until an answer came."""
        if self._sample is None:
            return datetime.now(UTC)
        time_then, elapsed_then = self._sample
        return time_then + timedelta(seconds=self._elapsed() - elapsed_then)

    @property
    def offset(self) -> timedelta:
        """How far the Supervisor's clock is ahead of the node's."""
        return self.now() - datetime.now(UTC) if self.known else timedelta()

    def learn(self, server_time: datetime, *, round_trip: float, date: str | None = None) -> None:
        """Learn from the `server_time` of an answer that arrived just now.

        Args:
            server_time: Read by the Supervisor somewhere between the call and its answer; the middle is assumed.
            round_trip: Seconds between the call and its answer.
            date: The Date header of the same answer; tells whether that header follows the Supervisor's clock.
        """
        if round_trip > LONGEST_ROUND_TRIP or server_time.year not in SENSIBLE_YEARS:
            return
        stated = http_date(date)
        # Something between may write its own Date; then the two would set this clock back and forth for ever.
        self._dates_agree = stated is None or abs(stated - server_time) <= STEP
        half = timedelta(seconds=round_trip / 2)
        time_now = server_time + half
        difference = time_now - self.now()
        better = half * 2 < self._doubt
        if self._precise and not better and abs(difference) <= STEP + half:
            # What the time on the way explains is no error of this clock: the answer may have waited here, unread.
            unexplained = max(abs(difference) - half, timedelta())
            time_now = self.now() + (unexplained if difference > timedelta() else -unexplained) * SMOOTHING
        else:
            self._doubt = half
        self._precise = True
        self._take(time_now)

    def learn_date(self, header: str | None, *, round_trip: float) -> None:
        """Learn from the Date header of an answer.

        It counts to the second only, so once there was something better it just corrects a clock that was set.
        """
        date = http_date(header)
        if date is None or round_trip > LONGEST_ROUND_TRIP or date.year not in SENSIBLE_YEARS:
            return
        half = timedelta(seconds=round_trip / 2)
        time_now = date + timedelta(seconds=0.5) + half
        if self._precise:
            # Half the round trip is how wrong the middle of it can be.
            if not self._dates_agree or abs(time_now - self.now()) <= STEP + half:
                return
            self._precise = False
        self._take(time_now)

    def _take(self, time_now: datetime) -> None:
        self._sample = time_now, self._elapsed()
        offset = self.offset
        if abs(offset) <= SKEW_SHOWN:
            self._conditions.clear(SKEWED)
            return
        seconds = round(abs(offset).total_seconds())
        direction = "behind" if offset > timedelta() else "ahead of"
        self._conditions.set(
            SKEWED,
            f"the clock of this node is {seconds} s {direction} the Supervisor's",
            hint="expiries are judged by the Supervisor's clock all the same; check time synchronisation (timedatectl)",
        )
