"""Blocking work off the event loop: a named executor with one thread, whose jobs run in order and to their end."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """One thread for one part of the agent.

    One, so that its jobs never overlap and need no locks among each other. Its queue is bounded by its users: each
    waits for its job, but for the few that `submit` without waiting.

    Args:
        name: Of the thread, as it shows in a debugger.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a job without waiting for it; it runs after all that were queued before."""
        return self._executor.submit(job, *args, **kwargs)

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a job and wait for it.

        A cancelled caller stops waiting; the job is done all the same, so what it holds is never left half way.
        """
        future = asyncio.wrap_future(self.submit(job, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_retrieve)
            raise

    async def close(self) -> None:
        """Wait for what is queued, then end the thread."""
        await self.run(lambda: None)
        self._executor.shutdown(wait=False)


def _retrieve(future: asyncio.Future[T]) -> None:
    """Take the result of a job whose caller was cancelled; what it did shows at the next look at the node."""
    if not future.cancelled():
        future.exception()
