"""A runtime that does not do what it is told, or is killed by somebody else at a random moment of an action.

It ignores SIGTERM; it dies right after it was ready; it never gets ready; it ends at once; its main process ends and
leaves a child behind, which goes on. Each time the report says just that, the runtime was started once, and the next
action works. When it is killed from outside at a random moment, the report says what the agent saw of it.
"""

import asyncio
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from agent.protocol import ReasonCode
from tests.e2e.births import Birth
from tests.e2e.public_api import Activity
from tests.faults.deeds import IGGY, USUAL, Actor, Deed, acting
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, Tally

QUICK = replace(USUAL, stable_for=0.5, ready_timeout=2.5, stop_timeout=1.2)
LATER = 0.3
"""Seconds that a runtime takes until it is ready, in which it can be killed."""
TICKS = os.sysconf("SC_CLK_TCK")
SLOW = replace(USUAL, stable_for=0.1, ready_timeout=20.0)
FAILED = {ReasonCode.START_FAILED, ReasonCode.UNSTABLE}
HIT = {*FAILED, ReasonCode.ROLLED_BACK}
"""What an action may become whose runtime is killed."""


@dataclass(frozen=True, slots=True)
class Vice:
    """How a runtime misbehaves.

    Attributes:
        fault: Of the stand-in.
        verbs: With which it shows.
        codes: What the report may say; nothing: completed.
        runs: Whether it runs afterwards.
    """

    fault: str
    verbs: tuple[str, ...]
    codes: Collection[ReasonCode]
    runs: bool


VICES = (
    Vice("ready_then_dies:{dies:.3f}", ("start", "restart"), FAILED, runs=False),
    Vice("never_ready", ("start", "restart"), {ReasonCode.NOT_READY}, runs=True),
    Vice("exit_at_start:{code}", ("start", "restart"), {ReasonCode.START_FAILED}, runs=False),
    Vice("leaves_child", ("start", "restart"), {ReasonCode.START_FAILED}, runs=False),
    Vice("ignore_sigterm", ("stop", "restart"), (), runs=True),
)


async def unruly(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Start, stop and restart a runtime that misbehaves."""
    async with acting(ground, tally, QUICK) as actor:
        await actor.bring_up()
        for vice in budget.each(VICES, ground.chance):
            await _misbehave(actor, vice, tally)
            actor.rig.switch_faults(IGGY)
            await actor.end(await actor.begin("restart"), f"after {vice.fault}")


async def _misbehave(actor: Actor, vice: Vice, tally: Tally) -> None:
    verb = actor.chance.choice(vice.verbs)
    if verb == "start":
        await actor.end(await actor.begin("stop"), "before it misbehaves")
    fault = vice.fault.format(dies=actor.chance.uniform(0, 0.4), code=actor.chance.randint(1, 100))
    actor.rig.switch_faults(IGGY, fault)
    deed = await actor.begin(verb)
    if vice.codes:
        activity = await actor.end(deed, fault, allowed=vice.codes)
        false = activity is not None and (activity.code not in vice.codes or bool(actor.alive()) is not vice.runs)
    else:
        activity = await actor.end(deed, fault, stubborn=True)
        false = activity is not None and activity.evidence.get("killed") is not True
    tally.injected += 1
    if activity is not None and false:
        tally.fail(f"{verb}, {fault}", FalseReportError(f"it is {activity.raw}, and {actor.alive()} run"))


async def killed(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Kill the runtime at a random moment of each action."""
    async with acting(ground, tally, SLOW) as actor:
        actor.rig.switch_faults(IGGY, f"slow_start:{LATER}")
        await actor.bring_up()
        while budget.more():
            deed = await actor.begin()
            fresh = deed.starts and actor.chance.random() < 0.6
            victim, after = await (_kill_new(actor, deed) if fresh else _kill(actor))
            tally.injected += victim is not None
            story = (
                "nothing to kill" if victim is None else f"killed {'the new' if fresh else 'a'} run {after:.3f} s later"
            )
            activity = await actor.end(deed, story, killed=victim, allowed=HIT if victim is not None else ())
            if activity is not None and fresh and victim is not None:
                _judge_killed(actor, activity, victim, after, story)
            await actor.bring_up()


async def _kill(actor: Actor) -> tuple[Birth | None, float]:
    """Kill what runs a random moment after the dispatch."""
    seconds = actor.chance.uniform(0, 0.8)
    await asyncio.sleep(seconds)
    return _end(actor.alive()), seconds


async def _kill_new(actor: Actor, deed: Deed) -> tuple[Birth | None, float]:
    """Kill the run that the action started, a random moment later; returns how old it was: proc_pid_stat(5)."""
    seconds = actor.chance.uniform(0, 2 * LATER)
    run = await actor.rig.until_born(IGGY, len(deed.before) + 1)
    await asyncio.sleep(seconds)
    return _end([run]), time.clock_gettime(time.CLOCK_BOOTTIME) - run.start_ticks / TICKS


def _end(runs: list[Birth]) -> Birth | None:
    for run in runs:
        if run.alive:
            run.send(signal.SIGKILL)
            return run
    return None


def _judge_killed(actor: Actor, activity: Activity, victim: Birth, after: float, story: str) -> None:
    """One whose run was killed before it can have been ready is not completed, and says what became of it."""
    cause = activity.evidence.get("cause") or {"code": activity.code}
    if after < LATER and cause["code"] != ReasonCode.START_FAILED:
        actor.tally.fail(story, FalseReportError(f"{victim} cannot have been ready: {activity.raw}"))


FAULTS = (
    Fault("runtime.unruly", "a runtime that misbehaves", unruly, takes=25.0),
    Fault("runtime.killed", "kill -9 of the runtime at a random moment", killed),
)
