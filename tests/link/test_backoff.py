import pytest

from agent.errors import JournalError, SupervisorError
from agent.link.backoff import Backoff


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ceiling_doubles_up_to_the_cap_and_never_overflows() -> None:
    backoff = Backoff(first=0.5, cap=60, chance=lambda: 1.0)
    assert [backoff.failed() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert {backoff.failed() for _ in range(2000)} == {60}


def test_the_jitter_is_full() -> None:
    backoff = Backoff(first=1.0, chance=lambda: 0.0)
    assert backoff.failed() == 0.0
    drawn = [Backoff(first=1.0).failed() for _ in range(300)]
    assert min(drawn) < 0.2
    assert max(drawn) > 0.8
    assert max(drawn) <= 1.0


def test_one_success_resets_nothing_and_a_stable_one_does() -> None:
    time = Time()
    backoff = Backoff(first=1, stable_for=30, chance=lambda: 1.0, monotonic=time)
    assert [backoff.failed(), backoff.failed()] == [1, 2]
    backoff.succeeded()
    time.now = 29
    assert backoff.failed() == 4
    backoff.succeeded()
    time.now = 45
    backoff.succeeded()
    time.now = 60
    assert backoff.failed() == 1


def test_reset_is_at_once() -> None:
    backoff = Backoff(first=1, chance=lambda: 1.0)
    backoff.failed()
    backoff.reset()
    assert backoff.failed() == 1


def test_retry_after_is_waited_for_and_bounded() -> None:
    backoff = Backoff(first=1, chance=lambda: 0.5)
    assert backoff.failed(SupervisorError("slow down", status=429, retry_after=20)) == 20.5
    assert Backoff(first=1, chance=lambda: 0.0).failed(SupervisorError("slow down", retry_after=1e9)) == 3600


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_tried_after_minutes(status: int) -> None:
    error = SupervisorError("no", status=status)
    backoff = Backoff(chance=lambda: 0.0)
    assert [backoff.failed(error) for _ in range(6)] == [30, 60, 120, 240, 300, 300]
    assert Backoff(chance=lambda: 1.0).failed(error) == 60
    assert Backoff(chance=lambda: 1.0).failed(SupervisorError("no", status=status, retry_after=90)) == 90


def test_which_refusals_are_tried_after_minutes_depends_on_the_call() -> None:
    conflict = SupervisorError("no", status=409)
    assert Backoff(first=1, chance=lambda: 1.0).failed(conflict) == 1
    assert Backoff(first=1, chance=lambda: 1.0, refusals={409}).failed(conflict) == 60


def test_any_error_of_the_agent_can_be_backed_off_from() -> None:
    assert Backoff(first=1, chance=lambda: 1.0).failed(JournalError("full")) == 1
