"""The log of a runtime that the agent starts itself: kept bounded, and read run by run from its end.

The runtime holds its log open for appending, by itself: a pipe would break it when the agent dies. So rotation has to
copy and truncate; what is written between the last byte copied and the truncation is lost, which is rare and short.
A marker line, written before each run, divides the runs; so a run's lines are found also after any rotation.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from agent.runtimes.driver import Incarnation

MARKER = "--- iggy-agent: run {incarnation} ---\n"
_MARKER = re.compile(rb"--- iggy-agent: run (\S+) ---")

_LONGEST_MARKER = 256
_CHUNK = 64 * 1024
_NOT_TEXT = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements: ECMA-48, control sequences
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|[\x00-\x08\x0b-\x1f\x7f]"
)


class RunNotInLogError(Exception):
    """The lines of a run are not in the log any more."""


class LogFile:
    """One log and its older parts `.1`, `.2`, … All methods block.

    Args:
        path: The log; its folder has to exist before the runtime starts.
        max_bytes: Size past which it is rotated; also how much of it is kept then.
        keep: How many older parts are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep

    def rotate(self) -> bool:
        """Move the content to `.1` if there is too much of it, and say whether that was done.

        A crash on the way leaves lines twice, never a gap.

        Raises:
            OSError: The copy could not be written; the log is as it was.
        """
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return False
        if size <= self._max_bytes:
            return False
        copy = self.path.with_name(f".{self.path.name}.rotating")
        self._older(self._keep).unlink(missing_ok=True)
        try:
            with self.path.open("r+b") as log, copy.open("wb") as target:
                os.fchmod(target.fileno(), 0o640)
                log.seek(size - self._max_bytes)
                shutil.copyfileobj(log, target, _CHUNK)
                target.flush()
                self._shift()
                copy.replace(self._older(1))
                shutil.copyfileobj(log, target, _CHUNK)  # what came meanwhile
                log.truncate(0)
        finally:
            copy.unlink(missing_ok=True)
        return True

    def tail(self, incarnation: Incarnation, *, latest: bool, max_bytes: int) -> list[str]:
        """Return the last lines of one run, oldest first, without colours.

        Args:
            incarnation: Which run.
            latest: Whether it is the last one, so that lines without a marker after them are its own.
            max_bytes: Most that is returned.

        Raises:
            RunNotInLogError: They were rotated away, or it never wrote a line.
            OSError: The log cannot be read.
        """
        lines: list[bytes] = []
        size = 0
        for line in self._backwards(max_bytes):
            if match := _MARKER.fullmatch(line):
                if match[1].decode(errors="replace") == incarnation:
                    break
                lines, size, latest = [], 0, False  # they are of a later run
            elif size < max_bytes:
                lines.append(line[-(max_bytes - size) :])
                size += len(line) + 1
            elif latest:
                break
        else:
            if not (latest and lines):
                raise RunNotInLogError
        return [_NOT_TEXT.sub("", line.decode(errors="replace")) for line in reversed(lines)]

    def _shift(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            if self._older(number).exists():
                self._older(number).replace(self._older(number + 1))

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _backwards(self, max_bytes: int) -> Iterator[bytes]:
        """Yield the lines of all parts from the last to the first; of a very long one only the end."""
        limit = max(max_bytes, _LONGEST_MARKER)
        rest = b""
        begun = False
        for chunk in self._chunks():
            first, *complete = (chunk + rest).split(b"\n")
            if not begun and complete:
                if not complete[-1]:  # what follows the last line's end
                    complete.pop()
                begun = True
            for line in reversed(complete):
                yield line[-limit:]
            rest = first[-limit:]
        if rest:
            yield rest

    def _chunks(self) -> Iterator[bytes]:
        for path in (self.path, *(self._older(number) for number in range(1, self._keep + 1))):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                position = file.seek(0, os.SEEK_END)
                while position > 0:
                    start = max(0, position - _CHUNK)
                    file.seek(start)
                    yield file.read(position - start)
                    position = start
