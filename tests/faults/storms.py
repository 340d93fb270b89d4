"""Storms: calm, then each request of some nodes meets a fault by chance, then nothing gets through, then calm again."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tests.e2e import fault_proxy
from tests.e2e.crash_node import CrashNode
from tests.e2e.fault_proxy import FaultProxy, answer_with
from tests.e2e.haste import LONGEST_DELAY
from tests.e2e.nursery import Manner, Nursery
from tests.e2e.ports import Ports
from tests.e2e.rig import Rig
from tests.faults.errands import USUAL, Node, judged
from tests.faults.fault import Budget, Ground
from tests.faults.tally import FalseReportError, Tally
from tests.faults.weather import KINDS, Kind, Weather

HASTY = Manner(hasty=True)
CHANNELS = 3
"""Kinds of calls that an agent makes all the time: polls, reports, heartbeats."""
OUTAGES = (fault_proxy.drop, fault_proxy.hang, answer_with(503))


@dataclass(frozen=True, slots=True)
class Station:
    """One node behind a proxy of its own."""

    node: Node
    proxy: FaultProxy


@asynccontextmanager
async def stations(
    rig: Rig, nursery: Nursery, name: str, count: int, chance: random.Random, tally: Tally, manner: Manner = HASTY
) -> AsyncIterator[list[Station]]:
    """Set up some nodes whose runtimes run."""
    async with AsyncExitStack() as stack:
        ports = Ports()
        stack.callback(ports.close)

        async def one(number: int) -> Station:
            proxy = await stack.enter_async_context(FaultProxy(rig.supervisor_url, ports.take()))
            node = CrashNode(rig, nursery, f"{name}-{number}", USUAL, supervisor_url=proxy.url, manner=manner)
            await stack.enter_async_context(node)
            await node.bring_up()
            return Station(Node(node, random.Random(chance.random()), tally), proxy)

        yield [await one(number) for number in range(count)]


async def storm(
    rig: Rig,
    nursery: Nursery,
    kinds: Sequence[Kind],
    chance: random.Random,
    budget: Budget,
    tally: Tally,
    *,
    nodes: int = 3,
    errands: int = 5,
) -> None:
    """Let it storm until the budget is over.

    Args:
        rig: Has the Supervisor.
        nursery: Starts the agents.
        kinds: What comes; with several, each is noted.
        chance: Draws.
        budget: How many rounds.
        tally: Counts.
        nodes: So many at once.
        errands: So often each node is given something to do in a storm.
    """
    name = kinds[0].key if len(kinds) == 1 else "mixed"
    odds = kinds[0].odds if len(kinds) == 1 else 0.35
    async with stations(rig, nursery, name, nodes, chance, tally) as placed, judged([one.node for one in placed]):
        weathers = [Weather(kinds, random.Random(chance.random()), odds) for _ in placed]
        while budget.more():
            await in_parallel(
                _round(station, weather, errands) for station, weather in zip(placed, weathers, strict=True)
            )
        tally.injected += sum(weather.hits.total() for weather in weathers)
        for weather in weathers:
            for late in weather.hurried:
                tally.fail("after 429", FalseReportError(late))
        if len(kinds) > 1:
            counted = {kind.key: sum(weather.hits[kind.key] for weather in weathers) for kind in kinds}
            tally.notes.append(", ".join(f"{key} {count}" for key, count in counted.items()))


async def in_parallel(rounds: Iterable[Coroutine[None, None, None]]) -> None:
    """Play a round on several nodes at once."""
    async with asyncio.TaskGroup() as group:
        for one in rounds:
            group.create_task(one)


async def _round(station: Station, weather: Weather, errands: int) -> None:
    """One storm on one node, one outage, and the calm after it."""
    node, proxy = station.node, station.proxy
    proxy.set(weather)
    for number in range(errands):
        await node.run(story=f"errand {number} in the storm,")
    await _outage(station)
    await node.get_well()


async def storm_and_kills(
    rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally, *, nodes: int = 3, errands: int = 5
) -> None:
    """Let it storm with everything while the agents are killed with SIGKILL at any moment, often soon after a start."""
    async with stations(rig, nursery, "kills", nodes, ground.chance, tally) as placed, judged([s.node for s in placed]):
        weathers = [Weather(KINDS, random.Random(ground.chance.random()), 0.35) for _ in placed]
        while budget.more():
            await in_parallel(
                _round_with_kills(station, weather, errands) for station, weather in zip(placed, weathers, strict=True)
            )
        tally.injected += sum(weather.hits.total() for weather in weathers)


async def _round_with_kills(station: Station, weather: Weather, errands: int) -> None:
    node = station.node
    station.proxy.set(weather)

    async with killed(node):
        for number in range(errands):
            await node.run(story=f"errand {number} in a storm that kills,")
    station.proxy.set(fault_proxy.none)
    await node.get_well()


@asynccontextmanager
async def killed(node: Node) -> AsyncIterator[None]:
    """Kill the agent of a node at any moment, often soon after a start."""

    async def kill() -> None:
        while True:
            await asyncio.sleep(node.chance.choice((0.1, 0.3, 1.0)) * node.chance.random())
            for _ in range(node.chance.choice((1, 1, 2, 3))):
                node.tally.injected += await node.node.crash()
            await asyncio.sleep(node.chance.uniform(0.5, 2.0))

    killing = asyncio.create_task(kill())
    try:
        yield
    finally:
        killing.cancel()
        await asyncio.wait({killing})
    if not killing.cancelled():
        killing.result()


async def _outage(station: Station) -> None:
    """Let nothing through for a while, in which something is dispatched; the agent must not try too often."""
    node, proxy = station.node, station.proxy
    proxy.set(node.chance.choice(OUTAGES))
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(node.run(story="in the outage,"))
        await asyncio.sleep(node.chance.uniform(0.5, 2.5))
        calls, seconds = proxy.calls_since(began), time.monotonic() - began
        proxy.set(fault_proxy.none)
    most = most_calls(seconds, LONGEST_DELAY)
    if calls > most:
        msg = f"{calls} calls in {seconds:.1f} s without an answer, at most {most} are in order"
        node.tally.fail("in the outage", FalseReportError(msg))


def most_calls(seconds: float, longest_delay: float) -> int:
    """Return how many calls are in order in a time in which all fail: four times what the delays come to on average."""
    ceiling, on_average = 0.5, 1
    while seconds > 0:
        seconds -= min(ceiling, longest_delay) / 2
        ceiling *= 2
        on_average += 1
    return CHANNELS * 4 * on_average
