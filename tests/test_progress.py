import pytest

from agent.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("agent.progress.monotonic", lambda: now[0])
    return now


def test_a_loop_that_does_not_come_back_in_time_is_late(clock: list[float]) -> None:
    everyone = Progress()
    stuck, going = everyone.mark("stuck"), everyone.mark("going")
    stuck.within(10)
    going.within(10)
    clock[0] += 9
    assert everyone.late() == []
    going.within(10)
    clock[0] += 2
    assert everyone.late() == ["stuck"]
    stuck.within(1)
    assert everyone.late() == []


def test_a_loop_that_waits_for_what_may_never_come_is_never_late(clock: list[float]) -> None:
    everyone = Progress()
    mark = everyone.mark("lane")
    assert everyone.late() == []
    mark.within(10)
    mark.rest()
    clock[0] += 1e6
    assert everyone.late() == []


def test_loops_that_were_ended_are_not_late(clock: list[float]) -> None:
    everyone = Progress()
    everyone.mark("ended").within(1.0)
    everyone.rest()
    clock[0] += 9.0
    assert everyone.late() == []
