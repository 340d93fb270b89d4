"""A durable record of each start and each graceful end, so that a test counts incarnations without asking the agent."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path


def start_ticks() -> int:
    """Read when this process began, in clock ticks since boot (proc(5), field 22 of /proc/self/stat)."""
    return int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])


def record(environ: Mapping[str, str], event: str, program: str, **more: object) -> None:
    """Append one JSON line to the file named by `STANDIN_STARTS_FILE`, durable before this returns.

    Args:
        environ: the environment; without the variable nothing is written.
        event: `start` or `end`.
        program: `iggy-server` or `iggy-connectors`.
        more: further fields of the line.
    """
    path = environ.get("STANDIN_STARTS_FILE")
    if not path:
        return
    line = {
        "event": event,
        "program": program,
        "pid": os.getpid(),
        "start_ticks": start_ticks(),
        "monotonic": time.monotonic(),
        "argv": sys.orig_argv,
        **more,
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
