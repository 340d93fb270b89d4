"""The log of a stand-in: coloured lines on stdout and the same without colour in a file, as Iggy writes them."""

import sys
import threading
import time
from pathlib import Path
from typing import TextIO

_COLOURS = {"INFO": "32", "WARN": "33", "ERROR": "31"}


class Console:
    """Writes log lines; `open_file` adds the file."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    def open_file(self, path: Path) -> None:
        """Write every further line to this file too."""
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def info(self, thread: str, target: str, message: str) -> None:
        """Write a line of level INFO."""
        self._write("INFO", thread, target, message)

    def warn(self, thread: str, target: str, message: str) -> None:
        """Write a line of level WARN."""
        self._write("WARN", thread, target, message)

    def error(self, thread: str, target: str, message: str) -> None:
        """Write a line of level ERROR."""
        self._write("ERROR", thread, target, message)

    def _write(self, level: str, thread: str, target: str, message: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        where = f"{thread} " if thread else ""
        coloured = (
            f"\x1b[2m{stamp}\x1b[0m \x1b[{_COLOURS[level]}m{level:>5}\x1b[0m {where}"
            f"\x1b[2m{target}\x1b[0m\x1b[2m:\x1b[0m {message}\n"
        )
        with self._lock:
            sys.stdout.write(coloured)
            sys.stdout.flush()
            if self._file is not None:
                self._file.write(f"{stamp} {level:>5} {where}{target}: {message}\n")


def panic(thread: str, message: str) -> None:
    """Write to stderr what Rust writes when a thread panics."""
    note = "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace"
    sys.stderr.write(f"\nthread '{thread}' panicked at stand-in:\n{message}\n{note}\n")
    sys.stderr.flush()


def usage_error(program: str, argument: str, synopsis: str) -> int:
    """Write the error of an unexpected argument to stderr and return its exit code."""
    usage = f"Usage: {program}{synopsis}"
    sys.stderr.write(
        f"error: unexpected argument '{argument}' found\n\n{usage}\n\nFor more information, try '--help'.\n"
    )
    return 2
