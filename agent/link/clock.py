"""The Supervisor's clock, as this node knows it: the node's own, put right by what the answers say.

The expiry of an activity is judged by the Supervisor's clock, so a node whose clock is wrong does the right
thing all the same.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from agent.conditions import Conditions

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


class SupervisorClock:
    """Wall clock plus the offset learnt; used from the event loop only."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._offset: timedelta | None = None
        self._precise = False

    def now(self) -> datetime:
        """Tell the Supervisor's time, in UTC; the node's own until an answer came."""
        return datetime.now(UTC) + self.offset

    @property
    def offset(self) -> timedelta:
        """How far the Supervisor's clock is ahead of the node's."""
        return self._offset or timedelta()

    def learn(self, server_time: datetime, *, round_trip: float) -> None:
        """Learn from the `server_time` of an answer that arrived just now.

        Args:
            server_time: Read by the Supervisor somewhere between the call and its answer; the middle is assumed.
            round_trip: Seconds between the call and its answer.
        """
        if self._learn(server_time, round_trip):
            self._precise = True

    def learn_date(self, header: str | None, *, round_trip: float) -> None:
        """Learn from the Date header of an answer; counts to the second only, so just until something better came."""
        if header is None or self._precise:
            return
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return
        if date.tzinfo is not None:
            self._learn(date + timedelta(seconds=0.5), round_trip)

    def _learn(self, server_time: datetime, round_trip: float) -> bool:
        if round_trip > LONGEST_ROUND_TRIP or server_time.year not in SENSIBLE_YEARS:
            return False
        sample = server_time - (datetime.now(UTC) - timedelta(seconds=round_trip / 2))
        if self._offset is None or not self._precise or abs(sample - self._offset) > STEP:
            self._offset = sample
        else:
            self._offset += (sample - self._offset) * SMOOTHING
        self._judge(self._offset)
        return True

    def _judge(self, offset: timedelta) -> None:
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
