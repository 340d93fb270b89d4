"""The results of systemd's jobs, kept by path from the moment that systemd says them.

systemd may say the result before it answers the call that made the job, so nothing can wait to be told which job it is.
"""

import asyncio
from collections import OrderedDict

KEPT = 64
"""Results that are kept; one more lets go of the oldest."""


class Jobs:
    """Results that were said, and those who wait for one."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, str] = OrderedDict()
        self._said = asyncio.Event()

    def removed(self, path: str, result: str) -> None:
        """Keep a result: JobRemoved of org.freedesktop.systemd1(5)."""
        self._results[path] = result
        while len(self._results) > KEPT:
            self._results.popitem(last=False)
        said, self._said = self._said, asyncio.Event()
        said.set()

    def result(self, path: str | None) -> str | None:
        """Return the result of a job; None as long as it was not said."""
        return None if path is None else self._results.get(path)

    async def wait(self, path: str, seconds: float) -> str | None:
        """Wait for a result, but no longer than so many seconds; None when it was not said."""
        try:
            async with asyncio.timeout(seconds):
                while (result := self.result(path)) is None:
                    await self._said.wait()
                return result
        except TimeoutError:
            return None
