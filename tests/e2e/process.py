"""One long-running program of a rig (the Supervisor, the agent): started, killed and started again."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.waiting import until

FOREIGN = ("AGENT_", "IGGY_", "STANDIN_")
SYSTEMD = frozenset(
    {
        "CONFIGURATION_DIRECTORY",
        "CREDENTIALS_DIRECTORY",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "NOTIFY_SOCKET",
        "RUNTIME_DIRECTORY",
        "STATE_DIRECTORY",
        "SYSTEMD_EXEC_PID",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)


def clean_environment() -> dict[str, str]:
    """Copy this process's environment without anything that would change how our programs behave."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in SYSTEMD}


class Process:
    """A program that runs at most once at a time; its output is appended to one file.

    It has a session of its own, so a Ctrl-C on the terminal reaches the rig alone, which ends everything in order.

    Args:
        name: For people.
        log: Where its output goes.
    """

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._running: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._running is not None and self._running.poll() is None

    @property
    def pid(self) -> int:
        """The pid of its last run."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How its last run ended, negative for a signal; None while it runs."""
        return self._process.poll()

    def start(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it, with more variables than the clean ones.

        Raises:
            RuntimeError: It runs already.
        """
        if self.alive:
            msg = f"cannot start {self.name}: it runs already"
            raise RuntimeError(msg)
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                list(argv),
                env=clean_environment() | dict(environment or {}),
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self.alive:
            self._process.kill()
            self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end, and return its exit code, negative for a signal."""
        process = self._process
        await until(lambda: process.poll() is not None, f"{self.name} ends")
        return process.returncode

    async def terminate(self) -> int:
        """End it with SIGTERM, and return its exit code."""
        self.send(signal.SIGTERM)
        return await self.wait()

    def end(self, patience: float) -> None:
        """Make sure that it has ended: SIGTERM, and after so many seconds SIGKILL."""
        if not self.alive:
            return
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 25) -> str:
        """Return the end of its output."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        if self._running is None:
            msg = f"{self.name} was never started"
            raise RuntimeError(msg)
        return self._running
