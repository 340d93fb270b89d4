"""The node's wall clock jumps hours forward and back, before an action, in it, and while one waits for its turn.

What the agent is told of the wall clock is changed (clocked_agent.py); the monotonic clocks are left alone, as they are
when a clock is set. No activity is taken for expired that is not, and none is begun that is, for
the Supervisor's clock counts; no timeout comes early or never; and what is told of an activity is in order.
"""

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

from agent.link.clock import SKEWED
from agent.protocol import ReasonCode
from tests.e2e.waiting import until
from tests.faults.deeds import IGGY, PATHS, USUAL, Actor, acting
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, Tally

LIFE, READY = 2.5, 4.0
"""Seconds in which an activity has to begin, and that a runtime may take to be ready: longer, so that one expires."""
SHORT = replace(USUAL, ready_timeout=READY, activity_ttl=LIFE, poll_wait=1.0)
FARTHEST = 12 * 3600
EARLY, LATE = 0.1, 30.0
"""Seconds that a timeout may come too early by this clock, and too late on a machine that has much to do."""
MOMENTS = 0.35
"""Seconds after its dispatch in which an action has most to do."""


class Clock:
    """The wall clock of one agent.

    Args:
        file: That the agent reads each time that it wants to know the time.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set it so far ahead of the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)

    @property
    def program(self) -> tuple[str, ...]:
        """Runs the agent by it."""
        return (sys.executable, "-m", "tests.faults.clocked_agent", str(self._file))


async def jump(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Set the clock at random moments to random hours."""
    clock = Clock(ground.folder / "ahead")
    async with acting(ground, tally, SHORT, program=clock.program, environment=PATHS) as actor:
        actor.tolerated = {SKEWED}
        await actor.bring_up()
        turns = (_before, _in, _in_line)
        while budget.more():
            await ground.chance.choice(turns)(actor, clock, tally)
        clock.set(0)
        await until(lambda: _skewed(actor, False), "the agent sees that its clock is right again")


async def _skewed(actor: Actor, wanted: bool) -> bool:
    status = await actor.rig.ask("/v1/status")
    return status is not None and wanted is any(found["code"] == SKEWED for found in status["conditions"])


async def _set(actor: Actor, clock: Clock, tally: Tally) -> int:
    """Jump at least an hour from the truth, so that the agent can be seen to notice."""
    seconds = actor.chance.choice((-1, 1)) * actor.chance.randint(3600, FARTHEST)
    clock.set(seconds)
    tally.injected += 1
    return seconds


async def _before(actor: Actor, clock: Clock, tally: Tally) -> None:
    seconds = await _set(actor, clock, tally)
    if actor.chance.random() < 0.5:
        await until(lambda: _skewed(actor, True), "the agent notices that its clock is wrong")
    await actor.end(await actor.begin(), f"the clock was set to {seconds:+d} s before")


async def _in(actor: Actor, clock: Clock, tally: Tally) -> None:
    deed = await actor.begin()
    await asyncio.sleep(actor.chance.uniform(0, MOMENTS))
    seconds = await _set(actor, clock, tally)
    await actor.end(deed, f"the clock was set to {seconds:+d} s in it")


async def _in_line(actor: Actor, clock: Clock, tally: Tally) -> None:
    """Jump while one waits for a runtime that is never ready, and a later one for its turn, until it has expired."""
    actor.rig.switch_faults(IGGY, "never_ready")
    first, began = await actor.begin("restart"), time.monotonic()
    await actor.rig.until_born(IGGY, len(first.before) + 1)
    second = await actor.rig.api.dispatch(IGGY, "start")
    await asyncio.sleep(actor.chance.uniform(0, READY - 1))
    seconds = await _set(actor, clock, tally)
    story = f"the clock was set to {seconds:+d} s while it was waited for"
    found = await actor.rig.api.finished(first.activity.id)
    took = time.monotonic() - began
    actor.rig.switch_faults(IGGY)
    await actor.end(first, story, allowed={ReasonCode.NOT_READY})
    tally.notes.append(f"{found.code} came after {took:.2f} s instead of {READY:g}")
    if not READY - EARLY <= took <= READY + LATE:
        tally.fail(story, FalseReportError(f"{found.code} came after {took:.2f} s, and not {READY:g}"))
    last = await actor.rig.api.finished(second.id)
    tally.cases, tally.reports_expected, tally.reports_seen = (
        *(tally.cases + 1, tally.reports_expected + 1, tally.reports_seen + 1),
    )
    if last.code != ReasonCode.EXPIRED:
        tally.fail(story, FalseReportError(f"it had expired in the line, and became {last.raw}"))
    await actor.end(await actor.begin("restart"), "after that")


FAULTS = (Fault("clock.jump", "the wall clock jumps hours", jump, takes=10.0),)
