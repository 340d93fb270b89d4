"""Every run of a runtime, as its program itself recorded it: counted without asking the agent."""

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.protocol import RuntimeName

PROGRAM = {RuntimeName.IGGY: "iggy-server", RuntimeName.CONNECTORS: "iggy-connectors"}


@dataclass(frozen=True, slots=True)
class Birth:
    """One run: its pid, and when it began, in clock ticks since boot, which together name one process."""

    program: str
    pid: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Whether that very process still runs; one that ended and was not reaped yet does not.

        A killed process is gone with its last thread: the first one may be a zombie while others still hold its lock.
        """
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        threads = int(fields[17])
        return int(fields[19]) == self.start_ticks and (fields[0] not in {"Z", "X"} or threads > 1)

    @property
    def environment(self) -> dict[str, str]:
        """What it was started with: proc_pid_environ(5)."""
        entries = Path(f"/proc/{self.pid}/environ").read_bytes().decode().split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to that very process, if it is still there."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def read_births(file: Path, runtime: RuntimeName | None = None) -> list[Birth]:
    """Read the runs so far, in order; of one runtime, or of all. What is being written just now is not there yet."""
    try:
        lines = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return []
    return [
        Birth(record["program"], record["pid"], record["start_ticks"])
        for record in map(json.loads, lines)
        if record["event"] == "start" and (runtime is None or record["program"] == PROGRAM[runtime])
    ]
