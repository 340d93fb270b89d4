"""Tells the Supervisor how the node is, at its pace, and at once when something changes.

A heartbeat also carries the journal's revision: one is sent with each `started` write, so that the time in which an old
copy of the journal could pass unnoticed is short.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from agent.conditions import Conditions
from agent.errors import JournalError, SupervisorError
from agent.journal import Journal
from agent.link.backoff import Backoff
from agent.link.client import SupervisorClient
from agent.link.health import Channel, LinkStatus
from agent.link.pace import SHORTEST_INTERVAL, Pace
from agent.link.standing import Standing
from agent.protocol import AgentStatus, JournalStatus, NodeStatus, RuntimeStatus
from agent.protocol import Heartbeat as HeartbeatMessage

log = structlog.get_logger(__name__)


class Heartbeat:
    """The one loop that sends heartbeats.

    Args:
        client: Makes the calls.
        journal: Says what is on its way; wakes this with each `started` write.
        standing: Ends all calls when it is lost.
        conditions: Their codes travel; a change sends a heartbeat.
        pace: Is set by the answers.
        version: Of the agent.
        started_at: When the agent started.
        runtimes: Returns how the runtimes are; never raises.
        node: Returns how the machine is; never raises.
        backoff: Delays after failures.
    """

    def __init__(  # noqa: PLR0913 - a heartbeat is the sum of what everybody knows
        self,
        client: SupervisorClient,
        journal: Journal,
        *,
        standing: Standing,
        conditions: Conditions,
        pace: Pace,
        version: str,
        started_at: datetime,
        runtimes: Callable[[], Awaitable[list[RuntimeStatus]]],
        node: Callable[[], Awaitable[NodeStatus]],
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._journal = journal
        self._standing = standing
        self._conditions = conditions
        self._pace = pace
        self._version = version
        self._started_at = started_at
        self._runtimes = runtimes
        self._node = node
        self._backoff = backoff or Backoff()
        self._soon = asyncio.Event()
        self._started = journal.started_written.subscribe()
        self._counts = JournalStatus(waiting=0, unreported=0)
        conditions.on_change(self.beat)

    @property
    def status(self) -> LinkStatus:
        """How heartbeats do."""
        return self._client.status(Channel.HEARTBEATS)

    def beat(self) -> None:
        """Send one soon: at once, or half a second after the last one."""
        self._soon.set()

    async def run(self) -> None:
        """Beat until cancelled; no failure of the network, the Supervisor or the disk ends it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_journal())
            group.create_task(self._beat_forever())

    async def _follow_journal(self) -> None:
        while True:
            await self._started.wait()
            self.beat()

    async def _beat_forever(self) -> None:
        while True:
            await self._standing.wait_if_lost()
            self._soon.clear()
            begun = time.monotonic()
            try:
                await self._send()
            except SupervisorError as error:
                seconds = self._backoff.failed(error)
                if self._standing.permitted:
                    log.warning("heartbeat.failed", cause=error.message, hint=error.hint, retry_in=round(seconds, 1))
                    # Not cut short by changes: the failure itself is one.
                    await asyncio.sleep(seconds)
                continue
            self._backoff.succeeded()
            await self._pause(begun)

    async def _pause(self, begun: float) -> None:
        """Wait for the next one: the interval, or less when there is something to say."""
        try:
            async with asyncio.timeout(begun + self._pace.heartbeat_interval - time.monotonic()):
                await self._soon.wait()
        except TimeoutError:
            return
        # What changes within this moment travels in the same heartbeat.
        await asyncio.sleep(begun + SHORTEST_INTERVAL - time.monotonic())

    async def _send(self) -> None:
        try:
            self._counts = await self._journal.counts()
        except JournalError as error:
            # The last figures are still the best ones, and the condition that goes with this has to travel.
            log.debug("heartbeat.without_counts", cause=error.message)
        message = HeartbeatMessage(
            sent_at=datetime.now(UTC),
            agent=AgentStatus(
                version=self._version,
                started_at=self._started_at,
                journal=self._counts,
                conditions=[condition.code for condition in self._conditions.all()],
            ),
            node=await self._node(),
            runtimes=await self._runtimes(),
        )
        self._pace.learn(await self._client.heartbeat(message))
