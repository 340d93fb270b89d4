"""What changes while the agent is away: an activity expires, or is not wanted any more. What was begun is finished all
the same, and what was not begun is not begun any more.
"""

import asyncio
import itertools
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.protocol import ReasonCode
from tests.e2e.births import Birth
from tests.e2e.crash_node import CrashNode
from tests.e2e.nursery import Nursery
from tests.e2e.programs import standin_programs
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

TTL = 4.0
"""Seconds within which an activity has to begin; more than any here takes when nothing is wrong."""
NODES = 6
TAKEN, STARTED, CALLED = "after:journal.take:1", "after:journal.start:1", "after:journal.record:1"


class Absence:
    """One node whose agent is killed at a point, and stays away until something has changed."""

    def __init__(self, node: CrashNode, tally: Tally) -> None:
        self.node = node
        self._tally = tally
        self._cases = itertools.count(1)
        self._births: list[Birth] = []
        self._alive: list[Birth] = []

    async def begin(self, action: str, point: str) -> Activity:
        """Dispatch, and wait until the agent has died at that point."""
        node = self.node
        await (node.bring_down() if action == "start" else node.bring_up())
        node.arm(f"away-{next(self._cases)}", [point])
        node.hold()
        self._births, self._alive = node.births(), node.alive()
        self._tally.cases += 1
        self._tally.reports_expected += 1
        activity = await node.dispatch(action)
        ended, died_at = await node.until_ended(), node.crashed()
        node.disarm()
        if ended == -signal.SIGKILL and died_at == [point]:
            self._tally.injected += 1
        else:
            self._tally.fail(action, FalseReportError(f"it ended with {ended} at {died_at}, and not at {point}"))
        return activity

    def judge(self, story: str, action: str, code: str | None, wanted: ReasonCode | None) -> None:
        """Judge what came of it: all of the action, or nothing at all.

        Args:
            story: For people.
            action: What was dispatched.
            code: Why it was rejected; None: it was completed.
            wanted: What that has to be. With a code the runtime has to be as it was.
        """
        tally = self._tally
        new, alive = self.node.births()[len(self._births) :], self.node.alive()
        started, starts = len(new), int(wanted is None and action != "stop")
        lives = self._alive if wanted is not None else new
        tally.reports_seen += 1
        tally.effects_expected += starts
        tally.effects_seen += started
        error: AssertionError | None = None
        if started > starts:
            error = RepeatedError(f"it was started {started} times, and not {starts}")
        elif started < starts:
            error = LostError(f"it was started {started} times, and not {starts}")
        elif code != wanted:
            error = FalseReportError(f"it is {code or 'completed'}, and not {wanted or 'completed'}")
        elif alive != lives:
            error = FalseReportError(f"it is {code or 'completed'}, and what lives is {alive}, and not {lives}")
        if error is not None:
            tally.fail(story, error)


async def _expire(absence: Absence, ground: Ground) -> None:
    """Stay away past the expiry: what has made a call is finished, what was only begun is rejected as expired."""
    action = ground.chance.choice(("start", "restart", "stop"))
    point = ground.chance.choice((STARTED, CALLED, CALLED))
    activity = await absence.begin(action, point)
    await asyncio.sleep(TTL + 0.5)
    await absence.node.release()
    finished = await absence.node.finished(activity)
    await absence.node.rest()
    wanted = ReasonCode.EXPIRED if point == STARTED else None
    absence.judge(f"{action}, away past its expiry, killed {point}", action, finished.code, wanted)


async def expiry(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Run that row."""
    options = replace(USUAL, activity_ttl=TTL)
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(Rig(standin_programs(), options))
        nursery = await stack.enter_async_context(Nursery(rig.folder))
        nodes = [
            Absence(await stack.enter_async_context(CrashNode(rig, nursery, f"away-{number}", options)), tally)
            for number in range(NODES if budget.most is None else min(NODES, budget.most))
        ]
        async with asyncio.TaskGroup() as group:
            for absence in nodes:
                group.create_task(_while(budget, absence, tally, lambda absence: _expire(absence, ground)))


async def _while(budget: Budget, absence: Absence, tally: Tally, play: Callable[[Absence], Awaitable[None]]) -> None:
    while not (budget.impatient and tally.wrong) and budget.more():
        try:
            await play(absence)
        except TimeoutError as error:
            tally.fail(absence.node.folder.name, error)
            return


async def _withdraw(rig: Rig, absence: Absence, action: str) -> None:
    """Put back the Supervisor from a backup that does not know the activity, which the agent has received."""
    backup = rig.folder / "backup.db"
    _copy(rig.supervisor_database, backup)
    activity = await absence.begin(action, TAKEN)
    await asyncio.to_thread(rig.supervisor.end, 8.0)
    for file in rig.supervisor_database.parent.glob(f"{rig.supervisor_database.name}-*"):
        file.unlink()
    backup.replace(rig.supervisor_database)
    await rig.start_supervisor()
    await absence.node.release()

    async def ended() -> dict[str, Any] | None:
        row = await absence.node.ask(f"/v1/activities/{activity.id}")
        return row if row is not None and row["state"] == "reported" else None

    row = await until(ended, f"activity {activity.id} is over", every=0.03)
    absence.judge(f"{action}, not listed any more", action, row["code"], ReasonCode.WITHDRAWN)


async def withdrawn(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Run that row."""
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(Rig(standin_programs(), USUAL))
        nursery = await stack.enter_async_context(Nursery(rig.folder))
        absence = Absence(await stack.enter_async_context(CrashNode(rig, nursery, "away", USUAL)), tally)
        await _while(
            budget,
            absence,
            tally,
            lambda absence: _withdraw(rig, absence, ground.chance.choice(("start", "restart", "stop"))),
        )


def _copy(database: Path, to: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


FAULTS = (
    Fault("away.expiry", "agent away past the expiry", expiry, 0.4, takes=12.0),
    Fault("away.withdrawn", "agent away, then not wanted any more", withdrawn, 0.4),
)
