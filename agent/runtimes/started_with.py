"""Tell which config a run of a systemd unit was started with, where that can be known.

systemd does not say what it read from EnvironmentFile=. It reads the file after it gave the run its identity and the
run before has ended, and at once before it starts the process. So a run has the current release if another run, or
none, was seen after `current` was switched to it, as before each call; or, where nothing was seen, if its times say
that it began after the switch. Of any other run it is not known, unless this agent saw it before the switch.
"""

import time
from contextlib import suppress
from pathlib import Path

from agent.errors import Rejection
from agent.protocol import RuntimeState
from agent.runtimes.driver import Incarnation
from agent.runtimes.releases import Releases
from agent.runtimes.units import Unit

MARGIN = 0.05
"""Seconds that a run must have begun after the switch: the kernel's clock for files runs a little behind."""
READING = 1.0
"""Seconds that may pass between the reading of the file and the start of the process, on a machine that is busy."""


class StartedWith:
    """What is known of the runs of one unit. Its methods block.

    Args:
        releases: Of the runtime.
        environment_file: What the unit has to read for a release to reach it.
    """

    def __init__(self, releases: Releases, environment_file: Path) -> None:
        self._releases = releases
        self._environment_file = environment_file
        self._run: Incarnation | None = None
        self._sha256: str | None = None
        self._before: tuple[float | None, Incarnation | None] | None = None

    def seen_before_call(self, unit: Unit) -> str | None:
        """Remember what is there before a call, while nothing is switched; returns what `find_out` does."""
        self._before = None
        with suppress(OSError):  # a folder that cannot be read stands in the way of a start only
            self._before = self._releases.switched_at(), unit.incarnation
        return self.find_out(unit) if unit.state is RuntimeState.RUNNING else None

    def is_read_by(self, unit: Unit) -> bool:
        """Tell whether the unit reads the current release at all."""
        return any(Path(path) == self._environment_file for path in unit.environment_files())

    def remembered(self, run: Incarnation | None) -> str | None:
        """Return the checksum of a run's release if that was found out before; does not block."""
        return self._sha256 if run is not None and run == self._run else None

    def find_out(self, unit: Unit) -> str | None:
        """Return the checksum of the release that the unit's run was started with; None when that is not known."""
        if known := self.remembered(unit.incarnation):
            return known
        if not self.is_read_by(unit):
            return None
        try:
            switched_at = self._releases.switched_at()
            self._releases.environment()  # systemd passes over a file that is lost
            release = self._releases.current()
            still = self._releases.switched_at() == switched_at
        except (Rejection, OSError):  # a release that cannot be read is refused where it is used
            return None
        if release is None or switched_at is None or not still:
            return None
        if not self._is_new_since(switched_at, unit.incarnation) and _began_at(unit) <= switched_at + MARGIN:
            return None
        self._run, self._sha256 = unit.incarnation, release.sha256
        return release.sha256

    def _is_new_since(self, switched_at: float, run: Incarnation | None) -> bool:
        if self._before is None:
            return False
        then, before = self._before
        return then == switched_at and run is not None and run != before


def _began_at(unit: Unit) -> float:
    """Return the earliest moment at which the file can have been read for its run, in seconds since the epoch."""
    return max(_moment(unit, "InactiveEnterTimestamp"), _moment(unit, "ExecMainStartTimestamp") - READING)


def _moment(unit: Unit, name: str) -> float:
    """Return a moment of a unit on today's clock.

    The wall clock may have been set since; then the time that passed since, which no one can set, tells another moment
    than what systemd wrote down, and the earlier one counts.
    """
    passed = time.monotonic() - unit.number(f"{name}Monotonic") / 1e6
    return min(unit.number(name) / 1e6, time.time() - passed)
