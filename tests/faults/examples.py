"""Runs examples that Hypothesis makes, for as long as a row has time, and counts each in it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.fault import Budget, Ground
from tests.faults.tally import Tally

T = TypeVar("T")

AT_ONCE = 50
"""Examples between two looks at the time."""


def each(
    ground: Ground, budget: Budget, tally: Tally, story: str, examples: st.SearchStrategy[T], judge: Callable[[T], None]
) -> None:
    """Judge examples until the budget is over; what a failure is shrunk to is told.

    A round of the budget is fifty of them. Blocking.

    Args:
        ground: The seed of all choices.
        budget: When to end.
        tally: Each example is an injected fault of it.
        story: What the examples are.
        examples: Makes them.
        judge: Raises when the program did not do right by one.
    """
    while budget.more():
        _judge_some(ground, tally, story, examples, judge, (Phase.generate, Phase.shrink), AT_ONCE)


def drawn(ground: Ground, examples: st.SearchStrategy[T], count: int) -> list[T]:
    """Draw a number of examples, to be used later. Blocking."""
    found: list[T] = []
    _judge_some(ground, Tally("examples"), "", examples, found.append, (Phase.generate,), count)
    return found


async def each_live(
    ground: Ground,
    tally: Tally,
    story: str,
    examples: st.SearchStrategy[T],
    judge: Callable[[T], Coroutine[Any, Any, None]],
    count: int,
) -> None:
    """Judge a number of examples on a program that lives on between them, so that none can be shrunk."""
    loop = asyncio.get_running_loop()

    def judge_here(example: T) -> None:
        asyncio.run_coroutine_threadsafe(judge(example), loop).result()

    await asyncio.to_thread(_judge_some, ground, tally, story, examples, judge_here, (Phase.generate,), count)


def _judge_some(
    ground: Ground,
    tally: Tally,
    story: str,
    examples: st.SearchStrategy[T],
    judge: Callable[[T], None],
    phases: tuple[Phase, ...],
    count: int,
) -> None:
    failed = False

    @seed(ground.chance.getrandbits(64))
    @settings(
        max_examples=count,
        phases=phases,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(examples)
    def judged(example: T) -> None:
        nonlocal failed
        if not failed:  # what a failure is shrunk by is no fault of its own
            tally.injected += 1
            tally.cases += 1
        try:
            judge(example)
        except BaseException:
            failed = True
            raise

    try:
        judged()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the row counts
        tally.fail(story, error)
