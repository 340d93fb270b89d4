"""A journal that is deleted, emptied, damaged or put back from an old copy, and a state folder that is cloned: nothing
that may have been done is done again.
"""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.e2e.crash_node import CrashNode
from tests.e2e.nursery import Nursery
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

FILES = ("journal.db", "journal.db-wal", "journal.db-shm")


def delete(state: Path, _copy: Path) -> None:
    for name in FILES:
        (state / name).unlink(missing_ok=True)


def empty(state: Path, _copy: Path) -> None:
    delete(state, _copy)
    (state / "journal.db").touch()


def overwrite(state: Path, _copy: Path) -> None:
    """Damage every page but the first; what the WAL holds would heal it."""
    with closing(sqlite3.connect(state / "journal.db")) as journal:
        journal.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = (state / "journal.db").read_bytes()
    (state / "journal.db").write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def put_back(state: Path, copy: Path) -> None:
    delete(state, copy)
    for file in copy.iterdir():
        shutil.copy(file, state)


LOSSES: tuple[Callable[[Path, Path], None], ...] = (delete, empty, overwrite, put_back)


def copy_journal(node: CrashNode) -> Path:
    """Copy the journal of an agent that does not run."""
    copy = node.folder / "copy"
    copy.mkdir()
    for name in FILES:
        if (node.node.state_dir / name).exists():
            shutil.copy(node.node.state_dir / name, copy)
    return copy


def rejected(activity: Activity, code: ReasonCode) -> bool:
    return (activity.status, activity.code) == (ActivityStatus.REJECTED, code)


async def lose(rig: Rig, nursery: Nursery, loss: Callable[[Path, Path], None], crash: str, starts: int) -> None:
    """Lose the journal while a restart is under way and three more wait, and see what becomes of all."""
    async with CrashNode(rig, nursery, f"{loss.__name__} {crash}", USUAL) as node:
        await node.bring_up()
        await node.end()
        copy = copy_journal(node)
        await node.release()
        node.switch_faults(
            "slow_drain:0.5", "slow_start:0.5"
        )  # so that the revision of the journal is heard before the kill
        node.arm("loss", [crash])
        node.hold()
        before = len(node.births())
        activities = [await node.dispatch("restart")]
        await node.until_ended()
        activities += [await node.dispatch(action) for action in ("restart", "start", "stop")]
        await until(lambda: len(node.births()) - before == starts, "what was launched is up")
        running = node.alive()

        loss(node.node.state_dir, copy)
        node.switch_faults()
        await node.release()
        under_way, restart, start, stop = [await node.finished(activity) for activity in activities]
        assert rejected(under_way, ReasonCode.OUTCOME_UNKNOWN), under_way.raw
        assert rejected(restart, ReasonCode.OUTCOME_UNKNOWN), restart.raw
        true_already, unknown = (start, stop) if running else (stop, start)
        assert true_already.status is ActivityStatus.COMPLETED, true_already.raw
        assert not true_already.changed
        assert rejected(unknown, ReasonCode.OUTCOME_UNKNOWN), unknown.raw
        assert (node.alive(), len(node.births()) - before) == (running, starts)

        after = await node.run("restart")
        assert after.status is ActivityStatus.COMPLETED, after.raw
        assert len(node.births()) - before == starts + 1


@pytest.mark.parametrize(
    ("crash", "starts"),
    [("before:effect.launch:1", 0), ("before:journal.finish:1", 1)],
    ids=["in the middle", "after the effect"],
)
async def test_what_a_lost_journal_cannot_know_is_not_done_again(
    crash: str, starts: int, rig: Rig, nursery: Nursery
) -> None:
    async with asyncio.TaskGroup() as group:
        for loss in LOSSES:
            group.create_task(lose(rig, nursery, loss, crash, starts))


async def test_a_result_that_was_not_reported_survives_a_damaged_journal(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "salvage", USUAL) as node:
        await node.bring_up()
        node.arm("salvage", ["after:journal.finish:1"])
        node.hold()
        activity = await node.dispatch("restart")
        await node.until_ended()
        with closing(sqlite3.connect(node.node.state_dir / "journal.db", isolation_level=None)) as journal:
            journal.execute("UPDATE journal SET journal_id = 'another one'")
        await node.release()
        finished = await node.finished(activity)
        assert finished.status is ActivityStatus.COMPLETED, finished.raw
        assert len(node.births()) == 2


async def test_without_an_identity_the_agent_waits_and_touches_nothing(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "nobody", USUAL) as node:
        await node.bring_up()
        await node.end()
        identity = node.node.state_dir / "identity.json"
        identity.rename(node.folder / "identity.json")
        activity = await node.dispatch("restart")
        node.start_again()

        async def says_so() -> bool:
            return await node.conditions() == ["not_enrolled"]

        await until(says_so, "the agent says that it is nobody")
        assert len(node.births()) == len(node.alive()) == 1
        (node.folder / "identity.json").rename(identity)
        assert (await node.finished(activity)).status is ActivityStatus.COMPLETED
        assert len(node.births()) == 2


async def test_of_two_clones_only_the_one_that_started_last_acts(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "original", USUAL) as original:
        state = original.node.state_dir
        clone = original.folder / "clone"
        await original.end()
        shutil.copytree(state, clone / "state")
        await original.release()
        settings = original.node.settings_file.read_text()
        for mine, its in ((state, clone / "state"), (original.node.socket, clone / "agent.sock")):
            settings = settings.replace(json.dumps(str(mine)), json.dumps(str(its)))
        (clone / "agent.toml").write_text(settings)
        child = await nursery.start(
            ("run", "--config", str(clone / "agent.toml")), folder=clone, log=clone / "agent.log", points=clone
        )
        try:

            async def knows() -> bool:
                return await original.conditions() == ["identity_in_use"]

            await until(knows, "the original knows that it was cloned")
            activity = await original.finished(await original.dispatch("start"))
            assert activity.status is ActivityStatus.COMPLETED, activity.raw
            assert len(original.births()) == 1
            answer = await original.ask("/v1/activities?limit=10")
            assert answer is not None
            assert answer["items"] == []
            assert child.alive
            assert (clone / "state" / "runtimes" / RuntimeName.IGGY / "process.json").exists()
        finally:
            child.kill()
            await child.wait()
