"""The agent killed where runtimes are containers: as in every habitat, and together with the Engine itself.

With the Engine (SIGKILL, or ended as an operator does; it is started again at once) all containers end too, and every
call that is on its way in it is cut off. Two agents of three are killed at the same moment; the third has to wait for
the Engine, and go on. Containers and their volumes are counted as well, in every row.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.protocol import DriverKind, ReasonCode
from tests.e2e.containers import Containers, containers
from tests.e2e.public_api import Activity
from tests.e2e.scenarios import (
    Reconfigure,
    Restart,
    RolledBack,
    Scenario,
    Stop,
    SupersededReconfigure,
)
from tests.faults import kills
from tests.faults.crashes import Stage, staged
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.kills import Blackout
from tests.faults.tally import Tally
from tests.runtimes.engine_rig import missing

LONGEST = 3.0
"""Seconds after which the Engine is ended at the latest: actions that all nodes began at a time are over by then."""
REVIVED = "unless-stopped"
KEPT_UP = (Stop, Restart, Reconfigure, RolledBack, SupersededReconfigure)
"""Those that nobody has to begin by ending the runtime: a container with a restart policy would come back."""


class EngineCrash:
    """The Engine ends while an action is under way on each node, and most agents with it.

    Args:
        stage: Where.
        habitat: Of all its nodes.
        chance: Draws the moments.
    """

    def __init__(self, stage: Stage, habitat: Containers, chance: random.Random) -> None:
        self._stage = stage
        self._habitat = habitat
        self._chance = chance
        # What a node hears of while there is no Engine, it cannot begin.
        self._judge = Blackout(stage, boots=False, refusals={ReasonCode.DRIVER_UNAVAILABLE})

    async def play(self, scenarios: list[Scenario]) -> None:
        """Play one round: one crash, and a case on each node.

        Raises:
            TimeoutError: A node came to no end.
        """
        tally, hard, delay = self._stage.tally, self._chance.random() < 0.5, self._chance.uniform(0, LONGEST)
        story = f"the Engine {'killed' if hard else 'ended'} after {delay:.3f} s"
        await asyncio.to_thread(self._habitat.mend)
        await asyncio.gather(*(scenario.prepare() for scenario in scenarios))
        for scenario in scenarios:
            scenario.begin()
        tally.cases += len(scenarios)
        tally.reports_expected += len(scenarios)
        acting = [asyncio.create_task(self._act(scenario, story)) for scenario in scenarios]
        try:
            await asyncio.sleep(delay)
            await self._crash(scenarios, hard=hard)
            ended = await asyncio.gather(*acting)
        finally:
            for task in acting:
                task.cancel()
            await asyncio.gather(*acting, return_exceptions=True)
        for scenario, activity in zip(scenarios, ended, strict=True):
            await self._judge.count(scenario, activity, 0, f"{story}, on {scenario.node.folder.name}")

    async def _act(self, scenario: Scenario, story: str) -> Activity:
        try:
            (activity,) = await scenario.act()
            await scenario.node.rest()
        except TimeoutError as error:
            self._stage.tally.fail(f"{scenario.name}, {story}, on {scenario.node.folder.name}", error)
            raise
        return activity

    async def _crash(self, scenarios: list[Scenario], *, hard: bool) -> None:
        killed = [scenario.node for scenario in scenarios if self._chance.random() < 2 / 3]
        for node in killed:
            node.hold()
            node.agent.kill()
        restart = asyncio.create_task(asyncio.to_thread(self._habitat.restart_engine, hard=hard))
        try:
            for node in killed:
                await node.until_ended()
                if self._chance.random() < 0.5:
                    node.start_again()  # before there is an Engine
        finally:
            await restart
        for node in killed:
            node.start_again()
        self._stage.tally.injected += 1 + len(killed)


async def with_the_engine(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Crash the Engine, again and again, in the middle of each kind of action."""
    async with engine() as habitat, staged(habitat, tally, impatient=budget.impatient) as stage:
        for kind in kills.PLAIN:
            share = budget.part(1 / len(kills.PLAIN))
            async with stage.company(kind) as scenarios:
                crash = EngineCrash(stage, habitat, ground.chance)
                while not stage.is_over and share.more():
                    try:
                        await crash.play(scenarios)
                    except TimeoutError:  # it is counted; these nodes are of no use any more
                        break


@asynccontextmanager
async def engine(policy: str = "no") -> AsyncIterator[Containers]:
    """Start an Engine for a row."""
    with containers(policy) as habitat:
        yield habitat


@asynccontextmanager
async def revived() -> AsyncIterator[Containers]:
    """Start one whose containers have a restart policy, which a recreation takes away and gives back."""
    async with engine(REVIVED) as habitat:
        yield habitat


FAULTS = (
    *kills.rows(DriverKind.DOCKER, engine, missing),
    Fault(
        f"kill.policy.{DriverKind.DOCKER}",
        f"kill -9 at each point, {DriverKind.DOCKER}, {REVIVED}",
        kills.row(kills.at_each_point, revived, KEPT_UP),
        lacks=missing,
    ),
    Fault(f"kill.engine.{DriverKind.DOCKER}", "agent and Engine killed", with_the_engine, lacks=missing),
)
