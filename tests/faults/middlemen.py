"""What stands between agents and runtimes ends, and most agents with it: a Docker Engine, a bus, systemd itself.

Two agents of three are killed at the same moment, and each is started again before it is back or after that; the third
has to wait for it, and go on.

A run that had begun and died with it, and of which it knows nothing afterwards, is one that the crash itself makes
necessary once more, as with a machine: what it had written down when it was gone is read from its files.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from agent.protocol import ReasonCode
from tests.e2e.habitats import Habitat
from tests.e2e.public_api import Activity
from tests.e2e.scenarios import Scenario
from tests.faults.crashes import Stage, staged
from tests.faults.fault import Budget, Ground, Run
from tests.faults.kills import PLAIN, Blackout
from tests.faults.tally import Tally

LONGEST = 3.0
"""Seconds after which it is ended at the latest: actions that all nodes began at a time are over by then."""


BORN_LATE = 0.3
"""Seconds that a run which it has just started may take until its program has recorded its birth."""


class Middleman(Habitat, Protocol):
    """A habitat in which one program stands between all agents and their runtimes."""

    def end_middleman(self, *, hard: bool, gone: Callable[[], None]) -> None:
        """End it in one of two ways, call `gone`, and see to it that it is there again."""
        ...

    def recorded(self, state_dir: Path) -> set[str] | None:
        """Return the starts of a node's runtimes that it will know of when it is there again.

        It may be gone between a start and writing that down; None when it forgets nothing.
        """
        ...

    def mend(self) -> None:
        """Put right what its end left behind and does not put right by itself."""
        ...


class CommonEnd:
    """It ends while an action is under way on each node, and most agents with it.

    Args:
        stage: Where.
        habitat: Of all its nodes.
        chance: Draws the moments.
    """

    def __init__(self, stage: Stage, habitat: Middleman, chance: random.Random) -> None:
        self._stage = stage
        self._habitat = habitat
        self._chance = chance
        # What a node hears of meanwhile, it cannot begin.
        self._judge = Blackout(stage, boots=False, refusals={ReasonCode.DRIVER_UNAVAILABLE})
        self._recorded: list[set[str] | None] = []
        self._forgotten: list[int] = []

    async def play(self, scenarios: list[Scenario]) -> None:
        """Play one round: one crash, and a case on each node.

        Raises:
            TimeoutError: A node came to no end.
        """
        tally, hard, delay = self._stage.tally, self._chance.random() < 0.5, self._chance.uniform(0, LONGEST)
        story = f"{'hard' if hard else 'soft'} end after {delay:.3f} s"
        await asyncio.to_thread(self._habitat.mend)
        await asyncio.gather(*(self._stage.prepare(scenario, story) for scenario in scenarios))
        for scenario in scenarios:
            scenario.begin()
        self._recorded = [self._habitat.recorded(scenario.node.node.state_dir) for scenario in scenarios]
        self._forgotten = [0 for _ in scenarios]
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
        for scenario, activity, forgotten in zip(scenarios, ended, self._forgotten, strict=True):
            await self._judge.count(scenario, activity, forgotten, f"{story}, on {scenario.node.folder.name}")
        if count := sum(self._forgotten):
            tally.notes.append(f"{story}: {count} runs had begun, died with it, and it knows nothing of them")

    def _count_forgotten(self, scenarios: list[Scenario]) -> None:
        """Count the runs of each action that died with it before it had written down that it started them."""
        time.sleep(BORN_LATE)
        for number, (scenario, before) in enumerate(zip(scenarios, self._recorded, strict=True)):
            now = self._habitat.recorded(scenario.node.node.state_dir)
            if before is not None and now is not None:
                self._forgotten[number] = max(0, scenario.started() - len(now - before))

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
        gone = partial(self._count_forgotten, scenarios)
        restart = asyncio.create_task(asyncio.to_thread(self._habitat.end_middleman, hard=hard, gone=gone))
        try:
            for node in killed:
                await node.until_ended()
                if self._chance.random() < 0.5:
                    node.start_again()  # before it is there again
        finally:
            await restart
        for node in killed:
            node.start_again()
        self._stage.tally.injected += 1 + len(killed)


def row(open_habitat: Callable[[], AbstractAsyncContextManager[Middleman]]) -> Run:
    """End it again and again, in the middle of each kind of action."""

    async def run(ground: Ground, budget: Budget, tally: Tally) -> None:
        async with open_habitat() as habitat, staged(habitat, tally, impatient=budget.impatient) as stage:
            for kind, share in zip(PLAIN, budget.parts(len(PLAIN)), strict=True):
                async with stage.company(kind) as scenarios:
                    end = CommonEnd(stage, habitat, ground.chance)
                    while not stage.is_over and share.more():
                        try:
                            await end.play(scenarios)
                        except TimeoutError:  # it is counted; these nodes are of no use any more
                            break

    return run
