"""The simulated drivers: each makes the calls that the real one makes, in the same order; A is read at the same place.

process   stop (a signal to A alone), then start; a launcher of a dead agent comes up all the same
docker    stop, a container with another config made anew, then start; what is on its way cannot be seen
systemd   one call, which becomes a job; what is on its way cannot be seen, the job can
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, ReasonCode, RuntimeState
from agent.runtimes.driver import Call, Incarnation, Observation, Outcome, Recorder, Step
from tests.faults.simulated.world import Run, World

SETTLE_PAUSE = 2.0
"""Seconds between two looks that must agree; more than what is on its way takes."""
LOOK_AGAIN = 0.1
GRACE = 10.0

Point = Callable[[str], Awaitable[None]]


class SimulatedDriver:
    """Drives a `World`; at each boundary of a call the agent may be made to wait, or die."""

    def __init__(self, world: World, point: Point) -> None:
        self.kind = world.kind
        self.world = world
        self._point = point

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def observe(self) -> Observation:
        world = self.world
        world.changed.clear()
        known = world.last is not None or self.kind is not DriverKind.SYSTEMD
        incarnation = None if world.last is None else Incarnation(world.last.name)
        config = world.running.config if world.running is not None else None
        config = world.body if self.kind is DriverKind.DOCKER else config
        if world.running is not None and world.job is None:
            return Observation(RuntimeState.RUNNING, incarnation=incarnation, pid=7, config_sha256=config)
        return Observation(
            self._down(),
            incarnation=incarnation,
            incarnation_known=known,
            exit_code=world.exit_code,
            config_sha256=config if self.kind is DriverKind.DOCKER else None,
        )

    def _down(self) -> RuntimeState:
        world = self.world
        if world.job is not None:
            return RuntimeState.STOPPING if world.running is not None else RuntimeState.STARTING
        if world.gap:
            return RuntimeState.STARTING
        return RuntimeState.FAILED if world.exit_code else RuntimeState.STOPPED

    async def settle(self) -> Observation:
        if self.kind is DriverKind.PROCESS:
            return await self._rest(None)
        before = None
        while True:
            seen = await self.observe()
            now = (seen.state, seen.incarnation, seen.config_sha256) if seen.at_rest else None
            if now is not None and now == before:
                return seen
            before = now
            await asyncio.sleep(SETTLE_PAUSE)

    async def start(self, record: Recorder) -> Outcome:
        return await self._start(record, await self._rest(GRACE))

    async def stop(self, record: Recorder) -> Outcome:
        before = await self._rest(GRACE)
        if not before.running:
            if not before.at_rest:
                msg = "stop"
                raise _busy(msg)
            return Outcome(before)
        target = self.world.running
        await record(self._step(Call.STOP, before, decisive=True))
        await self._call(Call.STOP, record, target)
        return Outcome(before, (Call.STOP,), exit_code=0, killed=False)

    async def restart(self, record: Recorder) -> Outcome:
        before = await self._rest(GRACE)
        calls: tuple[Call, ...] = ()
        match self.kind:
            case DriverKind.SYSTEMD:
                await record(self._step(Call.RESTART, before, decisive=True))
                await self._call(Call.RESTART, record, None)
                return Outcome(before, (Call.RESTART,))
            case DriverKind.DOCKER:
                calls = await self._recreate(record) if self._is_other() else calls
                if not calls and before.running:
                    calls = await self._stop_first(record, before)
            case DriverKind.PROCESS:
                calls = await self._stop_first(record, before) if before.running else calls
        started = await self._start(record, await self._rest(GRACE))
        return replace(started, before=before, calls=calls + started.calls, killed=False if before.running else None)

    async def _start(self, record: Recorder, before: Observation) -> Outcome:
        if before.running:
            return Outcome(before)
        if not before.at_rest:
            msg = "start"
            raise _busy(msg)
        if self.kind is DriverKind.DOCKER and self._is_other():
            await self._recreate(record)
            before = await self.observe()
            if before.running:
                return Outcome(before)
        await record(self._step(Call.START, before, decisive=True))
        await self._call(Call.START, record, None)
        return Outcome(before, (Call.START,))

    async def _stop_first(self, record: Recorder, before: Observation) -> tuple[Call, ...]:
        target = self.world.running
        await record(self._step(Call.STOP, before))
        await self._call(Call.STOP, record, target)
        return (Call.STOP,)

    # --- containers

    def _is_other(self) -> bool:
        return self.world.body != self.world.current()

    async def _recreate(self, record: Recorder) -> tuple[Call, ...]:
        await record(Step(Call.RECREATE))
        calls: tuple[Call, ...] = (Call.RECREATE,)
        if (seen := await self.observe()).running:
            calls += await self._stop_first(record, seen)
        if self.world.running is not None:
            msg = "recreate"
            raise _busy(msg)
        await self._point("before the container is made anew")
        if self.world.running is None:
            self.world.make_container(self.world.current())
        await self._point("after the container was made anew")
        return calls

    async def tidy(self, committed: str | None) -> None:
        if self.kind is DriverKind.DOCKER and self.world.running is not None and self.world.body == committed:
            self.world.drop_containers()

    # --- what is common

    def _step(self, call: Call, before: Observation, *, decisive: bool = False) -> Step:
        return Step(call, decisive=decisive, before=before, boot_id=self.world.machine.boot_id if decisive else None)

    async def _call(self, call: Call, record: Recorder, target: Run | None) -> None:
        activity = record.__self__.row.id  # type: ignore[attr-defined] # whose call it is, for the judge alone
        await self._point(f"before the call {call} is made")
        answered = self.world.send(call, activity, target if self.kind is DriverKind.PROCESS else None)
        await self._point(f"while the call {call} is on its way")
        await asyncio.shield(answered)
        await self._point(f"after the call {call} was made")

    async def _rest(self, grace: float | None) -> Observation:
        loop = self.world.machine.loop
        began = loop.time()
        while True:
            seen = await self.observe()
            if seen.at_rest or (grace is not None and loop.time() - began >= grace):
                return seen
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await self.world.changed.wait()

    async def wait_for_change(self) -> None:
        await self.world.changed.wait()

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        return [f"last words of {incarnation}"]

    def check_config(self, config: Config) -> None: ...

    def warnings(self) -> list[str]:
        return []


def _busy(call: str) -> Rejection:
    return Rejection(ReasonCode.BUSY, f"cannot {call} it: something is under way", hint="look what")
