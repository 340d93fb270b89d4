"""What a stand-in tells of itself and its machine in `/stats`."""

import os
import time
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_used() -> int:
    """Read the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGE


def memory_total() -> int:
    """Read the memory of the machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * PAGE


def memory_available() -> int:
    """Read the free memory of the machine, in bytes."""
    return os.sysconf("SC_AVPHYS_PAGES") * PAGE


def threads() -> int:
    """Count the threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def cpu_load() -> float:
    """Read the load of the machine, in percent of its processors."""
    return os.getloadavg()[0] * 100 / (os.cpu_count() or 1)


class Clock:
    """When this process began and for how long it has run, in microseconds."""

    def __init__(self) -> None:
        self._wall, self._monotonic = time.time(), time.monotonic()

    @property
    def start_time(self) -> int:
        """The start in microseconds since 1970."""
        return int(self._wall * 1_000_000)

    @property
    def run_time(self) -> int:
        """The microseconds since the start."""
        return int((time.monotonic() - self._monotonic) * 1_000_000)
