"""One agent on a state folder."""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import JournalError, JournalInUseError

_WIDTH = 10
"""Characters; no pid is longer."""
_WRITTEN_WITHIN = 0.5
"""Seconds in which whoever took the lock has written its number, unless it gets no processor."""


class StateLock:
    """Holds a state folder for one agent, until the process ends or leaves the context.

    Raises:
        JournalInUseError: Another process holds it; says which.
        JournalError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._hold(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            msg = f"cannot use the state folder {self._path.parent}: {error.strerror or error}"
            raise JournalError(msg, hint="create it, owned by the agent's user, or set agent.state_dir") from error
        self._descriptor = descriptor
        return self

    def _hold(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor) or "unknown"
            msg = f"cannot use the state folder {self._path.parent}: another agent holds it, process {holder}"
            raise JournalInUseError(msg, hint="only one agent runs on a state folder; stop the other one") from error
        # In place and as long as any: on a full disk, a block that is given back first might be gone.
        os.pwrite(descriptor, f"{os.getpid():<{_WIDTH}}\n".encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str | None:
    """Read the number of the process that holds the lock; None when it is not known.

    It writes it right after it took the lock. Until then the file has that of the one before, which is gone.
    """
    deadline = time.monotonic() + _WRITTEN_WITHIN
    while True:
        number = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        if number.isascii() and number.isdigit() and Path(f"/proc/{number}").exists():
            return number
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)
