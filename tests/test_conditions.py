from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from agent.conditions import Conditions


def test_a_fault_that_lasts_is_logged_twice_in_all() -> None:
    conditions = Conditions()
    with capture_logs() as logs:
        for turn in range(100):
            conditions.set("supervisor_unreachable", f"attempt {turn}", hint="look")
        conditions.clear("supervisor_unreachable")
        conditions.clear("supervisor_unreachable")
    assert [entry["event"] for entry in logs] == ["condition.began", "condition.ended"]
    assert logs[0]["condition"] == "supervisor_unreachable"


def test_setting_again_refreshes_the_sentence_and_keeps_the_beginning() -> None:
    conditions = Conditions()
    conditions.set("x", "first")
    since = conditions.all()[0].since
    conditions.set("x", "second", hint="next step")
    (condition,) = conditions.all()
    assert (condition.message, condition.hint, condition.since) == ("second", "next step", since)
    assert since.tzinfo is UTC
    assert since <= datetime.now(UTC)


def test_conditions_are_listed_oldest_first_and_found_by_code() -> None:
    conditions = Conditions()
    conditions.set("b", "…")
    conditions.set("a", "…")
    assert [condition.code for condition in conditions.all()] == ["b", "a"]
    assert "a" in conditions
    conditions.clear("a")
    assert "a" not in conditions


def test_listeners_hear_beginnings_and_ends_only() -> None:
    conditions = Conditions()
    heard: list[int] = []
    conditions.on_change(lambda: heard.append(len(conditions.all())))
    conditions.clear("never_set")
    conditions.set("x", "1")
    conditions.set("x", "2")
    conditions.clear("x")
    assert heard == [1, 0]


def test_a_condition_cannot_be_changed() -> None:
    conditions = Conditions()
    conditions.set("x", "1")
    with pytest.raises(AttributeError):
        conditions.all()[0].message = "2"  # type: ignore[misc] # that is the point
