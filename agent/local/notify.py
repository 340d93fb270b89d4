"""The agent's word to its service manager: ready, what it does, stopping, and still alive: sd_notify(3).

Without systemd all of it does nothing.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress

import structlog

log = structlog.get_logger(__name__)

TICK = 1.0
"""Seconds after which the status is looked at again, should nothing have asked for it."""
FEEDS = 3
"""Times that the watchdog is fed within its interval; sd_watchdog_enabled(3) recommends two at least."""


class ServiceManager:
    """The socket of the service manager.

    Args:
        environ: Where it is named; those variables are taken out, so that no child speaks in the agent's name.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
        meant = self._address and microseconds.isdecimal() and pid == str(os.getpid())
        self.watchdog = int(microseconds) / 1e6 if meant and int(microseconds) else None
        """Seconds within which it wants to hear from the agent; None when it does not."""
        self._unsent: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._wake = asyncio.Event()

    def ready(self) -> None:
        """Say that the agent is up; more than once is harmless."""
        self._say("READY", "1")

    def stopping(self) -> None:
        """Say that the agent is about to end."""
        self._say("STOPPING", "1")
        self.wake()

    def wake(self) -> None:
        """Have the status looked at soon."""
        self._wake.set()

    @asynccontextmanager
    async def telling(
        self, status: Callable[[], str], stuck: Callable[[], Awaitable[list[str]]]
    ) -> AsyncIterator[None]:
        """Keep the status true, and feed the watchdog while nothing is stuck.

        Args:
            status: Makes one line for people.
            stuck: Names what does not move; it is to answer well within the watchdog's time.
        """
        if not self._address:
            yield
            return
        task = asyncio.create_task(self._tell(status, stuck), name="notify")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _tell(self, status: Callable[[], str], stuck: Callable[[], Awaitable[list[str]]]) -> None:
        feed_at, seen = time.monotonic(), list[str]()
        while True:
            self._wake.clear()
            self._say("STATUS", " ".join(status().split()))
            if self.watchdog is not None and time.monotonic() >= feed_at:
                now_stuck = await stuck()
                if not now_stuck:
                    self._send("WATCHDOG=1")
                elif now_stuck != seen:
                    log.error("watchdog.not_fed", stuck=now_stuck)
                seen = now_stuck
                feed_at = time.monotonic() + self.watchdog / FEEDS
            pause = TICK if self.watchdog is None else min(TICK, self.watchdog / FEEDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _say(self, name: str, value: str) -> None:
        """Send what is new, with what could not be sent before."""
        if self._said.get(name) != value:
            self._said[name] = self._unsent[name] = value
        if self._unsent and self._send("\n".join(f"{key}={text}" for key, text in self._unsent.items())):
            self._unsent.clear()

    def _send(self, text: str) -> bool:
        """Send a datagram, or say that it could not be sent: the manager is busy, or being replaced."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as out:
                out.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("notify.not_sent", cause=error.strerror)
            return False
        return True
