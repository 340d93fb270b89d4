"""Plays scenarios on nodes of one habitat while their agents are killed, and counts what came of it.

The points at which an agent is killed are not listed anywhere: a scenario is run once without a kill, and then again
for each point that this run passed. The points of a recovery are found in the same way, from a run that was killed.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from tests.e2e.crash_node import CrashNode
from tests.e2e.habitats import Habitat
from tests.e2e.nursery import Nursery
from tests.e2e.programs import standin_programs
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL, Scenario
from tests.faults.tally import LostError, Tally

VARYING = tuple(f"{when}:http.heartbeat:{hit}" for when in ("before", "after") for hit in range(2, 10))
"""Heartbeats after the first, which come when something else changed."""
Crashes = Sequence[str]
"""Points, each in a process of its own."""


class Stage:
    """Where scenarios are played: one Supervisor, and nodes of one habitat.

    Args:
        rig: The Supervisor.
        nursery: Starts the agents.
        habitat: Of all its nodes.
        tally: Counts.
        impatient: Whether the first failure ends it.
    """

    def __init__(self, rig: Rig, nursery: Nursery, habitat: Habitat, tally: Tally, *, impatient: bool = False) -> None:
        self.rig = rig
        self.tally = tally
        self._impatient = impatient
        self.missed: list[Crashes] = []
        self._nursery = nursery
        self._habitat = habitat
        self._names = itertools.count(1)
        self._cases = itertools.count(1)
        self._entered: list[CrashNode] = []
        self._idle: list[tuple[type[Scenario], CrashNode]] = []

    @asynccontextmanager
    async def company(self, kind: type[Scenario]) -> AsyncIterator[list[Scenario]]:
        """Lend nodes for a scenario, as many as it and the habitat want; those that are missing are brought up.

        They are lent again to scenarios with the same settings, unless something went wrong meanwhile.
        """
        wanted, wrong = max(kind.nodes, self._habitat.nodes), self.tally.wrong
        nodes = self._idle_for(kind)[:wanted]
        self._idle = [known for known in self._idle if known[1] not in nodes]
        async with asyncio.TaskGroup() as group:
            entering = [group.create_task(self._enter(kind)) for _ in range(wanted - len(nodes))]
        nodes += [task.result() for task in entering]
        for node in nodes:
            node.switch_faults()
        yield [kind(node) for node in nodes]
        if self.tally.wrong == wrong:
            self._idle += ((kind, node) for node in nodes)

    async def close(self) -> None:
        """End all nodes that `company` brought up."""
        async with asyncio.TaskGroup() as group:
            while self._entered:
                group.create_task(self._entered.pop().__aexit__(None, None, None))

    def _idle_for(self, kind: type[Scenario]) -> list[CrashNode]:
        wanted = kind.options, kind.manner
        return [node for made_for, node in self._idle if (made_for.options, made_for.manner) == wanted]

    async def _enter(self, kind: type[Scenario]) -> CrashNode:
        node = await self._node(kind).__aenter__()
        self._entered.append(node)
        return node

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be played."""
        return self._impatient and self.tally.wrong > 0

    async def enter(self, stack: AsyncExitStack, kind: type[Scenario]) -> Scenario:
        """Bring up a node for a scenario."""
        return kind(await stack.enter_async_context(self._node(kind)))

    def _node(self, kind: type[Scenario]) -> CrashNode:
        name = f"{kind.__name__.lower()}-{next(self._names)}"
        ready_timeout = max(kind.options.ready_timeout, self._habitat.ready_within)
        options = replace(kind.options, ready_timeout=ready_timeout)
        return CrashNode(self.rig, self._nursery, name, options, habitat=self._habitat, manner=kind.manner)

    async def kill_at(self, scenario: Scenario, crashes: Crashes) -> list[list[str]]:
        """Play it once, killed at these points; returns the points that each process passed.

        Raises:
            TimeoutError: It came to no end, and the node is of no use any more.
        """
        node = scenario.node
        async with self._case(scenario, f"killed {list(crashes)}", crashes) as activities:
            activities.extend(await scenario.act())
            await node.crashes_are_over()
            self.tally.injected += len(node.crashed())
            if node.crashed() != list(crashes):
                self.missed.append(crashes)
        passed = node.passed()
        node.disarm()
        return passed

    async def kill_after(self, scenario: Scenario, delays: Sequence[float]) -> None:
        """Play it once, killed so many seconds after it began, and again after each start of the agent.

        Raises:
            TimeoutError: As above.
        """
        node = scenario.node
        story = f"killed after {', '.join(f'{delay:.3f}' for delay in delays)} s"
        async with self._case(scenario, story, ()) as activities:
            acting = asyncio.create_task(scenario.act())
            try:
                for delay in delays:
                    await asyncio.sleep(delay)
                    killed = await node.crash()  # first, for others count meanwhile
                    self.tally.injected += killed
                activities.extend(await acting)
            finally:
                acting.cancel()
                await asyncio.gather(acting, return_exceptions=True)
            await node.rest()
        node.disarm()

    @asynccontextmanager
    async def _case(self, scenario: Scenario, story: str, crashes: Crashes) -> AsyncIterator[list[Activity]]:
        """Prepare a case, have it played, and judge what it put into the list."""
        story = f"{scenario.name}, {story}"
        activities: list[Activity] = []
        await self.prepare(scenario, story)
        scenario.begin()
        scenario.node.arm(str(next(self._cases)), list(crashes))
        self.tally.cases += 1
        self.tally.effects_expected += scenario.starts
        self.tally.reports_expected += scenario.dispatched
        try:
            yield activities
        except TimeoutError as error:
            self.tally.fail(f"{story}, on {scenario.node.folder.name}", error)
            raise
        self.tally.effects_seen += scenario.started()
        self.tally.reports_seen += len(activities)
        try:
            await scenario.judge(activities)
        except (AssertionError, KeyError, ValueError) as error:
            for activity in activities:
                error.add_note(str(activity.raw))
            self.tally.fail(story, error)

    async def prepare(self, scenario: Scenario, story: str) -> None:
        """Bring the node to where the action begins; that an agent comes to no end with that is counted too.

        Raises:
            TimeoutError: As above.
        """
        try:
            await scenario.prepare()
        except TimeoutError as error:
            self.tally.fail(f"{story}, when it was prepared on {scenario.node.folder.name}", error)
            raise

    async def trace(self, scenario: Scenario, crashes: Crashes) -> list[str]:
        """Play it, and return the points that its last process passed before it had nothing to do any more."""
        passed = (await self.kill_at(scenario, crashes))[-1]
        # Without a kill there is nothing to sweep for: then it is the one of the start, which fell into this case.
        return [point for point in passed if not point.startswith(VARYING) and (crashes or "_sweep:" not in point)]


def unreached(missed: Iterable[Crashes]) -> list[Crashes]:
    """Return what has to be reached and was not: how many calls it takes to hear and say all is not always the same."""
    return [crashes for crashes in missed if all(point.endswith(":1") and "http." not in point for point in crashes)]


def require_reached(tally: Tally, missed: Iterable[Crashes]) -> None:
    """Count as a failure what was planned and never came: a kill that is not made proves nothing."""
    if left := unreached(missed):
        tally.fail("the campaign", LostError(f"these points were planned, and never reached: {left}"))


async def share(scenarios: Iterable[Scenario], cases: Iterator[Crashes], stage: Stage) -> None:
    """Have the nodes share the cases; one that came to no end takes no more, and what all leave is counted as lost."""

    async def work(scenario: Scenario) -> None:
        for crashes in itertools.takewhile(lambda _: not stage.is_over, cases):
            try:
                await stage.kill_at(scenario, crashes)
            except TimeoutError:
                return

    async with asyncio.TaskGroup() as group:
        for scenario in scenarios:
            group.create_task(work(scenario))
    if not stage.is_over and (left := list(cases)):
        stage.tally.fail("the campaign", LostError(f"no node was left to be killed at {left}"))


@asynccontextmanager
async def staged(habitat: Habitat, tally: Tally, *, impatient: bool = False) -> AsyncIterator[Stage]:
    """Bring up a Supervisor, and what starts agents."""
    async with Rig(standin_programs(), USUAL) as rig, Nursery(rig.folder, habitat.driver) as nursery:
        stage = Stage(rig, nursery, habitat, tally, impatient=impatient)
        try:
            yield stage
        finally:
            await stage.close()


def draw_delays(chance: random.Random, longest: float, most: int) -> list[float]:
    """Draw moments of kills: some within milliseconds of a start, where an agent recovers, some later."""
    count = chance.choice([1, 1, *range(1, most + 1)])
    return [chance.choice([chance.uniform(0, 0.05), chance.uniform(0, longest)]) for _ in range(count)]
