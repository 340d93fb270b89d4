"""A restart through the public API, timed from its POST to the answer that calls it completed.

Looking costs: a public API that is asked again and again takes a good part of the cores that the restart itself needs.
So the Supervisor's store is watched for a commit, which costs microseconds, and the API is asked only after one. What
counts is still the API's own answer, its time included.
"""

import asyncio
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from agent.protocol import RuntimeName
from tests.e2e.public_api import PublicApi

LOOK_EVERY = 0.001
"""Seconds between two looks at the store; on average half of it is added to what a restart took."""
ASK_EVERY = 0.5
"""Seconds after which the API is asked without a commit having been seen."""
PATIENCE = 30.0


class Dispatcher:
    """Restarts iggy of one deployment.

    Args:
        api: Where and with which key.
        store: The Supervisor's database, which is only watched.
    """

    def __init__(self, api: PublicApi, store: Path) -> None:
        self._activities = f"{api.base}/activities"
        self._session = aiohttp.ClientSession(headers={"ld-api-key": api.api_key}, trust_env=False)
        self._store = sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._store.close()
        await self._session.close()

    async def restart(self) -> float:
        """Restart it once, and return how many seconds that took.

        Raises:
            RuntimeError: It was rejected.
            TimeoutError: It did not end.
        """
        async with asyncio.timeout(PATIENCE):
            began = time.monotonic()
            async with self._session.post(f"{self._activities}/{RuntimeName.IGGY}/restart", json={}) as response:
                (activity,) = (await response.json())["items"]
            seen = self._commits()
            while activity["status"] == "processing":
                seen = await self._until_commit(seen)
                async with self._session.get(f"{self._activities}/{activity['id']}") as response:
                    activity = await response.json()
            seconds = time.monotonic() - began
        if activity["status"] != "completed":
            msg = f"a restart was rejected: {activity['reason']}"
            raise RuntimeError(msg)
        return seconds

    async def _until_commit(self, seen: int) -> int:
        """Wait until the store has another commit than the one that was seen, and return that."""
        ask_at = time.monotonic() + ASK_EVERY
        while (now := self._commits()) == seen and time.monotonic() < ask_at:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(LOOK_EVERY)
        return now

    def _commits(self) -> int:
        """Return what changes with each commit of somebody else: sqlite.org/pragma.html#pragma_data_version."""
        version: int = self._store.execute("PRAGMA data_version").fetchone()[0]
        return version
