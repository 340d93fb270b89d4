from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.local.pages import activities_page, activity_page, age, status_page, table
from agent.protocol import DriverKind, RuntimeName, RuntimeState, RuntimeStatus
from tests.local.conftest import ACTIVITY, CALLS, STATUS

NOW = datetime(2026, 3, 16, 13, 0, 0, tzinfo=UTC)

RUNTIME = RuntimeStatus(
    runtime=RuntimeName.IGGY,
    driver=DriverKind.SYSTEMD,
    state=RuntimeState.RUNNING,
    ready=True,
    incarnation="ffffffffffffffffffff0123456789ab",
    started_at=NOW - timedelta(hours=3),
    restarts=2,
    config_id=42,
    config_version=3,
    drifted=True,
    activity_id=2**62,
    warnings=["Restart=no: nobody revives it"],
).model_dump(mode="json")


def test_a_healthy_status_fits_a_page() -> None:
    page = status_page({**STATUS, "runtimes": [RUNTIME]}, now=NOW)
    assert page == (
        "healthy\n"
        "\n"
        "agent\n"
        "  version     0.1.0\n"
        "  started at  2026-03-16 12:00:00Z (1 h ago)\n"
        "  node id     610809900976570889\n"
        "  stopping    no\n"
        "\n"
        "Supervisor\n"
        "  reports  calls 3, failures 0, last success at 2026-03-16 12:00:00Z (1 h ago)\n"
        "\n"
        "journal\n"
        "  waiting     0\n"
        "  unreported  0\n"
        "\n"
        "RUNTIME  DRIVER   STATE    READY  RUN           CONFIG          RESTARTS  SINCE                           "
        "ACTIVITY\n"
        "iggy     systemd  running  yes    0123456789ab  42-3 (drifted)  2         2026-03-16 10:00:00Z (3 h ago)"
        "  4611686018427387904\n"
        "  iggy: Restart=no: nobody revives it"
    )


def test_what_is_wrong_comes_first_with_its_hint() -> None:
    condition = {"code": "journal_lost", "message": "m", "hint": "do z", "since": "2026-03-16T12:55:00Z"}
    page = status_page({**STATUS, "healthy": False, "conditions": [condition]}, now=NOW).splitlines()
    assert page[:3] == [
        "degraded: 1 condition(s)",
        "  journal_lost: m (since 2026-03-16 12:55:00Z (5 min ago))",
        "    hint: do z",
    ]


def test_a_runtime_that_could_not_be_asked_says_why() -> None:
    runtime = {"runtime": "iggy", "driver": "docker", "state": None, "message": "cannot reach the engine: x"}
    page = status_page({**STATUS, "runtimes": [runtime]}, now=NOW)
    assert "unknown" in page
    assert page.endswith("  iggy: cannot reach the engine: x")


@pytest.mark.parametrize(
    "answer", [{}, {"agent": None, "link": None, "journal": None, "runtimes": None, "conditions": None}]
)
def test_a_status_of_an_agent_that_just_starts_is_shown_too(answer: dict[str, Any]) -> None:
    assert status_page(answer, now=NOW).startswith("degraded: 0 condition(s)")


def test_activities_are_a_table() -> None:
    going = {**ACTIVITY, "id": 1, "state": "started", "status": None, "code": None, "finished_at": None}
    lines = activities_page([ACTIVITY, going], now=NOW).splitlines()
    assert lines[0].split() == ["ID", "RUNTIME", "ACTION", "STATE", "STATUS", "CODE", "RECEIVED", "SECONDS"]
    assert lines[1].split()[:6] == ["610809900976570889", "iggy", "restart", "reported", "rejected", "not_ready"]
    assert lines[1].endswith("61.5")
    assert lines[2].split()[3:6] == ["started", "-", "-"]
    assert activities_page([], now=NOW) == "no activities yet"


def test_one_activity_is_a_timeline_with_its_reason_and_evidence() -> None:
    page = activity_page({**ACTIVITY, "calls": CALLS, "evidence": {"exit_code": 1}})
    assert page == (
        "activity 610809900976570889: restart iggy: rejected (changed, recovered)\n"
        "  not_ready: cannot restart iggy: its probe never succeeded within 60 s\n"
        "  hint: look at its log\n"
        "\n"
        "AT                           WHAT                               DETAIL\n"
        "2026-03-16T12:00:00Z         received                           sequence 7\n"
        "2026-03-16T12:00:01Z         started                            -\n"
        "2026-03-16T12:00:02Z         call stop                          signal SIGTERM\n"
        "2026-03-16T12:00:03Z         call start (decisive, going back)  A pid-1, running no, boot boot-1\n"
        "2026-03-16T12:01:02.500000Z  finished                           rejected\n"
        "2026-03-16T12:01:03Z         reported                           recorded\n"
        "\n"
        "evidence\n"
        "  {\n"
        '    "exit_code": 1\n'
        "  }"
    )


def test_an_activity_that_waits_has_a_short_timeline() -> None:
    waiting = {"id": 1, "sequence": 2, "runtime": "iggy", "action": "stop", "state": "received", "received_at": "x"}
    page = activity_page(waiting)
    assert page.splitlines()[0] == "activity 1: stop iggy: received"
    assert page.splitlines()[-1].split() == ["x", "received", "sequence", "2"]


def test_what_a_runtime_logged_cannot_move_the_readers_cursor() -> None:
    hostile = "\x1b[2J\x07\u202e\nnext"
    page = activity_page({**ACTIVITY, "message": hostile, "evidence": {"log": hostile}})
    page += status_page({**STATUS, "runtimes": [{"message": hostile}]}, now=NOW)
    page += activities_page([{**ACTIVITY, "action": hostile}], now=NOW)
    assert not {"\x1b", "\x07", "\u202e"} & set(page)
    assert "\\x1b[2J\\x07\\u202e\\nnext" in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s ago"), (0, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (7199, "1 h ago"), (200_000, "2 d ago")],
)
def test_an_age_is_said_in_its_largest_unit(seconds: int, said: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), now=NOW) == said


def test_a_table_is_as_wide_as_its_widest_cell() -> None:
    assert table(("A", "B"), [("long cell", 1), (None, {"x": [1]})]) == [
        "A          B",
        "long cell  1",
        '-          {"x": [1]}',
    ]


@pytest.mark.parametrize("value", ["2026-99-99T00:00:00Z", "noT", "2026-03-16T12:00:00"])
def test_what_is_no_time_is_shown_as_it_is(value: str) -> None:
    assert f"since {value})" in status_page({"conditions": [{"code": "x", "message": "y", "since": value}]}, now=NOW)
