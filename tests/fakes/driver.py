"""A simulated runtime and its driver: what the lanes and actions need, in memory, and without waiting.

It keeps the contract of `agent.runtimes.driver`: each verb reads, records, then calls; a call has its effect even when
its caller is cancelled. `World` is what happens on the node, so a test counts effects apart from what the agent says.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, ReasonCode, RuntimeState
from agent.runtimes.driver import Call, Incarnation, Observation, Outcome, Recorder, Step


@dataclass
class World:
    """One runtime on a node."""

    running: int | None = None
    last: int | None = None
    began: int = 0
    ended: int = 0
    began_at: datetime | None = None
    runs_with: str | None = None
    exit_code: int | None = None
    ready: bool = True
    never_ready_with: set[str | None] = field(default_factory=set)
    starts_fail: bool = False
    unavailable: bool = False
    missing: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_ready(self) -> bool:
        return self.running is not None and self.ready and self.runs_with not in self.never_ready_with

    def begin(self, config: str | None = None) -> None:
        self.began += 1
        self.running = self.last = self.began
        self.began_at = datetime.now(UTC)
        self.runs_with = config
        self.exit_code = None
        if self.starts_fail:
            self.end(1)
        self.changed.set()

    def end(self, exit_code: int = 0) -> None:
        self.ended += 1
        self.running = None
        self.exit_code = exit_code
        self.changed.set()


class SimulatedDriver:
    """Drives a `World` as the process driver drives a process: a restart is stop, then start."""

    kind = DriverKind.PROCESS

    def __init__(self, world: World, *, config: Callable[[], str | None], boot_id: str = "boot") -> None:
        self.world = world
        self.config = config
        self.boot_id = boot_id
        self.before_call: Callable[[Call], Awaitable[None]] | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def observe(self) -> Observation:
        world = self.world
        world.changed.clear()
        if world.unavailable:
            raise Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot look: the engine is away", hint="start it")
        incarnation = None if world.last is None else Incarnation(f"run-{world.last}")
        if world.running is not None:
            return Observation(
                RuntimeState.RUNNING,
                incarnation=incarnation,
                pid=1000 + world.running,
                started_at=world.began_at,
                config_sha256=world.runs_with,
            )
        state = RuntimeState.FAILED if world.exit_code else RuntimeState.STOPPED
        state = RuntimeState.MISSING if world.missing else state
        return Observation(state, incarnation=incarnation, exit_code=world.exit_code)

    async def settle(self) -> Observation:
        return await self.observe()

    async def start(self, record: Recorder) -> Outcome:
        before = await self.observe()
        if before.running:
            return Outcome(before)
        await self._call(record, Step(Call.START, decisive=True, before=before, boot_id=self.boot_id))
        self.world.begin(await asyncio.to_thread(self.config))
        return Outcome(before, (Call.START,))

    async def stop(self, record: Recorder) -> Outcome:
        before = await self.observe()
        if not before.running:
            return Outcome(before)
        await self._call(record, Step(Call.STOP, decisive=True, before=before, boot_id=self.boot_id))
        self.world.end()
        return Outcome(before, (Call.STOP,), exit_code=0, killed=False)

    async def restart(self, record: Recorder) -> Outcome:
        before = await self.observe()
        if before.running:
            await self._call(record, Step(Call.STOP, before=before))
            self.world.end()
        started = await self.start(record)
        if not before.running:
            return started
        return replace(started, before=before, calls=(Call.STOP, *started.calls), exit_code=0, killed=False)

    async def _call(self, record: Recorder, step: Step) -> None:
        await record(step)
        if self.before_call is not None:
            await self.before_call(step.call)

    async def wait_for_change(self) -> None:
        await self.world.changed.wait()

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        return [f"last words of {incarnation}"]

    def check_config(self, config: Config) -> None: ...

    async def tidy(self, committed: str | None) -> None: ...

    def warnings(self) -> list[str]:
        return []
