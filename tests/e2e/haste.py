"""A hasty agent: what takes it minutes in talking to the Supervisor takes seconds, so that storms fit in a test.

Only the ceilings of its delays and its patience in reading are smaller. The rules stay: delays double, are drawn from
nothing to their ceiling, and Retry-After is waited for.
"""

import functools
from typing import Any

from agent.link import backoff
from agent.link.backoff import Backoff
from agent.link.client import SupervisorClient

LONGEST_DELAY = 1.0
"""Seconds instead of up to an hour; also those after a refusal."""
STABLE_FOR = 2.0
"""Seconds without a failure, instead of 30, after which the next one is a first one."""
READ_TIMEOUT = 2.0
"""Seconds of silence in a call, instead of 60."""
HELD_MARGIN = 1.0
"""Seconds of silence past a poll's wait, instead of 15."""


def install() -> None:
    """Make the agent of this process hasty; call it once, before the agent runs."""
    _shorten(Backoff, first=LONGEST_DELAY, cap=LONGEST_DELAY, stable_for=STABLE_FOR)
    _shorten(SupervisorClient, read_timeout=READ_TIMEOUT, held_margin=HELD_MARGIN)
    backoff.REFUSED_FIRST = backoff.REFUSED_CAP = LONGEST_DELAY


def _shorten(kind: Any, **longest: float) -> None:
    """Let times that are given to a class, or are its defaults, be so long at most."""
    original = kind.__init__
    defaults: dict[str, float] = original.__kwdefaults__

    @functools.wraps(original)
    def shorter(self: Any, **given: Any) -> None:
        times = {name: min(most, given.get(name, defaults[name])) for name, most in longest.items()}
        original(self, **{**given, **times})

    kind.__init__ = shorter
