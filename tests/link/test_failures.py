from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from yarl import URL

from agent.errors import SupervisorError
from agent.link import failures
from agent.link.failures import redirected, retry_after_seconds

ORIGIN = URL("https://supervisor.example.com/agent/v1/activities?secret=1")
NOON = datetime(2026, 3, 16, 12, tzinfo=UTC)


def refused(
    status: int, headers: Mapping[str, str], body: bytes, url: URL, secrets: Iterable[str] = ()
) -> SupervisorError:
    return failures.refused(status, headers, body, url, secrets, now=lambda: NOON)


def http(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def test_a_problem_document_is_quoted_with_its_code() -> None:
    error = refused(
        429, {"Retry-After": "7"}, b'{"code": "rate_limited", "reason": "too many calls", "status": 1}', ORIGIN
    )
    assert (error.status, error.code, error.retry_after) == (429, "rate_limited", 7)
    assert "answered 429 (rate_limited: too many calls)" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"7",
        b"\xff",
        b"[" * 100_000,
        b'{"code": 5, "reason": ["x"]}',
        b'{"code": "two words\\n"}',
    ],
)
def test_an_error_answer_of_any_shape_is_an_error_with_its_status(body: bytes) -> None:
    error = refused(502, {}, body, ORIGIN)
    assert (error.status, error.code, error.retry_after) == (502, None, None)


def test_other_words_for_the_reason_are_understood_bounded_and_printable() -> None:
    error = refused(400, {}, b'{"detail": "line\\nbreak\\u001b[31m' + b"x" * 5000 + b'"}', ORIGIN)
    assert "line break [31m" in str(error)
    assert len(str(error)) < 600
    assert "(a title)" in str(refused(400, {}, b'{"title": "a title"}', ORIGIN))


def test_a_token_is_never_repeated() -> None:
    error = refused(401, {}, b'{"code": "invalid", "reason": "token s3cr3t is not known"}', ORIGIN, secrets=["s3cr3t"])
    assert "s3cr3t" not in str(error)
    assert "[redacted]" in str(error)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "enroll"), (403, "allowed"), (404, "supervisor.url"), (500, "None")]
)
def test_the_hint_is_the_next_step(status: int, hint: str) -> None:
    assert hint in str(refused(status, {}, b"", ORIGIN).hint)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://other.example/x?token=1", "https://other.example"),
        ("/here", "https://supervisor"),
        (None, "nowhere"),
        ("http://[", "no URL"),
    ],
)
def test_a_redirect_says_where_to(location: str | None, target: str) -> None:
    error = redirected(308, location, ORIGIN)
    assert target in error.message
    assert "token" not in error.message
    assert error.status == 308


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("12", 12), (" 0 ", 0), ("-5", None), ("soon", None), ("9" * 30, None)]
)
def test_retry_after_in_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, date=None, now=lambda: NOON) == seconds


@pytest.mark.parametrize("away", [timedelta(hours=-6), timedelta(hours=6)])
def test_retry_after_as_a_date_is_reckoned_by_the_clock_of_the_answer(away: timedelta) -> None:
    """Whatever the time is here: a node whose clock is behind would be silent for an hour, one ahead would not wait."""
    until = http(NOON + timedelta(seconds=90))
    assert refused(429, {"Retry-After": until, "Date": http(NOON)}, b"", ORIGIN).retry_after == 90
    assert retry_after_seconds(until, date=http(NOON), now=lambda: NOON + away) == 90
    assert retry_after_seconds("Mon, 16 Mar 2026 12:01:30 -0000", date=http(NOON), now=lambda: NOON + away) == 90


@pytest.mark.parametrize("date", [None, "today"])
def test_without_a_date_of_the_answer_it_is_reckoned_by_the_supervisors_time(date: str | None) -> None:
    assert retry_after_seconds(http(NOON + timedelta(seconds=90)), date=date, now=lambda: NOON) == 90


def test_a_retry_after_that_is_over_waits_for_nothing() -> None:
    assert retry_after_seconds(http(NOON - timedelta(days=1)), date=http(NOON), now=lambda: NOON) == 0
