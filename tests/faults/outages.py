"""A Supervisor that is away: for long, killed at any moment, or put back from a copy."""

import asyncio
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import fault_proxy
from tests.e2e.crash_node import CrashNode
from tests.e2e.fault_proxy import Fault, answer_with
from tests.e2e.nursery import USUAL as PATIENT
from tests.e2e.nursery import Nursery
from tests.e2e.public_api import ApiError
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.errands import USUAL, Node, judged, plan
from tests.faults.fault import Budget, Ground
from tests.faults.storms import HASTY, Station, most_calls, stations
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

LONGEST_DELAY = 60.0
"""Seconds, of an agent that is not hasty."""
OUTAGES: tuple[tuple[str, Fault], ...] = (
    ("dropped", fault_proxy.drop),
    ("black hole", fault_proxy.hang),
    ("503", answer_with(503)),
    ("answers lost", fault_proxy.swallow),
)
EACH = 0.25
"""Seconds that an activity of a backlog may take, most of which have nothing to do."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is dispatched in a long outage.

    Attributes:
        size: Activities, for one node.
        seconds: The outage lasts so long at least.
    """

    size: int = 1000
    seconds: float = 20.0


async def long_outage(
    rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally, backlog: Backlog
) -> None:
    """Cut a node off while a thousand activities are dispatched to it, with the delays that the agent really has."""
    async with (
        stations(rig, nursery, "outage", 1, ground.chance, tally, PATIENT) as (station,),
        judged([station.node]),
    ):
        while budget.more():
            name, fault = ground.chance.choice(OUTAGES)
            await _one_outage(station, name, fault, backlog)
            tally.injected += 1


async def _one_outage(station: Station, name: str, fault: Fault, backlog: Backlog) -> None:
    node, tally = station.node, station.node.tally
    verbs = [node.chance.choices(("start", "stop", "restart"), (90, 6, 4))[0] for _ in range(backlog.size)]
    before, runs = node.node.births(), bool(node.node.alive())
    errands = plan(verbs, runs=runs)
    station.proxy.set(fault)
    began = time.monotonic()
    activities = await node.dispatch(verbs)
    await asyncio.sleep(max(0.0, began + backlog.seconds - time.monotonic()))
    calls, seconds = station.proxy.calls_since(began), time.monotonic() - began
    station.proxy.set(fault_proxy.none)
    back = time.monotonic()
    if calls > most_calls(seconds, LONGEST_DELAY):
        msg = f"{calls} calls in {seconds:.0f} s ({name})"
        tally.fail("hot loop", FalseReportError(msg))
    await _all_reported(node, {activity.id for activity in activities}, LONGEST_DELAY + 30 + EACH * backlog.size)
    took = time.monotonic() - back
    tally.notes.append(
        f"{name}: {backlog.size:,} activities dispatched in {seconds:.0f} s without a network ({calls} calls);"
        f" all were reported {took:.0f} s after it was back"
    )
    found = await node.end(before, errands, activities, name)
    order = [activity.raw["finished_at"] for activity in found]
    if order != sorted(order):
        tally.fail(name, FalseReportError("they were not finished in the order in which they were dispatched"))


async def _all_reported(node: Node, ids: set[int], within: float) -> None:
    """Wait until nothing is open; the list tells it in one call for many."""

    async def look() -> bool:
        return not any(
            found.status == "processing" and found.id in ids for found in await node.node.rig.api.activities()
        )

    try:
        await until(look, f"{len(ids)} activities are reported", within=within, every=1.0)
    except TimeoutError as error:
        node.tally.fail("the backlog", error)


# --- a Supervisor that dies -------------------------------------------------------------------------------------------


async def killed_supervisor(
    rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally, *, nodes: int = 3
) -> None:
    """Kill the Supervisor with SIGKILL at any moment while nodes are busy, and start it again."""
    quiet = asyncio.Lock()
    async with AsyncExitStack() as stack:
        placed = [
            await _direct(stack, rig, nursery, f"killed-{number}", ground, tally, quiet) for number in range(nodes)
        ]
        await stack.enter_async_context(judged(placed))
        busy = True

        async def work(node: Node) -> None:
            while busy:
                await node.run(story="while the Supervisor dies,")

        async with asyncio.TaskGroup() as group:
            for node in placed:
                group.create_task(work(node))
            try:
                while budget.more():
                    await asyncio.sleep(ground.chance.uniform(0.05, 1.5))
                    async with quiet:
                        rig.supervisor.kill()
                        tally.injected += 1
                        await asyncio.sleep(ground.chance.choice((0.0, 0.0, 0.3, 1.0)))
                        await rig.start_supervisor()
            finally:
                busy = False


async def _direct(
    stack: AsyncExitStack, rig: Rig, nursery: Nursery, name: str, ground: Ground, tally: Tally, quiet: asyncio.Lock
) -> Node:
    node = await stack.enter_async_context(CrashNode(rig, nursery, name, USUAL, manner=HASTY))
    await node.bring_up()
    return Node(node, ground.chance, tally, quiet)


async def old_copy(rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally, *, nodes: int = 2) -> None:
    """Put the Supervisor back from a copy that was made in the middle of something.

    What the copy knows is reported to it again, and what was dispatched after it is forgotten; nothing is repeated.
    """
    quiet = asyncio.Lock()
    async with AsyncExitStack() as stack:
        placed = [await _direct(stack, rig, nursery, f"copy-{number}", ground, tally, quiet) for number in range(nodes)]
        await stack.enter_async_context(judged(placed))
        while budget.more():
            await _one_copy(rig, placed, ground, tally)


async def _one_copy(rig: Rig, placed: list[Node], ground: Ground, tally: Tally) -> None:
    copy = ground.folder / "copy"
    before = [(node.node.births(), bool(node.node.alive())) for node in placed]
    verbs = [node.choose() for node in placed]
    activities = [await node.dispatch(chosen) for node, chosen in zip(placed, verbs, strict=True)]
    await asyncio.sleep(ground.chance.uniform(0.0, 0.5))
    await rig.supervisor.terminate()
    await asyncio.to_thread(shutil.copytree, rig.supervisor_database.parent, copy)
    await rig.start_supervisor()
    for node, (births, runs), chosen, dispatched in zip(placed, before, verbs, activities, strict=True):
        await node.end(births, plan(chosen, runs=runs), dispatched, "before the copy,")
        known = list(node.reported)
        later = await node.run(story="after the copy,")
        node.reported = known
        node.forgotten = later
    await _put_back(rig, copy)
    tally.injected += 1
    for node in placed:
        for activity in node.reported:
            await node.finished(activity)
        await node.check_again()
        await _check_forgotten(node)
        newer = await node.run(story="after the copy was put back,")
        if node.forgotten and newer and newer[0].id <= node.forgotten[-1].id:
            tally.fail("put back", RepeatedError(f"the id {newer[0].id} was given before"))


async def _put_back(rig: Rig, copy: Path) -> None:
    rig.supervisor.kill()
    await asyncio.to_thread(shutil.rmtree, rig.supervisor_database.parent)
    await asyncio.to_thread(copy.rename, rig.supervisor_database.parent)
    await rig.start_supervisor()


async def _check_forgotten(node: Node) -> None:
    for activity in node.forgotten:
        try:
            await node.node.rig.api.get(activity.id)
        except ApiError as error:
            if error.status == 404:
                continue
            raise
        node.tally.fail("put back", LostError(f"the copy knows {activity.id}, which was dispatched after it"))
