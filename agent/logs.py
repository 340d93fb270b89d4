"""Logs: one line per event on stdout, JSON for machines, readable on a terminal, never a secret, never a wait.

Events are stable dotted tokens, data are fields: `activity.completed activity_id=7 seconds=1.2`. Everybody writes
`log = structlog.get_logger(__name__)` and does not import this module; what the libraries log by the standard library's
way comes out here too, as `library.log`.

Lines are written by one thread, so that a reader of stdout that hangs (a full pipe, a stuck journald) never holds up
the event loop. At most `MAX_LINES` wait for it; what comes on top is dropped, and counted in a line of its own
(`logs.dropped`) as soon as there is room. On exit, waiting lines get `CLOSE_TIMEOUT`; a kill -9 may lose the last few.
"""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from enum import StrEnum
from queue import SimpleQueue
from typing import Any

import structlog
from structlog.types import EventDict, Processor

from agent.redaction import Redactor

MAX_LINES = 2_000
CLOSE_TIMEOUT = 2.0
"""Seconds."""


class LogFormat(StrEnum):
    """How a line looks."""

    AUTO = "auto"
    """`text` on a terminal, `json` otherwise."""
    JSON = "json"
    """One JSON object per line."""
    TEXT = "text"
    """For people."""


class LogLevel(StrEnum):
    """The least important event that is written."""

    DEBUG = "debug"
    """Everything, and what the libraries say in passing."""
    INFO = "info"
    """What was done."""
    WARNING = "warning"
    """What is wrong, or may soon be."""
    ERROR = "error"
    """What failed."""


class LineWriter:
    """Writes lines from a thread of its own; `write` never blocks and never raises."""

    def __init__(self, output: int, *, dropped: Callable[[int], str]) -> None:
        """Start the thread.

        Args:
            output: The descriptor that lines go to.
            dropped: Makes the line that tells of a number of dropped ones.
        """
        self._output = output
        self._dropped_line = dropped
        self._dropped = 0
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Give one line to the thread."""
        if self._lines.qsize() >= MAX_LINES:
            self._dropped += 1
        else:
            self._lines.put(line)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Write what waits, for `timeout` seconds at most; later lines are lost."""
        self._lines.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            lost = 0 if self._put(line) else 1
            if count := self._dropped + lost:
                self._dropped = 0 if self._put(self._dropped_line(count)) else count

    def _put(self, line: str) -> bool:
        rest = memoryview(line.encode(errors="backslashreplace") + b"\n")
        # A closed stdout, or a full one that somebody made non-blocking, must not end the agent.
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._output, rest) :]
        return not rest


class _Logger:
    """What structlog calls at the end of its chain, by the name of the level."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def _write(self, line: str) -> None:
        self._writer.write(line)

    debug = info = warning = error = critical = exception = log = msg = _write


class _LibraryHandler(logging.Handler):
    """Brings what libraries log into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a library's bad format string must not raise in whoever logged
            message = f"{record.msg} (cannot format: {error})"
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        fields: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        structlog.get_logger().log(level, "library.log", library=record.name, message=message, **fields)


class _Render:
    """The last processor: secrets out, one line made. Whatever is wrong with an event, a line comes out."""

    def __init__(self, redactor: Redactor, *, text: bool, colors: bool) -> None:
        self._redactor = redactor
        self._exception = structlog.processors.ExceptionRenderer()
        self._text: Processor | None = (
            structlog.dev.ConsoleRenderer(
                colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
            )
            if text
            else None
        )

    def __call__(self, logger: Any, name: str, event: EventDict) -> str:
        try:
            fields = self._redactor.data(self._exception(logger, name, event))
            if self._text is None:
                return json.dumps(fields)
            return str(self._text(logger, name, fields))
        except Exception as error:  # noqa: BLE001 - logging must never be what fails
            return json.dumps(
                {"event": "logs.unwritable", "level": "error", "of": str(event.get("event")), "why": repr(error)}
            )


_writer: LineWriter | None = None


def configure(
    *,
    format: LogFormat,  # noqa: A002 - the word that the setting and the flag have
    level: str,
    redactor: Redactor,
    output: int | None = None,
) -> None:
    """Set up logging for this process; again is fine, and replaces what was set up before.

    Args:
        format: How a line looks.
        level: The least important level that is written, a `LogLevel`.
        redactor: Masks secrets in every event.
        output: The descriptor that lines go to; stdout by default.
    """
    global _writer  # noqa: PLW0603 - logging is set up per process, like the standard library's
    close()
    # A descriptor and not sys.stdout, whose lock, held by a thread that hangs in write, is fatal when Python exits.
    output = sys.stdout.fileno() if output is None else output
    terminal = os.isatty(output)
    render = _Render(
        redactor,
        text=format is LogFormat.TEXT or (format is LogFormat.AUTO and terminal),
        colors=terminal and not os.environ.get("NO_COLOR"),
    )
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def dropped(count: int) -> str:
        event = stamp(None, "warning", {"event": "logs.dropped", "count": count, "level": "warning"})
        return render(None, "warning", event)

    _writer = writer = LineWriter(output, dropped=dropped)
    atexit.register(writer.close)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, stamp, render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _Logger(writer),
        cache_logger_on_first_use=False,  # so that setting up again reaches the loggers that are in use
    )
    # Libraries tell their daily business at INFO; that is wanted only by who asks for everything.
    library_level = logging.INFO if threshold <= logging.DEBUG else max(threshold, logging.WARNING)
    logging.basicConfig(handlers=[_LibraryHandler()], level=library_level, force=True)


def close(timeout: float = CLOSE_TIMEOUT) -> None:
    """Write what waits, for `timeout` seconds at most, and stop the thread; blocking."""
    global _writer  # noqa: PLW0603 - as in configure
    if _writer is not None:
        atexit.unregister(_writer.close)
        _writer.close(timeout)
        _writer = None
