"""Become a runtime: a program of its own that the agent starts, and that turns itself into the runtime by exec.

It is started as `python -I -S launch.py SPEC ERRORS LOCK`, three inherited file descriptors. It uses the standard
library only, because it runs without site-packages to be quick, and it runs outside of the agent's process because
there nothing may be done between fork and exec (other threads may hold any lock).

What makes a kill of the agent at any moment harmless:

- LOCK already holds the runtime's `flock` when this begins, and hands it on through exec: held means running.
- SPEC is a memory file that was complete before the fork; nothing more is needed from the agent.
- The record (`process.json`) is durable before exec, and pid and start ticks stay the same across exec.
- ERRORS closes itself at exec, so an empty one says success; it may be broken, then nobody reads it.
"""

import json
import os
import signal
import sys
import time
from typing import Any

EXIT_CODE = 127
"""What this program ends with when it could not become the runtime; the shell's code for a command not found."""

UMASK = 0o027
LOCK_NOTE = b"Held while the runtime runs: do not delete, not even when it seems unused.\n"


def start_ticks() -> int:
    """Read when this process began, in clock ticks since boot: field 22 of proc_pid_stat(5)."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - pathlib doubles the time that this program takes
        return int(file.read().rpartition(b")")[2].split()[19])


def timestamp(seconds: float) -> str:
    """Write a moment as RFC 3339 in UTC, with microseconds."""
    whole, fraction = divmod(int(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{fraction:06d}Z"


def write_record(path: str, record: dict[str, Any]) -> None:
    """Write the record whole and durably; the lock makes this the only writer, so the temporary name is fixed."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.new")  # noqa: PTH118 - as above
    with open(temporary, "w", encoding="utf-8", opener=lambda file, flags: os.open(file, flags, 0o640)) as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105 - as above
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def mark_used(lock: int) -> None:
    """Leave in the lock file that a record was written, so that one which is missing later is known to be lost."""
    if os.fstat(lock).st_size == 0:
        os.pwrite(lock, LOCK_NOTE, 0)
        os.fsync(lock)


def open_log(path: str) -> int:
    """Open the runtime's log for appending, at the beginning of a line."""
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
    size = os.fstat(log).st_size
    if size and os.pread(log, 1, size - 1) != b"\n":
        os.write(log, b"\n")
    os.close(log)
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def reset_signals() -> None:
    """Give the runtime default dispositions and an empty mask: ignored and blocked ones survive exec (signal(7))."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def report(errors: int, doing: str, error: Exception) -> None:
    """Tell the agent why the runtime does not come up; if it is gone, SIGPIPE or an error ends this program as well."""
    number = error.errno if isinstance(error, OSError) else None
    text = error.strerror if isinstance(error, OSError) else None
    os.write(errors, json.dumps({"doing": doing, "errno": number, "error": text or str(error)}).encode())


def main(descriptors: list[int]) -> int:
    """Do everything up to exec, which only returns by failing."""
    source, errors, lock = descriptors
    doing = "read what to start"
    try:
        os.set_inheritable(errors, False)
        with os.fdopen(source, "rb") as file:
            spec = json.load(file)
        os.umask(UMASK)
        doing = f"enter its working directory {spec['working_directory']}"
        os.chdir(spec["working_directory"])
        doing = f"open its log {spec['log']}"
        log = open_log(spec["log"])
        doing = f"write its record {spec['record']}"
        pid, ticks, began = os.getpid(), start_ticks(), time.time()
        incarnation = f"{spec['boot_id']}.{pid}.{ticks}"
        record = {"incarnation": incarnation, "pid": pid, "start_ticks": ticks, "started_at": timestamp(began)}
        write_record(spec["record"], {**record, **spec["facts"], "boot_id": spec["boot_id"]})
        mark_used(lock)
        doing = f"write to its log {spec['log']}"
        os.write(log, spec["marker"].replace("{incarnation}", incarnation).encode())
        doing = "execute it"
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        reset_signals()
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])  # noqa: S606 - no shell is wanted
    except Exception as error:  # noqa: BLE001 - whatever it is, the agent has to be told, and this program to end
        report(errors, doing, error)
    return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
