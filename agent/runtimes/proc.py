"""What /proc says of processes: proc_pid_stat(5), proc_pid_fdinfo(5)."""

import errno
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Stat:
    """One process, as `/proc/PID/stat` has it.

    Args:
        start_ticks: When it began, in clock ticks since boot; with the pid and the boot id it names one process for
            ever, which a wall-clock time does not.
        cpu_seconds: User and system time of all its threads.
        memory_bytes: Resident.
    """

    start_ticks: int
    cpu_seconds: float
    memory_bytes: int


def read_stat(pid: int) -> Stat | None:
    """Read one process; None when there is none with this pid."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()  # the name before may hold spaces and brackets; the third field is first
    ticks = os.sysconf("SC_CLK_TCK")
    return Stat(
        start_ticks=int(fields[19]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / ticks,
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def open_process(pid: int, start_ticks: int) -> int | None:
    """Open a pidfd of exactly the process that began at `start_ticks`; None when it is gone.

    A process that ended and was not reaped yet still opens. The ticks are read after the pidfd is open, so a pid that
    changed hands in between does not match.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENOENT}:  # the latter two: now the id of a thread
            return None
        raise
    stat = read_stat(pid)
    if stat is None or stat.start_ticks != start_ticks:
        os.close(descriptor)
        return None
    return descriptor


def has_ended(pidfd: int) -> bool:
    """Tell whether a process, with all of its threads, has ended: pidfd_open(2)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def holders_of_flock(path: Path) -> list[int]:
    """Find the processes that hold a file's exclusive `flock`: who took it, and who inherited it.

    Only those of the agent's own user can be seen. Walks all of /proc, so it is for the rare moment.
    """
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return sorted(pid for pid in pids if _holds(pid, wanted.st_dev, wanted.st_ino))


def _holds(pid: int, device: int, inode: int) -> bool:
    with suppress(OSError):  # it ended meanwhile, or it belongs to somebody else
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                seen = descriptor.stat()
                if (seen.st_dev, seen.st_ino) == (device, inode):
                    lines = (PROC / str(pid) / "fdinfo" / descriptor.name).read_text().splitlines()
                    if any(line.startswith("lock:") and "FLOCK" in line and "WRITE" in line for line in lines):
                        return True
    return False


def signal_holder(pid: int, path: Path, number: signal.Signals) -> None:
    """Send a signal to a process if it still holds a file's `flock`, and to no other that has its pid by now."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            wanted = path.stat()
            if _holds(pid, wanted.st_dev, wanted.st_ino):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def command_line(pid: int) -> list[str]:
    """Read what a process was started with; empty when it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
