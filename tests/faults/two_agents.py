"""Two agents on one state folder: at most one runs, and the other one says who does.

A second one is started beside one that is at work; and after a kill -9 of the agent several are started at the same
instant. The others end at once with the code 75, name the process that holds the folder, and change nothing; what the
one that runs does is done once.
"""

import asyncio
import re
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from agent.errors import JournalInUseError
from tests.e2e.nursery import Child, Nursery
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.deeds import Actor, acting
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, RepeatedError, Tally

RIVALS = 3
HOLDER = re.compile(r"another agent holds it, process (\d+)")


async def two(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Start more agents than one, again and again."""
    async with AsyncExitStack() as stack:
        actor = await stack.enter_async_context(acting(ground, tally))
        nursery = await stack.enter_async_context(Nursery(actor.rig.folder))
        await actor.bring_up()
        while not (budget.impatient and tally.wrong) and budget.more():
            await _beside(actor, nursery, tally)
            await _at_once(actor, nursery, tally)


async def _beside(actor: Actor, nursery: Nursery, tally: Tally) -> None:
    """Start a second one at a random moment of an action."""
    deed = await actor.begin()
    await asyncio.sleep(actor.chance.uniform(0, 0.3))
    log = _log(actor.rig, "second")
    second = await _start(actor.rig, nursery, log)
    tally.injected += 1
    try:
        await until(lambda: not second.alive, "a second agent has ended")
    except TimeoutError as error:
        tally.fail("beside one that acts", RepeatedError(str(error)))
        second.kill()
        await second.wait()
    else:
        _judge_refused(tally, log, await second.wait(), actor.pid, "beside one that acts")
    await actor.end(deed, "with a second agent on the state folder")


async def _at_once(actor: Actor, nursery: Nursery, tally: Tally) -> None:
    """Kill the agent in an action, and start some at the same instant; the one that lives finishes it."""
    rig = actor.rig
    deed = await actor.begin("restart")
    await asyncio.sleep(actor.chance.uniform(0, 0.3))
    rig.agent.kill()
    logs = [_log(rig, f"rival-{number}") for number in range(RIVALS)]
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(_start(rig, nursery, log)) for log in logs]
    rivals = [start.result() for start in starts]
    tally.injected += 1
    with suppress(TimeoutError):  # what runs then is counted
        await until(lambda: sum(rival.alive for rival in rivals) <= 1, "all but one have ended", every=0.01)
    living = [rival for rival in rivals if rival.alive]
    if len(living) != 1:
        kind = RepeatedError if living else FalseReportError
        tally.fail("at once", kind(f"{len(living)} of {RIVALS} run: {[log.read_text() for log in logs]}"))
    for rival, log in zip(rivals, logs, strict=True):
        if rival not in living:
            _judge_refused(tally, log, await rival.wait(), living[0].pid if living else 0, "at once")
    await _hand_back(actor, living)
    await actor.end(deed, f"with {RIVALS} agents started at the same instant after a kill -9")


async def _hand_back(actor: Actor, living: list[Child]) -> None:
    """Put the rig's own agent in the place of the one that won."""
    for rival in living:
        rival.kill()
        await rival.wait()
    await actor.rig.start_agent()


def _log(rig: Rig, name: str) -> Path:
    log = rig.folder / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


async def _start(rig: Rig, nursery: Nursery, log: Path) -> Child:
    arguments = ("run", "--config", str(rig.node.settings_file))
    return await nursery.start(arguments, folder=rig.folder, log=log, points=rig.folder)


def _judge_refused(tally: Tally, log: Path, code: int, holder: int, story: str) -> None:
    """Check that one that may not run said why, and who does."""
    text = log.read_text(errors="replace")
    named = HOLDER.search(text)
    if code != JournalInUseError.exit_code or named is None:
        tally.fail(story, RepeatedError(f"a second agent ended with {code}: {text}"))
    elif int(named[1]) != holder:
        tally.fail(story, FalseReportError(f"process {holder} holds the folder, and not {named[1]}"))


FAULTS = (Fault("rivals", "two agents on one state folder", two),)
