"""Wait until a runtime is ready, and stays so: what `completed` means.

One wait looks at two things at once: the driver says which run is there (and wakes it when that changes), the probe
says whether that run is ready.

    ends, and nothing revives it            start_failed, at once
    ends, and something revives it          the probe begins anew, within the same ready_timeout
    ready_timeout is over                   start_failed if a run ended meanwhile, else not_ready
    ready, then another run or none         unstable
    starting for all of the start timeout   timeout (start_failed if a run ended meanwhile)
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.errors import Rejection
from agent.protocol import DriverKind, ReasonCode, RuntimeName, RuntimeState
from agent.runtimes.driver import Driver, Incarnation, Observation
from agent.runtimes.probe import Probe, ProbePlan, ProbeResult

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between attempts, growing by half: Iggy is ready after 40 ms, and may take minutes to read its data."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Readiness:
    """A runtime that was seen ready.

    Args:
        observation: The run that is ready.
        probe: What the probe said of it.
        seconds: How long that took, the stable window included.
    """

    observation: Observation
    probe: dict[str, Any]
    seconds: float


class Wait:
    """One wait for readiness.

    Args:
        name: The runtime, for the sentences.
        driver: Says which run is there.
        probe: Says whether it is ready; None means that running is ready.
        plan: The times of the probe; None as for `probe`.
        start_timeout: Seconds that it may be starting.
    """

    def __init__(
        self, name: RuntimeName, driver: Driver, probe: Probe | None, plan: ProbePlan | None, start_timeout: float
    ) -> None:
        self._name = name
        self._driver = driver
        self._probe = probe
        self._stable_for = plan.stable_for if plan else 0.0
        self._ready_timeout = plan.ready_timeout if plan else start_timeout
        self._start_timeout = start_timeout
        self._began = time.monotonic()
        self._running_since: float | None = None
        self._last = ProbeResult(ready=False, why="it was never asked")
        self._run: Incarnation | None = None
        self._restarts: int | None = None
        self._run_ended = False
        self._pause = FIRST_PAUSE

    async def run(self) -> Readiness:
        """Wait; see the module's text for how it ends."""
        while True:
            async with self._change() as change:
                # Judged before the look: the last attempt begins after the deadline. One that was under way then may
                # have failed only because this agent got no processor.
                over = self._is_over()
                seen = await self._observe()
                if seen is not None and seen.running and (ready := await self._try(seen)):
                    return ready
                if over:  # looked at anew: during the last attempt the run may have ended, or another one begun
                    raise self._late(await self._observe())
                await asyncio.wait({change}, timeout=self._next_pause())

    @asynccontextmanager
    async def _change(self) -> AsyncIterator["asyncio.Task[None]"]:
        """Wait for a change in the background: from before the look, so that none falls between look and wait."""
        task = asyncio.ensure_future(self._wait_for_change())
        await asyncio.sleep(0)
        try:
            yield task
        finally:
            await _discard(task)

    async def _wait_for_change(self) -> None:
        try:
            await self._driver.wait_for_change()
        except Rejection:  # no push just now: the pauses between the looks have to do
            await asyncio.get_running_loop().create_future()

    async def _look(self) -> Observation | None:
        """Look at the runtime; None when the driver cannot be asked just now."""
        try:
            return await self._driver.observe()
        except Rejection as error:
            if error.code is not ReasonCode.DRIVER_UNAVAILABLE or self._is_over():
                raise
            return None

    async def _observe(self) -> Observation | None:
        """Look, remember what was seen, and end the wait when nothing is there that could get ready."""
        seen = await self._look()
        if seen is None:
            return None
        self._note(seen)
        left_behind = seen.state is RuntimeState.STOPPING and self._driver.kind is DriverKind.PROCESS
        if (seen.at_rest and not seen.running) or left_behind:
            raise self._ended(seen)
        return seen

    def _note(self, seen: Observation) -> None:
        """Remember whether a run ended while it was waited for."""
        revived = seen.restarts is not None and self._restarts is not None and seen.restarts > self._restarts
        if self._restarts is None or revived:
            self._restarts = seen.restarts
        if revived or (self._run is not None and not (seen.running and seen.incarnation == self._run)):
            self._run_ended = True
            self._pause = FIRST_PAUSE
        self._run = seen.incarnation if seen.running else None
        if seen.running and self._running_since is None:
            self._running_since = time.monotonic()

    async def _try(self, seen: Observation) -> Readiness | None:
        """Probe one run; return only if it is ready and stays so."""
        if not await self._is_ready(seen):
            return None
        first = self._last
        if self._probe is None and self._stable_for <= 0:  # then nothing has passed since it was looked at
            return self._readiness(seen)
        stable_until = time.monotonic() + self._stable_for
        while True:
            async with self._change() as change:
                now = await self._look()
                if now is None:
                    return None
                if not _same_run(now, seen):
                    raise self._unstable(seen, now, first)
                left = stable_until - time.monotonic()
                if left <= 0:
                    break
                await asyncio.wait({change}, timeout=left)
        if self._stable_for > 0:
            if not await self._is_ready(seen):
                return None
            # That no change was pushed during the attempt says nothing: the push may be broken.
            now = await self._look()
            if now is None or not _same_run(now, seen):
                return None
        return self._readiness(now)

    def _readiness(self, seen: Observation) -> Readiness:
        return Readiness(seen, self._last.as_evidence(), round(time.monotonic() - self._began, 3))

    async def _is_ready(self, seen: Observation) -> bool:
        """Make one attempt; it is given up when that run ends meanwhile."""
        if self._probe is None or seen.hindrance is not None:
            self._last = ProbeResult(ready=seen.hindrance is None, why=seen.hindrance)
            return self._last.ready
        attempt = asyncio.ensure_future(self._probe.check())
        try:
            while True:
                async with self._change() as change:
                    await asyncio.wait({attempt, change}, return_when=asyncio.FIRST_COMPLETED)
                if attempt.done():
                    self._last = attempt.result()
                    return self._last.ready
                now = await self._look()
                if now is not None and not _same_run(now, seen):
                    return False
        finally:
            await _discard(attempt)

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 1.5, LONGEST_PAUSE)
        return pause

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._running_since is not None:
            return now - self._running_since >= self._ready_timeout
        return now - self._began >= self._start_timeout

    def _late(self, seen: Observation | None) -> Rejection:
        if self._run_ended:
            msg = f"cannot start {self._name}: it ended by itself again and again"
            code, hint = ReasonCode.START_FAILED, "its last log lines say why"
        elif self._running_since is None:
            msg = f"cannot start {self._name}: it is still starting after {self._start_timeout:g} s"
            code, hint = ReasonCode.TIMEOUT, f"see what it waits for, or raise start_timeout of [runtimes.{self._name}]"
        else:
            msg = f"cannot see {self._name} ready after {self._ready_timeout:g} s: {self._last.why}"
            code, hint = ReasonCode.NOT_READY, f"check its log and [runtimes.{self._name}.probe]"
        return Rejection(code, msg, hint=hint, evidence=self._evidence(seen))

    def _ended(self, seen: Observation) -> Rejection:
        if seen.state is RuntimeState.MISSING:
            how = "it is not there any more"
        elif cause := seen.detail.get("cause"):
            how = str(cause)
        elif seen.exit_code is not None:
            how = f"it ended by itself with exit code {seen.exit_code}"
        else:
            how = "it ended by itself"
        hint = "its last log lines say why"
        if seen.exit_code == 0:
            hint += "; an exit code of 0 while starting often means that a port is taken"
        msg = f"cannot start {self._name}: {how} while starting"
        return Rejection(ReasonCode.START_FAILED, msg, hint=hint, evidence=self._evidence(seen))

    def _unstable(self, ready: Observation, now: Observation, probe: ProbeResult) -> Rejection:
        how = "was replaced by another run" if now.running else f"is {now.state}"
        code = f", exit code {now.exit_code}" if now.exit_code is not None else ""
        msg = f"cannot keep {self._name} running: it was ready, and within {self._stable_for:g} s it {how}{code}"
        evidence = self._evidence(now) | {"probe": probe.as_evidence(), "was_ready": ready.incarnation}
        return Rejection(ReasonCode.UNSTABLE, msg, hint="its last log lines say why", evidence=evidence)

    def _evidence(self, seen: Observation | None) -> dict[str, Any]:
        after = {"after": seen.as_evidence()} if seen else {}
        return {**after, "probe": self._last.as_evidence()}


def _same_run(now: Observation, seen: Observation) -> bool:
    return now.running and now.incarnation == seen.incarnation


async def _discard(task: "asyncio.Task[T]") -> None:
    """Cancel a task and see it end; raise what it failed with."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()):
        raise error
