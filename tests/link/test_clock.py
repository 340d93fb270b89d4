from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from agent.conditions import Conditions
from agent.link.clock import SupervisorClock


@pytest.fixture
def clock(conditions: Conditions) -> SupervisorClock:
    return SupervisorClock(conditions)


def ahead(**delta: float) -> datetime:
    return datetime.now(UTC) + timedelta(**delta)


def seconds(clock: SupervisorClock) -> float:
    return clock.offset.total_seconds()


def test_until_an_answer_came_it_is_the_nodes_own(clock: SupervisorClock) -> None:
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=1)


def test_the_middle_of_the_round_trip_is_assumed(clock: SupervisorClock) -> None:
    clock.learn(ahead(seconds=30), round_trip=4)
    assert seconds(clock) == pytest.approx(32, abs=0.5)
    assert clock.now() - datetime.now(UTC) == pytest.approx(timedelta(seconds=32), abs=timedelta(seconds=0.5))


def test_a_long_round_trip_and_a_nonsense_time_teach_nothing(clock: SupervisorClock) -> None:
    clock.learn(ahead(seconds=30), round_trip=55)
    clock.learn(datetime(9999, 1, 1, tzinfo=UTC), round_trip=0.1)
    clock.learn(datetime(1970, 1, 1, tzinfo=UTC), round_trip=0.1)
    assert seconds(clock) == 0


def test_small_differences_are_smoothed_and_a_step_is_taken_at_once(clock: SupervisorClock) -> None:
    clock.learn(ahead(seconds=10), round_trip=0)
    clock.learn(ahead(seconds=14), round_trip=0)
    assert seconds(clock) == pytest.approx(11, abs=0.3)
    clock.learn(ahead(seconds=-50), round_trip=0)
    assert seconds(clock) == pytest.approx(-50, abs=0.3)


def test_the_date_header_counts_until_something_better_came(clock: SupervisorClock) -> None:
    clock.learn_date(format_datetime(ahead(seconds=40), usegmt=True), round_trip=0)
    assert seconds(clock) == pytest.approx(40, abs=1.2)
    clock.learn(ahead(seconds=20), round_trip=0)
    assert seconds(clock) == pytest.approx(20, abs=0.3)
    clock.learn_date(format_datetime(ahead(seconds=40), usegmt=True), round_trip=0)
    assert seconds(clock) == pytest.approx(20, abs=0.3)


@pytest.mark.parametrize(
    "header", [None, "", "yesterday", "Wed, 99 Xyz 2026 00:00:00 GMT", "Mon, 16 Mar 2026 12:00:00 -0000"]
)
def test_a_bad_date_header_teaches_nothing(clock: SupervisorClock, header: str | None) -> None:
    clock.learn_date(header, round_trip=0)
    assert seconds(clock) == 0


@pytest.mark.parametrize(("offset", "word"), [(90, "behind"), (-90, "ahead of")])
def test_a_skew_is_shown_while_it_lasts(
    clock: SupervisorClock, conditions: Conditions, offset: float, word: str
) -> None:
    clock.learn(ahead(seconds=offset), round_trip=0)
    [condition] = conditions.all()
    assert condition.code == "clock_skew"
    assert f"90 s {word}" in condition.message
    clock.learn(ahead(seconds=0), round_trip=0)
    assert conditions.all() == []
