"""A hasty agent: what takes it minutes in talking to the Supervisor takes seconds, so that storms fit in a test.

Only the ceilings of its delays and its patience in reading are smaller. The rules stay: delays double from the same
first one, are drawn from nothing to their ceiling, and Retry-After is waited for.
"""

from typing import Any

from agent.link import backoff
from agent.link.backoff import Backoff
from agent.link.client import SupervisorClient

LONGEST_DELAY = 1.0
"""Seconds instead of 60; also those after a refusal, instead of 600."""
STABLE_FOR = 2.0
"""Seconds without a failure, instead of 30, after which the next one is a first one."""
READ_TIMEOUT = 2.0
"""Seconds of silence in a call, instead of 60."""
HELD_MARGIN = 1.0
"""Seconds of silence past a poll's wait, instead of 15."""


def install() -> None:
    """Make the agent of this process hasty; call it once, before the agent runs."""
    _default(Backoff, cap=LONGEST_DELAY, stable_for=STABLE_FOR)
    _default(SupervisorClient, read_timeout=READ_TIMEOUT, held_margin=HELD_MARGIN)
    backoff.REFUSED_FIRST = backoff.REFUSED_CAP = LONGEST_DELAY


def _default(kind: Any, **values: float) -> None:
    unknown = values.keys() - kind.__init__.__kwdefaults__.keys()
    if unknown:
        msg = f"{kind.__name__} has no {', '.join(unknown)}"
        raise TypeError(msg)
    kind.__init__.__kwdefaults__.update(values)
