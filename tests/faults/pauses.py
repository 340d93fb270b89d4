"""The agent does not get the processor: SIGSTOP, and SIGCONT later.

It is stopped at a random moment of an action, or while it polls and an action is then dispatched; for shorter and for
longer than the long poll, than a probe's, a stop's and a wait's own timeout, than the life of the activity, and than
the Supervisor waits for a report. What had begun is finished, one effect, and reported, also when the Supervisor had
given up meanwhile; what could not begin before it expired is rejected as `expired`, without an effect.
"""

import asyncio
import os
import signal
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from agent.protocol import ReasonCode
from tests.e2e.waiting import until
from tests.faults.deeds import SECOND, USUAL, Actor, Deed, acting
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, Tally

LIFE, GRACE = 2.0, 1.0
"""Seconds in which an activity has to begin, and in which a report of it may come late."""
SHORT = replace(USUAL, ready_timeout=2.5, stop_timeout=1.2, poll_wait=1.0, activity_ttl=LIFE, report_grace=GRACE)
MOMENTS = 0.35
"""Seconds after its dispatch in which an action has most to do."""
LENGTHS = ((0.05, 0.8), (0.8, 2.0), (2.0, 4.0), (3.2, 5.5))
"""Seconds of a pause, from and to: shorter than all timeouts, than some, than none, and longer than all patience."""


async def pause(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Stop the agent in or before an action, and let it go on."""
    given_up = 0
    async with acting(ground, tally, SHORT) as actor:
        for length in budget.each(LENGTHS, ground.chance):
            before = ground.chance.random() < 0.3
            seconds = ground.chance.uniform(*length)
            if before:
                await _stop(actor, tally)
            deed = await actor.begin()
            if not before:
                await asyncio.sleep(ground.chance.uniform(0, MOMENTS))
                await _stop(actor, tally)
            await asyncio.sleep(seconds)
            given_up += (await actor.rig.api.get(deed.activity.id)).code == ReasonCode.NO_REPORT
            os.kill(actor.pid, signal.SIGCONT)
            story = f"stopped {'before' if before else 'in'} it for {seconds:.2f} s"
            await _end(actor, deed, story, before=before)
    tally.notes.append(f"the Supervisor had given up, and took the report that came after that, {given_up} times")


async def _stop(actor: Actor, tally: Tally) -> None:
    os.kill(actor.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{actor.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the agent is stopped", every=0.001)
    tally.injected += 1


async def _end(actor: Actor, deed: Deed, story: str, *, before: bool) -> None:
    activity = await actor.end(deed, story)
    row = None if activity is None else await actor.rig.journaled(deed.activity.id)
    if activity is None or row is None or row["started_at"] is None:
        return
    expired = datetime.fromisoformat(row["created_at"]) + timedelta(seconds=LIFE)
    # One that is stopped between judging that it may begin and beginning begins later, whatever it does.
    if before and datetime.fromisoformat(row["started_at"]) > expired + SECOND:
        actor.tally.fail(story, FalseReportError(f"begun at {row['started_at']}, and it had expired at {expired}"))


FAULTS = (Fault("pause", "SIGSTOP of the agent, shorter and longer than every timeout", pause, share=1.5, takes=20.0),)
