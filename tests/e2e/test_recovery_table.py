"""The table of docs/recovery.md on real processes: the agent is killed at the decisive call, and the world changes
before it is started again.

The cells "running, still A" of a restart and of a start cannot be: with the process driver, a restart has stopped A
before its decisive call, and a start with A running makes none.
"""

import asyncio
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass

import pytest

from agent.protocol import ReasonCode
from agent.runtimes.driver import Step, read_boot_id
from agent.runtimes.process import ProcessDriver
from agent.runtimes.releases import Releases
from tests.e2e.crash_node import IGGY, CrashNode
from tests.e2e.nursery import Nursery
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until

BOOT = read_boot_id()
EARLIER_BOOT = "00000000-0000-4000-8000-000000000000"
CALLED, LAUNCHED = "after:journal.record:1", "after:effect.launch:1"
RESTART_CALLED = "after:journal.record:2"

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

Change = Callable[[CrashNode], Awaitable[None]]


# --- what happens to the world while there is no agent ----------------------------------------------------------------


async def dies(node: CrashNode) -> None:
    """Kill what runs."""
    for birth in node.alive():
        birth.send(signal.SIGKILL)
    await until(lambda: node.alive() == [], "it is dead")


async def is_revived(node: CrashNode) -> None:
    """Start it as somebody else, under its lock and with a record, as whoever shares the folder has to."""
    await dies(node)
    folder = node.node.state_dir / "runtimes" / IGGY
    settings = node.settings()["runtimes"][IGGY]
    driver = ProcessDriver(
        runtime=IGGY,
        command=settings["command"],
        folder=folder,
        releases=Releases(folder, IGGY),
        environment=settings["environment"],
        working_directory=None,
        stop_timeout=10,
    )
    before = len(node.births())
    await driver.open()
    try:
        assert (await driver.start(_not_journaled)).calls, "what was dead still counted as running"
        await until(lambda: len(node.births()) > before, "it is revived")
    finally:
        await driver.close()


async def _not_journaled(_step: Step) -> None:
    return


async def was_an_earlier_boot(node: CrashNode) -> None:
    """Let everything that the agent wrote be of an earlier boot; what runs, if anything, was started in this one."""
    with closing(sqlite3.connect(node.node.state_dir / "journal.db", isolation_level=None)) as journal:
        for column in ("boot_id", "incarnation"):
            journal.execute(f"UPDATE calls SET {column} = replace({column}, ?, ?)", (BOOT, EARLIER_BOOT))
    record = node.node.state_dir / "runtimes" / IGGY / "process.json"
    if not node.alive() and record.exists():
        record.write_text(record.read_text().replace(BOOT, EARLIER_BOOT))


async def is_forgotten(node: CrashNode) -> None:
    """Damage the record of the last run, so that nobody can tell which it was."""
    (node.node.state_dir / "runtimes" / IGGY / "process.json").write_text("{")


# --- the cells --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        action: What was under way.
        crash: Where the agent was killed.
        changes: What happened then, in order.
        code: Of the rejection; None when it is completed.
        starts: How often the agent starts the runtime, before and after its death.
        runs: Whether it runs in the end.
    """

    name: str
    action: str
    crash: str
    changes: tuple[Change, ...]
    code: ReasonCode | None
    starts: int
    runs: bool


UNKNOWN, FAILED = ReasonCode.OUTCOME_UNKNOWN, ReasonCode.START_FAILED
NEW_BOOT = was_an_earlier_boot
START = (
    Cell("running, not A", "start", CALLED, (is_revived,), None, 0, runs=True),
    Cell("running, not A, by the call", "start", LAUNCHED, (), None, 1, runs=True),
    Cell("running, not A, new boot", "start", CALLED, (is_revived, NEW_BOOT), None, 0, runs=True),
    Cell("down, the last was A", "start", CALLED, (), None, 1, runs=True),
    Cell("down, new boot", "start", CALLED, (NEW_BOOT,), None, 1, runs=True),
    Cell("down, another ended, new boot", "start", LAUNCHED, (dies, NEW_BOOT), None, 2, runs=True),
    Cell("down, another ended", "start", LAUNCHED, (dies,), FAILED, 1, runs=False),
    Cell("down, not known", "start", CALLED, (is_forgotten,), UNKNOWN, 0, runs=False),
)
STOP = (
    Cell("running, still A", "stop", CALLED, (), None, 0, runs=False),
    Cell("running, not A", "stop", CALLED, (is_revived,), UNKNOWN, 0, runs=True),
    Cell("running, not A, new boot", "stop", CALLED, (is_revived, NEW_BOOT), None, 0, runs=False),
    Cell("down, the last was A", "stop", CALLED, (dies,), None, 0, runs=False),
    Cell("down, new boot", "stop", CALLED, (dies, NEW_BOOT), None, 0, runs=False),
    Cell("down, another ended", "stop", CALLED, (is_revived, dies), None, 0, runs=False),
    Cell("down, not known", "stop", CALLED, (dies, is_forgotten), None, 0, runs=False),
)
RESTART = (
    Cell("not called yet, still A", "restart", "before:journal.record:1", (), None, 1, runs=True),
    Cell("not called yet, A is dead", "restart", CALLED, (dies,), None, 1, runs=True),
    Cell("running, not A", "restart", RESTART_CALLED, (is_revived,), None, 0, runs=True),
    Cell("running, not A, by the call", "restart", LAUNCHED, (), None, 1, runs=True),
    Cell("running, not A, new boot", "restart", RESTART_CALLED, (is_revived, NEW_BOOT), None, 0, runs=True),
    Cell("down, the last was A", "restart", RESTART_CALLED, (), None, 1, runs=True),
    Cell("down, new boot", "restart", RESTART_CALLED, (NEW_BOOT,), None, 1, runs=True),
    Cell("down, another ended, new boot", "restart", LAUNCHED, (dies, NEW_BOOT), None, 2, runs=True),
    Cell("down, another ended", "restart", LAUNCHED, (dies,), FAILED, 1, runs=False),
    Cell("down, not known", "restart", RESTART_CALLED, (is_forgotten,), UNKNOWN, 0, runs=False),
)


async def play(rig: Rig, nursery: Nursery, cell: Cell) -> str | None:
    """Play a cell on a node of its own; returns what was wrong."""
    async with CrashNode(rig, nursery, f"{cell.action} {cell.name}", USUAL) as node:
        if cell.action != "start":
            await node.bring_up()
        node.arm("cell", [cell.crash])
        node.hold()
        before = len(node.births())
        activity = await node.dispatch(cell.action)
        await node.until_ended()
        node.disarm()
        if cell.crash == LAUNCHED:
            await until(lambda: len(node.births()) > before, "what was launched has recorded its birth")
        foreign = 0
        for change in cell.changes:
            foreign += change is is_revived
            await change(node)
        await node.release()
        finished = await node.finished(activity)
        await node.rest()
        found = (finished.code, len(node.births()) - before - foreign, bool(node.alive()), finished.recovered)
        if found == (cell.code, cell.starts, cell.runs, True) and await node.conditions() == []:
            return None
        return f"{cell}: {found}, {await node.conditions()}\n{finished.raw}"


@pytest.mark.parametrize("cells", [START, STOP, RESTART], ids=["start", "stop", "restart"])
async def test_recovery_does_what_its_table_says(cells: tuple[Cell, ...], rig: Rig, nursery: Nursery) -> None:
    wrong = await asyncio.gather(*(play(rig, nursery, cell) for cell in cells))
    failures = [text for text in wrong if text is not None]
    assert not failures, "\n".join(failures)
