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
from tests.faults.deeds import IGGY, SECOND, USUAL, Actor, Deed, acting
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, Tally

LIFE, GRACE = 2.0, 1.0
"""Seconds in which an activity has to begin, and in which a report of it may come late."""
SHORT = replace(USUAL, ready_timeout=2.5, stop_timeout=1.2, poll_wait=1.0, activity_ttl=LIFE, report_grace=GRACE)
LISTINGS = 2
"""The call that was under way, and one more."""
MOMENTS = 0.35
"""Seconds after its dispatch in which an action has most to do."""
LENGTHS = ((0.05, 0.8), (0.8, 2.0), (2.0, 4.0), (3.2, 5.5))
"""Seconds of a pause, from and to: shorter than all timeouts, than some, than none, and longer than all patience."""


async def pause(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Stop the agent in or before an action, and let it go on."""
    given_up = unheard = 0
    async with acting(ground, tally, SHORT) as actor:
        await actor.bring_up()
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
            is_given_up = (await actor.rig.api.get(deed.activity.id)).code == ReasonCode.NO_REPORT
            os.kill(actor.pid, signal.SIGCONT)
            story = f"stopped {'before' if before else 'in'} it for {seconds:.2f} s"
            if is_given_up and await _never_hears_of_it(actor, deed):
                unheard += 1
                _judge_unheard(actor, deed, story)
                continue
            given_up += is_given_up
            await _end(actor, deed, story, before=before)
    tally.notes.append(f"the Supervisor had given up before the agent had heard of it {unheard} times")
    tally.notes.append(f"the Supervisor had given up, and took the report that came after that, {given_up} times")


async def _stop(actor: Actor, tally: Tally) -> None:
    os.kill(actor.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{actor.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the agent is stopped", every=0.001)
    tally.injected += 1


async def _never_hears_of_it(actor: Actor, deed: Deed) -> bool:
    """Tell whether the agent was stopped between two polls: what the Supervisor has given up it does not list any more.

    It is certain once a call that lists activities has begun and ended since.
    """

    async def listed() -> int:
        status = await actor.rig.ask("/v1/status")
        listing = (status or {"link": None})["link"]
        return 0 if listing is None else int(listing["activities"]["calls"] - listing["activities"]["failures"])

    async def is_over() -> bool:
        return await listed() >= before + LISTINGS

    before = await until(listed, "the agent tells how often it listed activities")
    await until(is_over, "the agent has listed activities again")
    return await actor.rig.journaled(deed.activity.id) is None


def _judge_unheard(actor: Actor, deed: Deed, story: str) -> None:
    """Require that nothing was done; the report is the Supervisor's own, and stays."""
    tally = actor.tally
    tally.cases += 1
    tally.reports_expected += 1
    tally.reports_seen += 1
    if (tuple(actor.rig.births(IGGY)), tuple(actor.alive())) != (deed.before, deed.living):
        tally.fail(story, FalseReportError("the agent never heard of it, and something was done"))


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
