"""One life of the agent on the node's disk, which can be made to go on boundary by boundary, and to end at each."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from agent.activities.lanes import Lanes
from agent.conditions import Conditions
from agent.errors import SupervisorError
from agent.journal import Journal, Row, SweepToken, Taken
from agent.link.backoff import Backoff
from agent.link.client import SupervisorClient
from agent.link.held import Held
from agent.link.pace import Pace
from agent.link.receiver import Receiver
from agent.link.reporter import Reporter
from agent.link.standing import Standing
from agent.protocol import ReportOutcome, Verb
from agent.redaction import Redactor
from agent.runtimes.probe import ProbePlan, ProbeResult
from agent.runtimes.releases import Release, Releases
from agent.runtimes.runtime import Runtime, Timeouts
from tests.faults.simulated.clockwork import VirtualLoop
from tests.faults.simulated.drivers import SimulatedDriver
from tests.faults.simulated.supervisor import PAGE, Client, Supervisor
from tests.faults.simulated.world import World

T = TypeVar("T")

LINK = "the link"
EVERYBODY = "everybody"
PLAN = ProbePlan(tcp="127.0.0.1:1", ready_timeout=6.0, stable_for=0.2)
TIMEOUTS = Timeouts(start=6.0, stop=4.0, action=40.0)
RETRY_HEARTBEAT = 1.0


Stop = Callable[[str, str], bool]
"""Asked at each boundary, with who passes it and which it is: whether the agent halts there."""


def never(_who: str, _what: str) -> bool:
    """Let it pass."""
    return False


class ProcessGoneError(BaseException):
    """The agent's process is gone: nothing it would do next is done."""


@dataclass(eq=False)
class Disk:
    """The node's state folder, and whether it can be written."""

    folder: Path
    journal_id: str
    writes_that_fail: int = 0
    failed: int = 0

    def fails(self) -> bool:
        if not self.writes_that_fail:
            return False
        self.writes_that_fail -= 1
        self.failed += 1
        return True


@dataclass(eq=False)
class Witness:
    """What the judge is told of each boundary that the agent passes."""

    taken: Callable[[Sequence[Any], Taken], None]
    waiting: Callable[[str], list[int]]
    chosen: Callable[[int, list[int]], None]
    begun: Callable[[int], None]
    called: Callable[[int, Mapping[str, Any]], None]
    finished: Callable[[int, Mapping[str, Any]], None]
    withdrawn: Callable[[list[int]], None]
    sent: Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Gate:
    """Where the agent waits, when it is told to: before and after each write, each call, each answer.

    Attributes:
        gone: The process ended; nothing passes any more.
        halted: Nothing passes until the gate is opened.
        only: Who passes.
        stop: Asked at each boundary; True: the agent halts there.
        passed: The last boundaries, for the story.
    """

    loop: VirtualLoop
    gone: bool = False
    halted: bool = False
    only: str = EVERYBODY
    stop: Stop = never
    waiting: dict["asyncio.Future[None]", tuple[str, str]] = field(default_factory=dict)

    async def point(self, who: str, what: str) -> None:
        if not self.gone and not self.halted and self.only in {EVERYBODY, who} and self.stop(who, what):
            self.halted = True
            self.loop.halt()
        while not self.gone and (self.halted or self.only not in {EVERYBODY, who}):
            future: asyncio.Future[None] = self.loop.create_future()
            self.waiting[future] = who, what
            try:
                await future
            finally:
                del self.waiting[future]
        if self.gone:
            raise ProcessGoneError

    def open(self, stop: Stop, only: str) -> None:
        self.halted, self.stop, self.only = False, stop, only
        self._release()

    def destroy(self) -> None:
        self.gone = True
        self._release()

    def _release(self) -> None:
        for future in list(self.waiting):
            if not future.done():
                future.set_result(None)

    def where(self) -> list[str]:
        return [what for _, what in self.waiting.values()]


class GatedJournal(Journal):
    """The journal, with a boundary before and after each of its writes, on a disk that may fail."""

    gate: Gate
    witness: Witness
    runtime_of: Callable[[int], str]

    @asynccontextmanager
    async def _step(self, what: str, activity_id: int | None = None) -> AsyncIterator[None]:
        who = LINK if activity_id is None else self.runtime_of(activity_id)
        await self.gate.point(who, f"before {what} is written")
        yield
        await self.gate.point(who, f"after {what} was written")

    def intercept_writes(self, disk: Disk) -> None:
        """Let each transaction be refused when the disk says so, and none be made by a process that is gone."""
        write = self._database.write

        async def intercepted(work: Callable[[sqlite3.Connection], T], committed: Callable[[T], None]) -> T:
            if self.gate.gone:
                raise ProcessGoneError

            def failing(connection: sqlite3.Connection) -> T:
                work(connection)
                msg = "disk I/O error"
                raise sqlite3.OperationalError(msg)

            return await write(failing if disk.fails() else work, committed)

        self._database.write = intercepted  # type: ignore[method-assign]

    async def take(self, items: Sequence[Any], **facts: Any) -> Taken:
        async with self._step("an answer"):
            taken = await super().take(items, **facts)
            self.witness.taken(items, taken)
            return taken

    async def next(self, runtime: str) -> Row | None:
        waiting = self.witness.waiting(runtime)
        row = await super().next(runtime)
        if row is not None:
            self.witness.chosen(row.id, waiting)
        return row

    async def end_sweep(self, token: SweepToken, **facts: Any) -> list[int]:
        async with self._step("the end of a sweep"):
            withdrawn = await super().end_sweep(token, **facts)
            self.witness.withdrawn(withdrawn)
            return withdrawn

    async def reported(self, results: Mapping[int, ReportOutcome]) -> None:
        async with self._step("reported"):
            await super().reported(results)

    async def start(self, activity_id: int, verb: Verb) -> Row | None:
        async with self._step("started", activity_id):
            begun = await super().start(activity_id, verb)
            if begun:
                self.witness.begun(activity_id)
            return begun

    async def record(self, activity_id: int, call: str, **facts: Any) -> None:
        async with self._step(f"the call {call}", activity_id):
            await super().record(activity_id, call, **facts)
            self.witness.called(activity_id, facts)

    async def go_back(self, activity_id: int, **facts: Any) -> None:
        async with self._step("the decision to go back", activity_id):
            await super().go_back(activity_id, **facts)

    async def finish(self, activity_id: int, **facts: Any) -> bool:
        async with self._step("finished", activity_id):
            written = await super().finish(activity_id, **facts)
            if written:
                self.witness.finished(activity_id, facts)
            return written


class GatedRuntime(Runtime):
    """A runtime with a boundary before and after each change of its releases."""

    gate: Gate

    async def stage(self, config: Any) -> Release:
        await self.gate.point(self.name, "before the config is staged")
        release = await super().stage(config)
        await self.gate.point(self.name, "after the config was staged")
        return release

    async def switch(self, release_name: str | None) -> None:
        await self.gate.point(self.name, "before current is switched")
        await super().switch(release_name)
        await self.gate.point(self.name, "after current was switched")


class WorldProbe:
    def __init__(self, world: World) -> None:
        self._world = world

    async def check(self) -> ProbeResult:
        run = self._world.running
        ready = run is not None and run.ready is not None
        return ProbeResult(ready=ready, why=None if ready else "it says no")

    async def close(self) -> None: ...


class Life:
    """One agent, from its start to its death.

    Args:
        loop: Everything runs in it.
        disk: What outlives the agent.
        worlds: The runtimes.
        supervisor: Who it talks to.
        witness: Told what it does.
        now: The Supervisor's time.
        runtime_of: The runtime of an activity.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        disk: Disk,
        worlds: Sequence[World],
        supervisor: Supervisor,
        *,
        witness: Witness,
        now: Callable[[], datetime],
        runtime_of: Callable[[int], str],
    ) -> None:
        self.gate = Gate(loop)
        self.conditions = Conditions()
        self.journal: GatedJournal | None = None
        self._loop = loop
        self._disk = disk
        self._worlds = worlds
        self._supervisor = supervisor
        self._witness = witness
        self._now = now
        self._runtime_of = runtime_of
        self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        journal = await GatedJournal.open(
            self._disk.folder,
            journal_id=self._disk.journal_id,
            conditions=self.conditions,
            boot_id=lambda: self._worlds[0].machine.boot_id,
        )
        journal.gate = self.gate
        journal.witness, journal.runtime_of = self._witness, self._runtime_of
        self.journal = journal
        runtimes = {world.name: await self._open_runtime(world, journal) for world in self._worlds}
        lanes = Lanes(
            runtimes,
            journal,
            now=self._now,
            permitted=lambda: True,
            conditions=self.conditions,
            on_recovered=_nothing,
        )
        receiver, reporter, client = self._link(journal)
        journal.intercept_writes(self._disk)  # only once it is up: one that cannot even begin ends, and begins anew
        async with asyncio.TaskGroup() as group:
            for part in (lanes.run(), receiver.run(), reporter.run(), self._beat(journal, client)):
                group.create_task(part)

    async def _open_runtime(self, world: World, journal: Journal) -> Runtime:
        runtime = GatedRuntime(
            world.name,
            driver=SimulatedDriver(world, lambda what: self.gate.point(world.name, what)),
            releases=Releases(self._disk.folder / "runtimes" / world.name, world.name),
            plan=PLAN,
            timeouts=TIMEOUTS,
            redactor=Redactor(),
        )
        runtime.gate = self.gate
        runtime._probe = WorldProbe(world)  # type: ignore[assignment]
        await runtime.open()
        current = await runtime.current_or_none()
        await journal.know_runtime(world.name, current=current.name if current else None)
        return runtime

    def _link(self, journal: Journal) -> tuple[Receiver, Reporter, Client]:
        client = Client(
            self._supervisor,
            revision=lambda: journal.revision,
            point=lambda what: self.gate.point(LINK, what),
            sent=self._witness.sent,
        )
        real = cast("SupervisorClient", client)

        def backoff(cap: float = 4.0) -> Backoff:
            return Backoff(first=0.5, cap=cap, chance=lambda: 0.5, monotonic=self._loop.time)

        standing = Standing(self.conditions)
        reporter = Reporter(
            real,
            journal,
            standing=standing,
            conditions=self.conditions,
            backoff=backoff(),
            disk=backoff(),
            refusals=backoff(),
            held=Held(monotonic=self._loop.time),
        )
        receiver = Receiver(
            real,
            journal,
            standing=standing,
            conditions=self.conditions,
            pace=Pace(),
            swept=reporter.try_refused,
            page=PAGE,
            backoff=backoff(),
            disk=backoff(),
            stall=backoff(),
        )
        return receiver, reporter, client

    async def _beat(self, journal: Journal, client: Client) -> None:
        while True:
            await journal.started_written.wait()
            while True:
                try:
                    await client.beat()
                except SupervisorError:
                    await asyncio.sleep(RETRY_HEARTBEAT)
                else:
                    break

    # --- what is done to it

    def go(self, seconds: float, *, stop: Stop = never, only: str = EVERYBODY) -> None:
        """Let it go on, until it has passed so many seconds or `stop` says so; then it waits where it is."""
        self.gate.open(stop, only)
        self._loop.go(seconds)
        self.gate.halted = True
        self.look()

    def look(self) -> None:
        """Fail when the agent ended by itself."""
        if self._task.done():
            self._task.result()
            msg = "the agent ended by itself"
            raise AssertionError(msg)

    def die(self) -> None:
        """Be gone: what it was about to do is not done, and the disk is as it left it."""
        self.gate.destroy()
        self._task.cancel()
        self._loop.go()
        assert self._task.done(), "something of the dead agent goes on"
        with contextlib.suppress(ProcessGoneError, asyncio.CancelledError, BaseExceptionGroup):
            self._task.result()
        if self.journal is not None:
            _close(self.journal)


async def _nothing(_runtime: Runtime) -> None: ...


def _close(journal: Journal) -> None:
    """Close the file: what was committed is there, whether in the WAL, as after a real kill, or in the file itself."""
    connection, journal._database._connection = journal._database._connection, None
    if connection is not None:
        connection.close()
    journal._database.reserve.close()
