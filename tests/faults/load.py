"""A thousand activities at once, ten thousand polls, and actions without an end: nothing is lost, and nothing grows.

The thousand are for both runtimes of one node, and the agent, which was stopped, learns of them all at once: each is
carried out in its turn, and reported once. While it polls at many times its usual pace, and while it acts for as long
as the row goes on, its memory, file descriptors, tasks, threads and journal are looked at from outside.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aiohttp import web

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.e2e.fault_proxy import Exchange, FaultProxy
from tests.e2e.ports import Ports
from tests.e2e.programs import standin_programs
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.deeds import IGGY, PATHS, USUAL, Actor
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

AT_ONCE, FEW = 1000, 100
"""Activities of a burst, and those of one that is to be over soon."""
PLAN = {
    IGGY: (("start", 90), ("restart", 4), ("stop", 3), ("reconfigure", 0)),
    RuntimeName.CONNECTORS: (("stop", 97), ("start", 2), ("restart", 1)),
}
"""What comes how often: mostly what is done already."""
SLOWEST, SLOW = 0.2, 30.0
"""Seconds for each activity of a burst, and for all of it, within which it is over on a machine that has much to do."""
WARM, POLLS, FEW_POLLS = 1500, 10_000, 100
WARM_DEEDS, FEW_DEEDS = 25, 8
"""Before anything is measured; few where it is to be over soon."""
KEPT = 20
"""Activities that the journal keeps in the soak."""
GROWTH = 1_000_000
"""Bytes that the agent's memory may grow by in all that time."""
JOURNAL = 400_000
"""Bytes that the journal with its WAL may grow by, with so few activities in it."""
AGENT = ("env", "-u", "COVERAGE_PROCESS_START", sys.executable, "-m", "tests.faults.counted_agent")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything the agent has; bytes of memory and of its journal."""

    memory: int
    descriptors: int
    threads: int
    tasks: int
    journal: int


def measure(actor: Actor) -> Size:
    """Look at the agent: proc_pid_smaps(5), proc_pid_fd(5), proc_pid_task(5)."""
    proc, state = Path(f"/proc/{actor.pid}"), actor.rig.node.state_dir
    rss = re.search(r"^Rss:\s+(\d+) kB$", (proc / "smaps_rollup").read_text(), re.MULTILINE)
    return Size(
        memory=int(rss[1]) * 1024 if rss else 0,
        descriptors=len(list((proc / "fd").iterdir())),
        threads=len(list((proc / "task").iterdir())),
        tasks=int((actor.rig.folder / "tasks").read_text() or 0),
        journal=sum(file.stat().st_size for file in state.glob("journal.db*")),
    )


@asynccontextmanager
async def _counted(ground: Ground, tally: Tally, **agent: float) -> AsyncIterator[Actor]:
    """Run an agent that polls all the time."""
    options = replace(USUAL, poll_wait=0.01, agent=agent)
    async with Rig(standin_programs(), options) as rig:
        await rig.start_agent(program=[*AGENT, str(rig.folder / "tasks")], environment=PATHS)
        yield Actor(rig, ground.chance, tally)


def _compare(tally: Tally, first: Size, last: Size, after: str) -> None:
    """Judge what grew."""
    grown = {name: value - asdict(first)[name] for name, value in asdict(last).items()}
    tally.notes.append(
        f"after {after}: {last.memory / 1e6:.1f} MB resident ({grown['memory'] / 1e6:+.2f} MB), {last.descriptors} file"
        f" descriptors ({grown['descriptors']:+d}), {last.threads} threads ({grown['threads']:+d}), {last.tasks} tasks"
        f" ({grown['tasks']:+d}), the journal {last.journal / 1e3:.0f} kB ({grown['journal'] / 1e3:+.0f} kB)"
    )
    # Some are open, or under way, for a moment only.
    bounds = {"memory": GROWTH, "descriptors": 3, "threads": 1, "tasks": 5, "journal": JOURNAL}
    if too_much := {name: value for name, value in grown.items() if value > bounds[name]}:
        msg = f"it grew: {too_much}"
        tally.fail(after, FalseReportError(msg))


# --- polls ------------------------------------------------------------------------------------------------------------


async def _polled(actor: Actor) -> int:
    status = await actor.rig.ask("/v1/status")
    return 0 if status is None else status["link"]["activities"]["calls"]


async def polls(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Answer each poll at once, again and again."""
    wanted = POLLS if budget.most is None else FEW_POLLS
    async with _counted(ground, tally) as actor:
        await actor.bring_up()  # which also ends the first poll, that was held for the usual time
        await _until_polled(actor, WARM if budget.most is None else FEW_POLLS)
        first, before, began = measure(actor), await _polled(actor), time.monotonic()
        await _until_polled(actor, before + wanted)
        while budget.more():
            await _until_polled(actor, await _polled(actor) + FEW_POLLS)
            tally.injected += 1
        done, seconds = await _polled(actor) - before, time.monotonic() - began
        tally.injected += wanted // FEW_POLLS
        _compare(tally, first, measure(actor), f"{done:,} polls in {seconds:.0f} s")
        await actor.end(await actor.begin("restart"), "after them")


async def _until_polled(actor: Actor, count: int) -> None:
    async def enough() -> bool:
        return await _polled(actor) >= count

    await until(enough, f"it has polled {count} times", within=1200, every=0.2)


# --- soak -------------------------------------------------------------------------------------------------------------


async def soak(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Act for as long as it goes on, with a journal that keeps little."""
    done = 0
    async with _counted(ground, tally, retention_count=KEPT) as actor:
        for _ in range(WARM_DEEDS if budget.most is None else FEW_DEEDS):
            await actor.end(await actor.begin(), "while it warms up")
        first, polled, began = measure(actor), await _polled(actor), time.monotonic()
        while budget.more():
            await actor.end(await actor.begin(), f"after {done} others")
            done += 1
            tally.injected += 1
        await until(lambda: _kept(actor), "the journal has forgotten what is old", every=0.2)
        seconds, polled = time.monotonic() - began, await _polled(actor) - polled
        _compare(tally, first, measure(actor), f"{done:,} actions and {polled:,} polls in {seconds:.0f} s")


async def _kept(actor: Actor) -> bool:
    answer = await actor.rig.ask("/v1/activities?limit=1000")
    return answer is not None and len(answer["items"]) <= KEPT


# --- a burst ----------------------------------------------------------------------------------------------------------


class Reports:
    """Counts on their way which reports the agent sends."""

    def __init__(self) -> None:
        self.sent: Counter[int] = Counter()

    async def look(self, exchange: Exchange) -> web.StreamResponse:
        """Pass a call on; a report counts once it was answered for."""
        answer = await exchange.forward()
        if exchange.path == "reports" and answer.status == 200:
            self.sent.update(report["activity_id"] for report in json.loads(exchange.body)["reports"])
        return answer


async def burst(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Dispatch them all while the agent cannot see them, and let it go on."""
    count = AT_ONCE if budget.most is None else FEW
    ports, reports = Ports(), Reports()
    try:
        async with Rig(standin_programs(), USUAL) as rig, FaultProxy(rig.supervisor_url, ports.take()) as proxy:
            proxy.set(reports.look)
            settings = rig.node.settings_file.read_text()
            rig.node.settings_file.write_text(settings.replace(rig.supervisor_url, proxy.url))
            await rig.start_agent()
            actor = Actor(rig, ground.chance, tally)
            await actor.bring_up()
            while budget.more():
                await _one_burst(actor, reports, count)
    finally:
        ports.close()


async def _one_burst(actor: Actor, reports: Reports, count: int) -> None:
    before = {runtime: len(actor.rig.births(runtime)) for runtime in PLAN}
    runs = {runtime: any(run.alive for run in actor.rig.births(runtime)) for runtime in PLAN}
    os.kill(actor.pid, signal.SIGSTOP)
    ids = await _dispatch(actor, count)
    os.kill(actor.pid, signal.SIGCONT)
    began, tally = time.monotonic(), actor.tally
    tally.injected += 1
    tally.cases += count
    tally.reports_expected += count
    try:
        found = await until(lambda: _all_done(actor, ids), "all are reported", within=SLOW + count * SLOWEST, every=0.5)
    except TimeoutError as error:
        tally.fail(f"{count} at once", error)
        return
    seconds = time.monotonic() - began
    tally.reports_seen += len(found)
    tally.notes.append(f"{count} activities at once were reported in {seconds:.1f} s ({count / seconds:.0f} a second)")
    for runtime in PLAN:
        line = sorted((activity for activity in found if activity.runtime == runtime), key=lambda one: one.id)
        _judge_effects(actor, runtime, line, before[runtime], runs=runs[runtime])
    if twice := [one for one in ids if reports.sent[one] != 1]:
        tally.fail(f"{count} at once", RepeatedError(f"reported other than once: {twice[:5]}"))
    rows = await actor.rig.ask(f"/v1/activities?limit={count}")
    _judge_order(tally, rows["items"] if rows else [])


async def _dispatch(actor: Actor, count: int) -> set[int]:
    """Dispatch an equal part to each runtime, in a random order.

    Iggy is started in the end, for connectors that are started without it are not ready, and rightly reported so.
    """
    chance, numbers, ids = actor.chance, itertools.count(1), set[int]()

    async def some() -> None:
        while next(numbers) < count:
            runtime = chance.choice(tuple(PLAN))
            actions, weights = zip(*PLAN[runtime], strict=True)
            ids.add((await actor.rig.api.dispatch(runtime, chance.choices(actions, weights)[0])).id)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(some())
    ids.add((await actor.rig.api.dispatch(IGGY, "start")).id)
    return ids


async def _all_done(actor: Actor, ids: set[int]) -> list[Activity]:
    found = [activity for activity in await actor.rig.api.activities() if activity.id in ids]
    return [] if any(activity.status is ActivityStatus.PROCESSING for activity in found) else found


def _judge_effects(actor: Actor, runtime: RuntimeName, line: list[Activity], before: int, *, runs: bool) -> None:
    """Follow them in their order: each does what it says, also one whose wait a later one ended.

    Such a run may have ended before its program could record that it began; so those count if they are there.
    """
    tally, certain, possible = actor.tally, 0, 0
    for activity in line:
        starts = activity.action == "restart" or (activity.action == "start" and not runs)
        runs = activity.action != "stop"
        possible += starts
        certain += starts and activity.status is ActivityStatus.COMPLETED
        if activity.status is not ActivityStatus.COMPLETED and activity.code != ReasonCode.SUPERSEDED:
            tally.fail(f"{activity.action} of {runtime}", FalseReportError(str(activity.raw)))
    born = len(actor.rig.births(runtime)) - before
    tally.effects_expected += min(max(certain, born), possible)
    tally.effects_seen += born
    if not certain <= born <= possible:
        kind = LostError if born < certain else RepeatedError
        story = f"it was started {born} times, and not {certain} to {possible}"
        tally.fail(f"{len(line)} of {runtime}", kind(story))
    alive = [run for run in actor.rig.births(runtime) if run.alive]
    if len(alive) != runs:
        tally.fail(f"{len(line)} of {runtime}", FalseReportError(f"it should run: {runs}, and what runs is {alive}"))


def _judge_order(tally: Tally, rows: list[dict[str, str]]) -> None:
    """Check that in each line one began only when the one before it was over."""
    for runtime in PLAN:
        line = sorted((row for row in rows if row["runtime"] == runtime), key=lambda row: int(row["sequence"]))
        for first, second in itertools.pairwise(line):
            if second["started_at"] < first["finished_at"]:
                tally.fail(f"{first['id']} and {second['id']}", FalseReportError("they were not done in order"))


FAULTS = (
    Fault("load.burst", "1,000 activities at once", burst, share=0.5, takes=25.0),
    Fault("load.polls", "10,000 polls, answered at once", polls, share=0.4, takes=130.0),
    Fault("load.soak", "actions without an end", soak, share=1.5, takes=20.0),
)
