import asyncio
import contextlib
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import logs
from agent.logs import LogFormat
from agent.redaction import MARKER, Redactor

SECRET = "do-not-log-me-7Qx"

log = structlog.get_logger("tests")

Configure = Callable[..., "Lines"]


class Lines:
    """What was written so far, once everything that waits is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def text(self) -> str:
        logs.close()
        return self._path.read_text()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logs.close()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def configure(tmp_path: Path) -> Iterator[Configure]:
    with contextlib.ExitStack() as stack:

        def configure(*, style: LogFormat = LogFormat.AUTO, level: str = "info") -> Lines:
            redactor = Redactor()
            redactor.add([SECRET])
            path = tmp_path / style
            output = stack.enter_context(path.open("wb"))
            logs.configure(format=style, level=level, redactor=redactor, output=output.fileno())
            return Lines(path)

        yield configure
        logs.close()


def test_each_event_is_one_json_object_on_one_line(configure: Configure) -> None:
    lines = configure()
    log.info("activity.completed", activity_id=2**62, seconds=1.25, text="two\nlines", path=Path("/x"))
    log.warning("condition.began")
    first, second = lines.events()
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "activity.completed",
        "level": "info",
        "activity_id": 2**62,
        "seconds": 1.25,
        "text": "two\nlines",
        "path": "/x",
    }
    assert second["level"] == "warning"


def test_no_secret_gets_into_a_line_not_even_by_an_exception(configure: Configure) -> None:
    for style in (LogFormat.JSON, LogFormat.TEXT):
        lines = configure(style=style)
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            log.exception("x.failed", error=error, message=f"because {SECRET}", node_token="abc", url="https://u:p@h/")
        text = lines.text()
        assert SECRET not in text
        assert "abc" not in text
        assert "u:p@" not in text
        assert MARKER in text
        assert "Traceback" in text
        assert "test_logs.py" in text


def test_less_important_events_are_not_written(configure: Configure) -> None:
    lines = configure(level="warning")
    log.info("no")
    log.debug("no")
    log.warning("yes")
    log.error("yes")
    assert [event["level"] for event in lines.events()] == ["warning", "error"]


def test_a_logger_that_is_in_use_follows_a_new_set_up(configure: Configure) -> None:
    first = configure(level="error")
    log.info("no")
    assert first.events() == []
    second = configure(level="debug")
    log.debug("yes")
    assert [event["event"] for event in second.events()] == ["yes"]


def test_what_libraries_log_comes_out_in_the_same_lines(configure: Configure) -> None:
    lines = configure()
    library = logging.getLogger("aiohttp.server")
    library.info("daily business")
    library.warning("it is %s", SECRET)
    library.error("broken %d format", "x")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        library.exception("failed")
    library.log(99, "odd level")
    events = lines.events()
    assert [(event["event"], event["library"]) for event in events] == [("library.log", "aiohttp.server")] * 4
    assert events[0]["message"] == f"it is {MARKER}"
    assert "cannot format" in events[1]["message"]
    assert "ZeroDivisionError" in events[2]["exception"]
    assert events[3]["level"] == "critical"


def test_who_asks_for_debug_sees_the_daily_business_of_libraries_too(configure: Configure) -> None:
    lines = configure(level="debug")
    logging.getLogger("aiohttp.server").info("daily business")
    logging.getLogger("aiohttp.server").debug("too much")
    assert [event["message"] for event in lines.events()] == ["daily business"]


def test_logging_never_raises_whatever_it_is_given(configure: Configure) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise ZeroDivisionError

    circular: list[Any] = []
    circular.append(circular)
    lines = configure()
    for value in (Hostile(), circular, {1: 2, (3,): object()}, "\ud800", b"\xff", float("nan")):
        log.info("x.odd", value=value)
    events = lines.events()
    assert len(events) == 6
    assert [event["event"] for event in events[:2]] == ["logs.unwritable"] * 2
    assert events[0]["of"] == "x.odd"
    assert {event["event"] for event in events[2:]} == {"x.odd"}


def test_text_is_readable_and_plain_when_not_on_a_terminal(configure: Configure) -> None:
    lines = configure(style=LogFormat.TEXT)
    log.info("activity.completed", activity_id=7, text="two\nlines \ud800")
    text = lines.text()
    assert len(text.splitlines()) == 1
    assert "activity.completed" in text
    assert "activity_id=7" in text
    assert "\033[" not in text


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_text_with_colours_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    reader, terminal = pty.openpty()
    logs.configure(format=LogFormat.AUTO, level="info", redactor=Redactor(), output=terminal)
    log.info("activity.completed", activity_id=7)
    logs.close()
    text = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(terminal)
    assert "activity.completed" in text
    assert not text.startswith("{")
    assert ("\033[" in text) is (no_color == "")


def test_context_is_added_to_every_event(configure: Configure) -> None:
    lines = configure()
    with structlog.contextvars.bound_contextvars(runtime="iggy"):
        log.info("x")
    log.info("y")
    events = lines.events()
    assert events[0]["runtime"] == "iggy"
    assert "runtime" not in events[1]


def test_a_reader_that_hangs_never_holds_up_the_loop_and_drops_are_counted() -> None:
    total = logs.MAX_LINES * 2

    async def flood() -> None:  # on a loop, where a call that may block is a failure
        for number in range(total):
            log.info("x", number=number, padding="." * 200)

    reader, writer = os.pipe()
    logs.configure(format=LogFormat.JSON, level="info", redactor=Redactor(), output=writer)
    begin = time.monotonic()
    asyncio.run(flood())
    assert time.monotonic() - begin < 20
    received: list[bytes] = []

    def read() -> None:
        with os.fdopen(reader, "rb") as pipe:
            received.extend(pipe)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    logs.close(timeout=20)
    os.close(writer)
    thread.join(20)
    events = [json.loads(line) for line in received]
    dropped = [event["count"] for event in events if event["event"] == "logs.dropped"]
    written = [event["number"] for event in events if event["event"] == "x"]
    assert dropped
    assert written == sorted(written)
    assert len(written) + sum(dropped) == total


def test_a_non_blocking_full_pipe_counts_as_dropped() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    lines = logs.LineWriter(writer, dropped=lambda count: f"dropped {count}")
    lines.write("lost")
    lines.write("lost too")
    lines.close()
    os.set_blocking(reader, False)
    assert b"lost" not in os.read(reader, 1 << 20)
    os.close(reader)
    os.close(writer)


def test_a_closed_stdout_does_not_end_the_program() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    logs.configure(format=LogFormat.JSON, level="info", redactor=Redactor(), output=writer)
    log.info("x")
    log.info("y")
    logs.close()
    logs.close()
    os.close(writer)


SCRIPT = """
import structlog
from agent import logs
from agent.redaction import Redactor
logs.configure(format=logs.LogFormat.AUTO, level="info", redactor=Redactor())
for number in range(%d):
    structlog.get_logger().info("x", number=number, padding="." * 100)
"""


def test_waiting_lines_are_written_when_the_program_ends() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT % 500], capture_output=True, check=True)
    assert len(result.stdout.splitlines()) == 500
    assert result.stderr == b""


def test_a_program_ends_in_time_and_cleanly_though_nobody_reads_its_lines() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT % 1500], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(timeout=logs.CLOSE_TIMEOUT + 20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
