"""The real agent with a wall clock of its own: `python -m tests.faults.clocked_agent FILE run …`.

FILE holds how many seconds it is ahead of the machine's, and may change at any time. What is replaced, before anything
of the agent is loaded, is what Python code asks: `time.time`, `datetime.now` and `datetime.utcnow`. The monotonic
clocks are left alone, as they are when a clock is set; and so are the runtimes, and the launcher that becomes them.

(libfaketime would reach the C library too, but with it `time.sleep` of this Python fails with EINVAL.)
"""

import datetime as dt
import sys
import time
from pathlib import Path
from typing import Any

TRUE_TIME = time.time
TrueDatetime = dt.datetime
FILE = Path(sys.argv[1])


def ahead() -> float:
    """Read how many seconds the clock is ahead."""
    return float(FILE.read_text())


class _AnyDatetime(type):
    """What the libraries in C make is of the true class, and counts as one."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, TrueDatetime)


class ShiftedDatetime(TrueDatetime, metaclass=_AnyDatetime):
    """Tells another time, and is the same else."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        """Tell the time of this clock."""
        return TrueDatetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        """Tell it in UTC, without saying so."""
        return TrueDatetime.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make one of the true class."""
        return TrueDatetime.__new__(TrueDatetime, *args, **kwargs)


def main() -> int:
    """Run the agent."""
    setattr(time, "time", lambda: TRUE_TIME() + ahead())  # noqa: B010 - replaced from outside
    setattr(dt, "datetime", ShiftedDatetime)  # noqa: B010 - as above
    from agent import cli

    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
