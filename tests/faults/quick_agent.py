"""Runs the real agent with short delays after failures, so that a campaign sees many failures in a minute.

As a program: `python -m tests.faults.quick_agent run --config FILE`. Nothing but the delays differs.
"""

import sys
from typing import Any

from agent.cli import main
from agent.link import backoff, held, receiver

FIRST, CAP = 0.02, 0.2
"""Seconds."""


def shorten_delays() -> None:
    """Bound every delay of this process that follows on a failure."""
    made = backoff.Backoff.__init__

    def shorter(self: backoff.Backoff, *, first: float = FIRST, cap: float = CAP, **more: Any) -> None:
        made(self, first=min(first, FIRST), cap=min(cap, CAP), **more)

    setattr(backoff.Backoff, "__init__", shorter)  # noqa: B010 - a method of somebody else's class
    backoff.REFUSED_FIRST = backoff.REFUSED_CAP = CAP
    receiver.LONGEST_STALL = CAP
    delays = held.Held.__init__.__kwdefaults__
    if delays is None or not {"missing_first", "missing_cap"} <= delays.keys():
        msg = "cannot shorten the delays: Held has other ones now"
        raise RuntimeError(msg)
    delays.update(missing_first=FIRST, missing_cap=CAP)


if __name__ == "__main__":
    shorten_delays()
    sys.exit(main())
