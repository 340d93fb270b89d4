import time
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import format_datetime
from typing import Self

import pytest

from agent.conditions import Conditions
from agent.link import clock as clocks
from agent.link.clock import SupervisorClock, since_boot

NOON = datetime(2026, 3, 16, 12, tzinfo=UTC)


class Elapsed:
    """Seconds since boot, moved by a test."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(conditions: Conditions) -> SupervisorClock:
    return SupervisorClock(conditions)


@pytest.fixture
def elapsed() -> Elapsed:
    return Elapsed()


@pytest.fixture
def steered(conditions: Conditions, elapsed: Elapsed) -> SupervisorClock:
    return SupervisorClock(conditions, elapsed=elapsed)


def header(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def ahead(**delta: float) -> datetime:
    return datetime.now(UTC) + timedelta(**delta)


def seconds(clock: SupervisorClock) -> float:
    return clock.offset.total_seconds()


def test_until_an_answer_came_it_is_the_nodes_own(clock: SupervisorClock) -> None:
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=1)
    assert not clock.known


@pytest.mark.parametrize("precise", [True, False])
def test_an_answer_makes_it_known(steered: SupervisorClock, elapsed: Elapsed, precise: bool) -> None:
    if precise:
        steered.learn(NOON, round_trip=0)
    else:
        steered.learn_date(header(NOON), round_trip=0)
    assert steered.known
    elapsed.seconds += 3600
    assert abs(steered.now() - NOON - timedelta(hours=1)) <= timedelta(seconds=0.5)


@pytest.mark.parametrize("step", [timedelta(hours=-3), timedelta(hours=3)])
def test_a_node_whose_clock_is_set_still_knows_the_supervisors_time(
    steered: SupervisorClock, elapsed: Elapsed, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    steered.learn(datetime.now(UTC), round_trip=0)
    before = steered.now()

    class Set(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + step

    monkeypatch.setattr(clocks, "datetime", Set)
    elapsed.seconds += 7
    assert steered.now() - before == timedelta(seconds=7)
    assert steered.offset.total_seconds() == pytest.approx(-step.total_seconds(), abs=15)


def test_the_time_that_passes_is_that_of_a_clock_that_counts_suspension() -> None:
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 <= since_boot() - boot < 5


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


def test_answers_that_wait_unread_while_the_agent_is_stopped_do_not_set_it_wrong(
    steered: SupervisorClock, elapsed: Elapsed
) -> None:
    steered.learn(NOON, round_trip=0.01)
    for _ in range(10):
        sent = steered.now()
        elapsed.seconds += 4
        steered.learn(sent, round_trip=4)
    assert abs(steered.now() - NOON - timedelta(seconds=40)) < timedelta(seconds=0.1)


def test_a_quick_answer_is_believed_more_than_a_slow_one_before_it(steered: SupervisorClock) -> None:
    steered.learn(NOON, round_trip=8)
    steered.learn(NOON, round_trip=0.02)
    assert steered.now() - NOON == timedelta(seconds=0.01)


def test_the_date_header_counts_until_something_better_came(clock: SupervisorClock) -> None:
    clock.learn_date(header(ahead(seconds=40)), round_trip=0)
    assert seconds(clock) == pytest.approx(40, abs=1.2)
    clock.learn(ahead(seconds=20), round_trip=0)
    assert seconds(clock) == pytest.approx(20, abs=0.3)
    clock.learn_date(header(ahead(seconds=22)), round_trip=0)
    assert seconds(clock) == pytest.approx(20, abs=0.3)


@pytest.mark.parametrize("hours", [2, -2])
def test_a_supervisor_whose_clock_was_set_is_followed_before_the_next_heartbeat(
    steered: SupervisorClock, hours: int
) -> None:
    steered.learn(NOON, round_trip=0)
    steered.learn_date(header(NOON + timedelta(hours=hours)), round_trip=0)
    assert abs(steered.now() - NOON - timedelta(hours=hours)) <= timedelta(seconds=0.5)
    # The second of a header is then what the next precise time replaces at once.
    exact = NOON + timedelta(hours=hours, seconds=2)
    steered.learn(exact, round_trip=0)
    assert steered.now() == exact


def test_a_date_of_a_call_that_was_held_a_while_is_no_clock_that_was_set(steered: SupervisorClock) -> None:
    steered.learn(NOON, round_trip=0)
    steered.learn_date(header(NOON), round_trip=9.9)
    assert steered.now() == NOON


def test_a_date_that_something_between_writes_does_not_set_it_back_and_forth(steered: SupervisorClock) -> None:
    wrong = header(NOON + timedelta(hours=5))
    steered.learn(NOON, round_trip=0, date=wrong)
    steered.learn_date(wrong, round_trip=0)
    assert steered.now() == NOON
    steered.learn(NOON, round_trip=0, date=header(NOON))
    steered.learn_date(wrong, round_trip=0)
    assert steered.now() - NOON >= timedelta(hours=5)


@pytest.mark.parametrize(
    "text",
    [None, "", "yesterday", "Wed, 99 Xyz 2026 00:00:00 GMT", "Mon, 16 Mar 1970 12:00:00 GMT"],
)
def test_a_bad_date_header_teaches_nothing(clock: SupervisorClock, text: str | None) -> None:
    clock.learn_date(text, round_trip=0)
    assert seconds(clock) == 0
    assert not clock.known


def test_a_date_header_of_a_long_call_teaches_nothing(clock: SupervisorClock) -> None:
    clock.learn_date(header(NOON), round_trip=11)
    assert not clock.known


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
