from agent.link.held import Held


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_an_answer_leaves_out_waits_longer_each_time_up_to_a_cap() -> None:
    time = Time()
    held = Held(missing_first=1, missing_cap=5, monotonic=time)
    waits = []
    for _ in range(5):
        held.missing(7)
        waits.append(held.seconds_to_next())
    assert waits == [1, 2, 4, 5, 5]
    assert held.waits(7)
    time.now += 5
    assert not held.waits(7)
    assert held.seconds_to_next() == 0


def test_what_is_refused_waits_until_it_is_to_be_tried() -> None:
    held = Held(refused_for=3600, monotonic=Time())
    held.refused(9)
    held.refused(3)
    held.missing(5)
    assert held.refused_ids() == [3, 9]
    held.try_refused()
    assert [held.waits(number) for number in (3, 9, 5)] == [False, False, True]
    assert held.refused_ids() == [3, 9]


def test_what_was_answered_or_left_the_outbox_is_forgotten() -> None:
    held = Held(monotonic=Time())
    for number in (1, 2, 3):
        held.refused(number)
    held.answered(1)
    held.answered(99)
    held.keep_only({2})
    assert held.refused_ids() == [2]
    assert len(held) == 1
    held.keep_only([])
    assert held.seconds_to_next() is None
