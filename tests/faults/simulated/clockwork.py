"""Time that stands still until it is told to pass, and threads whose work is done on the spot.

So an example is over in milliseconds however long its waits are, and the same choices make the same story: what
Hypothesis shrinks stays what it was.
"""

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import structlog

from agent.activities import resume
from agent.journal import database
from agent.link import receiver, reporter
from agent.runtimes import readiness, worker

P = ParamSpec("P")
T = TypeVar("T")

MOST_ROUNDS = 200_000
"""Of the loop in one go; more is a loop of the agent's that never waits."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own: when nothing is left to do, it is the time of the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.until = self.now
        self.rounds = 0
        super().__init__(_Impatient(self))

    def time(self) -> float:
        return self.now

    def go(self, seconds: float = 0.0) -> None:
        """Do all that can be done within so many seconds of this clock."""
        self.until = self.now + seconds
        self.rounds = 0
        self.run_forever()

    def halt(self) -> None:
        """Let no more time pass in this go."""
        self.until = self.now

    def rest(self, timeout: float | None) -> None:
        """Nothing is left to do before the next timer: go there, or end this go."""
        if timeout is not None and self.now + timeout <= self.until:
            self.now += timeout
        else:
            self.now = max(self.now, self.until)
            self.stop()


class _Impatient(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.rounds += 1
        if self._loop.rounds > MOST_ROUNDS:
            msg = "the agent goes round and round without waiting"
            raise AssertionError(msg)
        if timeout is not None and timeout <= 0:
            return []
        found = super().select(0)
        if not found:
            self._loop.rest(timeout)
        return found


class OnTheSpot:
    """An executor whose jobs are done at once, in order, by whoever submits them."""

    def __init__(self, max_workers: int = 1, thread_name_prefix: str = "") -> None:
        self._over = False

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        if self._over:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)
        future: Future[T] = Future()
        try:
            future.set_result(job(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever waits for the job gets it
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True) -> None:
        self._over = True


@contextlib.contextmanager
def clockwork(loop: VirtualLoop, *, boot_id: Callable[[], str]) -> Iterator[None]:
    """Make the agent's parts, in this process, live by this loop's clock, on its one thread, in this boot."""
    clock: Any = SimpleNamespace(monotonic=loop.time)
    silent = structlog.make_filtering_bound_logger(50)
    with contextlib.ExitStack() as stack:
        for module in (database, worker):
            stack.enter_context(mock.patch.object(module, "ThreadPoolExecutor", OnTheSpot))
        for timed in (readiness, receiver, reporter):
            stack.enter_context(mock.patch.object(timed, "time", clock))
        stack.enter_context(mock.patch.object(resume, "read_boot_id", boot_id))
        before = structlog.get_config()
        structlog.configure(wrapper_class=silent)
        stack.callback(structlog.configure, **before)
        yield
