"""A driver whose runtime does what a test says: for what only systemd or Docker would show."""

import asyncio
from typing import Any

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, ReasonCode, RuntimeState
from agent.runtimes.driver import Incarnation, Observation, Outcome, Recorder


class ScriptedDriver:
    """Shows the observation that it was given last."""

    def __init__(self, kind: DriverKind = DriverKind.SYSTEMD) -> None:
        self.kind = kind
        self.now: Observation | Exception = Observation(RuntimeState.STOPPED)
        self.pushes = True
        self.looks = 0
        self.tidied: list[str | None] = []
        self.tail: list[str] | Rejection = []
        self._changed = asyncio.Event()

    def show(self, state: RuntimeState, run: str | None = None, **facts: Any) -> None:
        """Change the runtime, and push that."""
        self.now = Observation(state, incarnation=Incarnation(run) if run else None, **facts)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Let every look fail."""
        self.now = error
        self._changed.set()

    async def looked(self, times: int) -> None:
        """Wait until it was looked at so many more times."""
        wanted = self.looks + times
        async with asyncio.timeout(10):
            while True:
                if self.looks >= wanted:
                    return
                await asyncio.sleep(0.005)

    async def observe(self) -> Observation:
        self.looks += 1
        self._changed.clear()
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    async def wait_for_change(self) -> None:
        if not self.pushes:
            raise Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot watch: the bus is away")
        await self._changed.wait()

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        if isinstance(self.tail, Rejection):
            raise self.tail
        return self.tail

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def settle(self) -> Observation:
        return await self.observe()

    async def start(self, record: Recorder) -> Outcome:
        raise NotImplementedError

    async def stop(self, record: Recorder) -> Outcome:
        raise NotImplementedError

    async def restart(self, record: Recorder) -> Outcome:
        raise NotImplementedError

    def check_config(self, config: Config) -> None:
        if "IGGY_DRIVER_SAYS_NO" in config.values:
            raise Rejection(ReasonCode.CONFIG_INVALID, "cannot use the config: no mount")

    async def tidy(self, committed: str | None) -> None:
        self.tidied.append(committed)

    def warnings(self) -> list[str]:
        return ["something fights the agent"]
