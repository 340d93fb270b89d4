"""How a stand-in ends: by a signal, by a fault, or by itself."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from tests.standins.faults import Faults


class Stop:
    """Waits for one of the signals that mean a graceful stop.

    Args:
        faults: `ignore_sigterm` makes it deaf.
        note: is told of each signal that is ignored.
    """

    def __init__(self, faults: Faults, note: Callable[[str], None]) -> None:
        self._faults = faults
        self._note = note
        self._asked = False
        self._woken, self._wake = os.pipe()

    def listen(self, signals: Iterable[signal.Signals]) -> None:
        """Take over these signals; until then they end the process.

        A signal may reach any thread, which alone would not end the wait of the main one: so each writes to a pipe.
        """
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        for one in signals:
            signal.signal(one, self._take)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until a stop is asked for, at most for so many seconds; tell whether it was."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._asked:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if select.select([self._woken], [], [], left)[0]:
                os.read(self._woken, 64)
        return True

    def drain(self, usual: float) -> None:
        """Take the usual time in seconds, or that of the fault `slow_drain`, to drain."""
        slow = self._faults.seconds("slow_drain")
        time.sleep(usual if slow is None else slow)

    def _take(self, number: int, _frame: object) -> None:
        if self._faults.on("ignore_sigterm"):
            self._note(f"stand-in: ignoring {signal.Signals(number).name}")
        elif self._asked:
            self._note("stand-in: a second signal is ignored; already shutting down")
        else:
            self._asked = True


def default_signals() -> None:
    """Let the signals end the process at once, SIGINT too, which Python turns into an exception."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave(code: int) -> NoReturn:
    """End the process at once with this exit code, whatever its threads do."""
    with contextlib.suppress(OSError):  # whoever read our output may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def exit_at_start(faults: Faults) -> None:
    """End at once where the fault `exit_at_start:CODE` says so."""
    code = faults.get("exit_at_start")
    if code is not None:
        sys.stderr.write("Error: stand-in: fault exit_at_start\n")
        leave(int(code))


def leave_child(faults: Faults) -> None:
    """Fork a child that goes on, and end at once, where the fault `leaves_child:SECONDS` says so."""
    seconds = faults.seconds("leaves_child")
    if seconds is None:
        return
    sys.stderr.write("stand-in: leaving a child: fault leaves_child\n")
    if os.fork() == 0:
        time.sleep(seconds)
    leave(0)


def leave_later(faults: Faults, note: Callable[[str], None]) -> None:
    """End the process by itself later, where the fault `ready_then_dies:SECONDS[:CODE]` says so (code 1 by default)."""
    argument = faults.get("ready_then_dies")
    if argument is None:
        return
    seconds, _, code = argument.partition(":")

    def die() -> None:
        note("stand-in: ending by itself: fault ready_then_dies")
        leave(int(code or "1"))

    timer = threading.Timer(float(seconds), die)
    timer.daemon = True
    timer.start()


def crashes_now(faults: Faults, folder: Path) -> bool:
    """Tell whether this start is to crash: with `crash_loop` each, with `crash_loop:N` the first N in this folder."""
    argument = faults.get("crash_loop")
    if argument is None:
        return False
    if argument == "":
        return True
    record = folder / "standin-crashes"
    crashes = len(record.read_text(encoding="utf-8")) if record.exists() else 0
    if crashes >= int(argument):
        return False
    record.write_text("x" * (crashes + 1), encoding="utf-8")
    return True
