"""kill -9 of the agent, in every habitat: at each point, in the recovery from that, at random moments, and together
with its runtime, in the same boot or as a machine's crash does it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from agent.protocol import ActivityStatus, DriverKind, ReasonCode
from tests.e2e.births import Birth
from tests.e2e.crash_node import CrashNode
from tests.e2e.habitats import PROCESSES, Habitat
from tests.e2e.public_api import Activity
from tests.e2e.scenarios import SCENARIOS, SIZE, Reconfigure, Restart, Scenario, SlowLauncher, Start, Stop
from tests.e2e.waiting import until
from tests.faults.crashes import Stage, draw_delays, require_reached, share, staged
from tests.faults.fault import Budget, Fault, Ground, Run
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

WENT_BACK = {ReasonCode.ROLLED_BACK, ReasonCode.ROLLBACK_FAILED}
Open = Callable[[], AbstractAsyncContextManager[Habitat]]
Kind = type[Scenario]

LONGEST = 1.2
"""Seconds after which a random kill comes at the latest; most actions are over by then."""
MOST = 4
"""Kills in a row."""


async def at_each_point(stage: Stage, kind: Kind, _ground: Ground, _budget: Budget) -> None:
    """Kill it at each point that the action passes, once; however long that takes."""
    async with stage.company(kind) as nodes:
        points = await stage.trace(nodes[0], ())
        await share(nodes, iter([(point,) for point in points]), stage)
        again, stage.missed = stage.missed, []
        await share(nodes, iter(again), stage)  # how many calls it takes to hear and say all is not always the same
    stage.tally.missed(kind.name, stage.missed)
    if not stage.is_over:
        require_reached(stage.tally, stage.missed)
    stage.missed.clear()


async def while_launching(stage: Stage, kind: Kind, _ground: Ground, budget: Budget) -> None:
    """Kill it once the launcher is on its way, which becomes the runtime after the agent was started again."""
    async with stage.company(kind) as nodes:
        await together(stage, nodes, budget, lambda node: stage.kill_at(node, ("after:effect.fork:1",)))


async def in_recovery(stage: Stage, kind: Kind, ground: Ground, budget: Budget) -> None:
    """Kill it, kill it again at some point of the recovery from that, and so on."""

    async def deepen(scenario: Scenario, points: list[str]) -> None:
        crashes = [ground.chance.choice(points)]
        for depth in range(ground.chance.randint(1, MOST - 1)):
            if depth and budget.over:
                break
            passed = await stage.trace(scenario, crashes)
            if not passed:
                return
            crashes.append(ground.chance.choice(passed))
        await stage.kill_at(scenario, crashes)

    async with stage.company(kind) as nodes:
        points = await stage.trace(nodes[0], ())
        await together(stage, nodes, budget, lambda node: deepen(node, points))


async def at_random(stage: Stage, kind: Kind, ground: Ground, budget: Budget) -> None:
    """Kill it at moments that nobody chose."""
    async with stage.company(kind) as nodes:
        await together(
            stage, nodes, budget, lambda node: stage.kill_after(node, draw_delays(ground.chance, LONGEST, MOST))
        )


async def together(
    stage: Stage, nodes: list[Scenario], budget: Budget, play: Callable[[Scenario], Awaitable[object]]
) -> None:
    """Have all nodes play until the budget is over; one that came to no end plays no more."""

    async def work(node: Scenario) -> None:
        while not stage.is_over and budget.more():
            try:
                await play(node)
            except TimeoutError:
                return

    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(work(node))


class Blackout:
    """Agent and runtime die at the same moment, once, while an action is under way.

    Args:
        stage: Where.
        boots: Whether the machine boots after that; else both were killed in the same boot.
        refusals: More codes with which an activity may be rejected, if nothing came of it.
    """

    def __init__(self, stage: Stage, *, boots: bool, refusals: Collection[ReasonCode] = ()) -> None:
        self._stage = stage
        self._boots = boots
        self._refusals = refusals

    async def play(self, scenario: Scenario, chance: random.Random) -> None:
        """Play one case."""
        node, tally = scenario.node, self._stage.tally
        delay = chance.uniform(0, LONGEST)
        await self._stage.prepare(scenario, f"{scenario.name}, both killed after {delay:.3f} s")
        scenario.begin()
        tally.cases += 1
        tally.reports_expected += 1
        try:
            acting = asyncio.create_task(scenario.act())
            try:
                await asyncio.sleep(delay)
                killed = await self._both(scenario)
                (activity,) = await acting
            finally:
                acting.cancel()
                await asyncio.gather(acting, return_exceptions=True)
            await node.rest()
        except TimeoutError as error:
            tally.fail(f"{scenario.name}, both killed after {delay:.3f} s, on {node.folder.name}", error)
            raise
        # In the same boot a run that ended is known to have ended.
        await self.count(scenario, activity, killed if self._boots else 0, f"both killed after {delay:.3f} s")

    async def count(self, scenario: Scenario, activity: Activity, forgotten: int, story: str) -> None:
        """Count and judge what came of it.

        Args:
            scenario: What was done.
            activity: With its report.
            forgotten: So many runs of this action died of the crash in a way that makes another start necessary.
            story: For people.
        """
        tally = self._stage.tally
        tally.reports_seen += 1
        starts = self._called_for(scenario, activity)
        tally.effects_expected += starts
        tally.effects_seen += scenario.started() - min(max(0, scenario.started() - starts), forgotten)
        try:
            self._judge(scenario, activity, starts, forgotten)
            await self._look_again(scenario.node, activity)
            proven = activity.status is ActivityStatus.COMPLETED and bool(activity.evidence.get("committed", True))
            await asyncio.to_thread(scenario.node.habitat.check, scenario.node.node.state_dir, proven=proven)
        except (AssertionError, KeyError, TimeoutError) as error:
            error.add_note(str(activity.raw))
            tally.fail(f"{scenario.name}, {story}", error)

    async def _look_again(self, node: CrashNode, activity: Activity) -> None:
        """Require that the report stays as it was, and that the agent finds nothing wrong any more."""
        if (await node.rig.api.get(activity.id)).raw != activity.raw:
            msg = "the report changed after it was recorded"
            raise FalseReportError(msg)

        async def is_well() -> bool:
            status = await node.ask("/v1/status")
            return status is not None and not status["conditions"]

        await until(is_well, "the agent finds nothing wrong any more", every=0.1)

    async def _both(self, scenario: Scenario) -> int:
        """Kill both; returns how many runs of this action died of it."""
        node = scenario.node
        node.hold()
        node.agent.kill()
        await node.until_ended()
        before = {birth for birth in scenario.born() if not birth.alive}
        await asyncio.to_thread(node.habitat.black_out, node.node.state_dir, node.node.starts_file, boots=self._boots)
        killed = len(set(scenario.born()) - before)
        if self._boots:
            node.has_rebooted()
        node.start_again()
        self._stage.tally.injected += 1
        return killed

    def _called_for(self, scenario: Scenario, activity: Activity) -> int:
        """Count the starts that the action asks for, as the crash left the runtime.

        A run that died before its program had recorded its birth is known to the agent alone. Going back starts it once
        more, and a reconfigure that found it down does not start it.
        """
        if activity.status is ActivityStatus.REJECTED:
            return min(scenario.started(), scenario.starts + (activity.code == ReasonCode.ROLLED_BACK))
        if isinstance(scenario, Reconfigure):
            return int(activity.evidence["committed"])
        return scenario.starts

    def _judge(self, scenario: Scenario, activity: Activity, starts: int, forgotten: int) -> None:
        """Check what may be true after that: the table of docs/recovery.md."""
        started, node = scenario.started(), scenario.node
        most = starts + forgotten
        if started > most or len(node.alive()) > 1:
            msg = f"it was started {started} times, and {most} were called for; {len(node.alive())} run"
            raise RepeatedError(msg)
        if activity.status is ActivityStatus.REJECTED:
            self._judge_rejected(scenario, activity)
        elif started < starts:
            msg = f"it is completed, and was started {started} times"
            raise LostError(msg)
        elif starts:
            self._judge_run(scenario, activity)
        elif node.alive() and isinstance(scenario, Stop):
            msg = "it is completed, and still runs"
            raise FalseReportError(msg)

    def _judge_rejected(self, scenario: Scenario, activity: Activity) -> None:
        """Only a run that ended in the boot in which it began makes an action fail."""
        if activity.code in self._refusals and (
            scenario.is_untouched() or not (scenario.started() or activity.changed)
        ):
            return
        ended = {ReasonCode.START_FAILED, ReasonCode.UNSTABLE}
        if self._boots or isinstance(scenario, Stop) or activity.code not in {*ended, *WENT_BACK}:
            msg = f"it is rejected as {activity.code}"
            raise FalseReportError(msg)
        alive = scenario.node.alive()
        if activity.code in ended and alive:
            msg = f"it is rejected as {activity.code}, and it runs: {alive}"
            raise FalseReportError(msg)
        if activity.code == ReasonCode.ROLLED_BACK:
            self._judge_config(scenario, alive, new=False)

    def _judge_run(self, scenario: Scenario, activity: Activity) -> None:
        """Check what is completed: it names what lives. What was reported before the crash may have died of it."""
        facts = activity.evidence["running" if isinstance(scenario, Reconfigure) else "after"]
        alive = scenario.node.alive()
        living = {scenario.node.incarnation(birth) for birth in alive}
        told = facts.get("incarnation", "")
        if alive and told not in living:
            msg = f"it says that {told} runs, and {living} does"
            raise FalseReportError(msg)
        if alive:
            self._judge_config(scenario, alive, new=True)
        elif activity.recovered:
            msg = f"it was completed after the crash, and nothing runs: {facts}"
            raise FalseReportError(msg)

    def _judge_config(self, scenario: Scenario, alive: Sequence[Birth], *, new: bool) -> None:
        """Check that what runs has the config of a reconfigure, or not."""
        if not isinstance(scenario, Reconfigure):
            return
        sizes = [birth.environment.get(SIZE) for birth in alive]
        if len(sizes) != 1 or (sizes[0] == scenario.size) is not new:
            msg = f"what runs has {sizes}, and {scenario.size} was {'to be used' if new else 'not'}"
            raise FalseReportError(msg)


async def same_boot(stage: Stage, kind: Kind, ground: Ground, budget: Budget) -> None:
    """Kill both, as a lack of memory may."""
    await _blackouts(Blackout(stage, boots=False), stage, kind, ground, budget)


async def new_boot(stage: Stage, kind: Kind, ground: Ground, budget: Budget) -> None:
    """Kill both, and give the agent the boot id of a new boot."""
    await _blackouts(Blackout(stage, boots=True), stage, kind, ground, budget)


async def _blackouts(blackout: Blackout, stage: Stage, kind: Kind, ground: Ground, budget: Budget) -> None:
    async with stage.company(kind) as nodes:
        await together(stage, nodes, budget, lambda node: blackout.play(node, ground.chance))


Play = Callable[[Stage, Kind, Ground, Budget], Awaitable[None]]


ENOUGH = 10.0
"""Seconds for one kind of scenario, in which each of many nodes has played it a few times."""


def draw_kinds(kinds: Sequence[Kind], budget: Budget, chance: random.Random) -> Sequence[Kind]:
    """Draw as many kinds as the time is enough for: what has begun is finished, and so each takes its time.

    The first is one that starts something: a row of stops alone would have no effects to count.
    """
    if budget.most is not None:
        return kinds
    first = chance.choice([kind for kind in kinds if kind is not Stop])
    others = [kind for kind in kinds if kind is not first]
    return [first, *chance.sample(others, max(0, min(len(others), int(budget.seconds // ENOUGH) - 1)))]


def row(play: Play, open_habitat: Open, kinds: tuple[Kind, ...]) -> Run:
    """Play kinds of scenarios in a habitat, one after the other."""

    async def run(ground: Ground, budget: Budget, tally: Tally) -> None:
        impatient = budget.impatient
        async with open_habitat() as habitat, staged(habitat, tally, impatient=impatient) as stage:
            drawn = kinds if play is at_each_point else draw_kinds(kinds, budget, ground.chance)
            for kind, part in zip(drawn, budget.parts(len(drawn)), strict=True):
                if stage.is_over:
                    break
                await play(stage, kind, ground, part)

    return run


PLAIN = (Start, Stop, Restart, Reconfigure)


ROWS: tuple[tuple[str, str, Play, tuple[Kind, ...], float], ...] = (
    ("point", "kill -9 at each point", at_each_point, SCENARIOS, 0.0),
    ("recovery", "kill -9 in recovery too", in_recovery, SCENARIOS, 3.0),
    ("random", "kill -9 at random", at_random, SCENARIOS, 3.0),
    ("both", "agent and runtime killed", same_boot, PLAIN, 2.0),
    ("machine", "machine crash", new_boot, PLAIN, 2.0),
)
"""With the share of each; killing it at each point takes as long as it takes."""


def rows(
    driver: DriverKind,
    open_habitat: Open,
    lacks: Callable[[], Sequence[str]] = tuple,
    *,
    points: float,
    takes: float,
) -> tuple[Fault, ...]:
    """Return all rows of one habitat.

    Args:
        driver: Of the runtimes.
        open_habitat: Opens it for a row.
        lacks: Says what this machine lacks for it.
        points: Seconds that it takes to kill it at each point once.
        takes: Seconds that each other row takes in any case.
    """
    return tuple(
        Fault(
            f"kill.{key}.{driver}",
            f"{name}, {driver}",
            row(play, open_habitat, kinds),
            share,
            lacks,
            takes if share else points,
        )
        for key, name, play, kinds, share in ROWS
    )


@asynccontextmanager
async def processes() -> AsyncIterator[Habitat]:
    """Nothing is needed for them."""
    yield PROCESSES


FAULTS = (
    *rows(DriverKind.PROCESS, processes, points=90.0, takes=5.0),
    Fault(
        f"kill.launcher.{DriverKind.PROCESS}",
        "kill -9 with a launcher on its way, process",
        row(while_launching, processes, (SlowLauncher,)),
        0.4,
    ),
)
