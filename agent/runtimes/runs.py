"""What the disk says of the runs of a runtime that the agent starts itself: its lock, its record, its last exit."""

import fcntl
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.files import write_atomic
from agent.protocol import Time
from agent.runtimes.driver import Incarnation


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Run(_Record):
    """One run, as its launcher recorded it before it became the runtime: `process.json`."""

    incarnation: Incarnation
    pid: int
    start_ticks: int
    boot_id: str
    started_at: Time
    release: str | None = None
    config_sha256: str | None = None


class Exit(_Record):
    """How a run ended: `exit.json`."""

    incarnation: Incarnation
    exit_code: int | None
    """128 + signal when a signal ended it; None for an adopted process, which only its parent could ask."""
    requested: bool
    """Whether the agent had asked it to stop."""
    ended_at: Time

    @classmethod
    def of(cls, run: Run, exit_code: int | None, *, requested: bool) -> Self:
        """Note that a run ended just now."""
        return cls(incarnation=run.incarnation, exit_code=exit_code, requested=requested, ended_at=datetime.now(UTC))


class RunFiles:
    """The files of one runtime's runs. All methods block.

    Args:
        folder: `<state>/runtimes/<runtime>`.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = folder / "lock"
        self.record = folder / "process.json"
        self._exit = folder / "exit.json"

    def last_run(self) -> tuple[Run | None, bool]:
        """Return the last run, and whether that is known: a record that was there and cannot be read is not."""
        try:
            return Run.model_validate_json(self.record.read_bytes()), True
        except FileNotFoundError:
            return None, not self._was_used()
        except ValidationError:
            return None, False

    def last_exit(self, run: Run) -> Exit | None:
        """Return how a run ended; one that cannot be read is not known, which is no reason to refuse anything."""
        try:
            ended = Exit.model_validate_json(self._exit.read_bytes())
        except (OSError, ValidationError):
            return None
        return ended if ended.incarnation == run.incarnation else None

    def keep_exit(self, ended: Exit) -> None:
        """Keep how a run ended, so that an agent that starts later knows it too.

        Raises:
            OSError: It could not be written.
        """
        write_atomic(self._exit, ended.model_dump_json().encode(), mode=0o640)

    def take_lock(self) -> int | None:
        """Take the lock that a running runtime holds; None when something holds it. The descriptor is the caller's."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def lock_is_held(self) -> bool:
        """Tell whether something runs, or is about to; takes a shared lock for a moment, which excludes nobody else."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _was_used(self) -> bool:
        """Tell whether a record was ever written: its writer marks the lock file right after."""
        try:
            return self.lock.stat().st_size > 0
        except FileNotFoundError:
            return False


def find_command(command: str, *, path: str | None, working_directory: Path) -> bool:
    """Tell whether there is a file to execute, as execvp(3) looks for it; one that may not be executed counts too.

    A missing permission is found by executing it, with its own sentence.
    """
    if "/" in command:
        return (working_directory / command).exists()
    return shutil.which(command, mode=os.F_OK, path=path if path is not None else os.defpath) is not None
