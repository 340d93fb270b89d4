"""Ending the runtimes that a rig leaves: they survive the agent by design."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.births import Birth, read_births

PATIENCE = 5.0
"""Seconds until a process that was killed has to be gone."""


def end_runtimes(state_dir: Path, starts_file: Path) -> None:
    """Kill every run that the rig's agent may have started, and see that nothing holds a runtime's lock any more.

    The agent must have ended. A launcher that it left on its way becomes a runtime within moments, so it is waited for.

    Raises:
        TimeoutError: Something is still there.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        left = [run for run in (*read_births(starts_file), *_recorded(state_dir)) if run.alive]
        for run in left:
            run.send(signal.SIGKILL)
        held = [lock for lock in state_dir.glob("runtimes/*/lock") if _is_held(lock)]
        if not left and not held:
            return
        if time.monotonic() >= deadline:
            msg = f"cannot end the runtimes: {left} still run, {held} are still held"
            raise TimeoutError(msg)
        time.sleep(0.01)


def _recorded(state_dir: Path) -> Iterator[Birth]:
    for file in state_dir.glob("runtimes/*/process.json"):
        try:
            record = json.loads(file.read_bytes())
            yield Birth(file.parent.name, record["pid"], record["start_ticks"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError):  # a test may damage it on purpose
            continue


def _is_held(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
