"""What the journal said is on the disk, is: after kill -9, and when the disk fails."""

import asyncio
import json
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process

import pytest

from agent.journal import RowState
from tests.journal.conftest import Node, activity

STEPS = {
    "started": RowState.STARTED,
    "called": RowState.STARTED,
    "finished": RowState.FINISHED,
    "reported": RowState.REPORTED,
}
ORDER = list(RowState)


async def kill_while_it_writes(node: Node, first: int, lines: int) -> list[list[str]]:
    """Let a writer say so many lines, kill it, and return all that it said."""
    command = [sys.executable, "-m", "tests.journal.writer", str(node.folder), node.journal_id, str(first)]
    process: Process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    assert process.stdout is not None
    said = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += (await process.stdout.read()).splitlines(keepends=True)
    assert await process.wait() == -signal.SIGKILL
    return [line.decode().split() for line in said if line.endswith(b"\n")]


async def test_what_was_announced_before_kill_9_is_there(node: Node) -> None:
    dice = random.Random()
    first = 1
    for _ in range(4):
        await node.close()
        said = await kill_while_it_writes(node, first, dice.randrange(5, 60))
        await node.open()
        assert node.conditions.all() == []
        furthest = {int(number): (step, int(revision)) for step, number, revision in said}
        for number, (step, revision) in furthest.items():
            row = await node.row(number)
            assert ORDER.index(row.state) >= ORDER.index(STEPS[step]), (number, step)
            assert step == "started" or [call.incarnation for call in row.calls] == ["inc-1"]
            assert node.journal.revision >= revision
        rows = await node.journal.recent(10_000)
        assert sum(row.state is not RowState.REPORTED for row in rows) <= 1, "one life at a time"
        begun = sum(row.started_at is not None for row in rows)
        assert node.journal.revision == begun, "it grows with what was started, and with nothing else"
        assert node.journal.cursor == rows[0].sequence
        for row in await node.journal.unfinished():
            await node.finish(row.id)
        await node.sweep()
        await node.report(*(report.activity_id for report in await node.journal.outbox(10)))
        first = rows[0].sequence + 1


async def test_what_a_failing_disk_refused_was_neither_written_nor_announced(node: Node) -> None:
    await node.close()
    command = [sys.executable, "-m", "tests.journal.limited", str(node.folder), node.journal_id]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    said = json.loads(output.splitlines()[-1])
    for seen in said["meanwhile"]:
        assert "cannot use the journal" in seen.pop("error")
        assert seen == {"revision": 1, "cursor": 2, "conditions": ["journal_unwritable"]}
    assert said["begun"]
    assert said["afterwards"] == {"revision": 2, "cursor": 2, "conditions": []}
    await node.open()
    assert await node.states() == {1: "started", 2: "started"}
    assert node.conditions.all() == []


@pytest.mark.parametrize("write", ["start", "finish"])
async def test_a_step_outlives_an_agent_that_does_not_close(node: Node, write: str) -> None:
    """Two connections at once: what the first wrote is seen by the second, without any goodbye."""
    await node.sweep(activity(1))
    await node.start(1)
    if write == "finish":
        await node.finish(1)
    other = Node(node.folder, node.journal_id)
    await other.open()
    assert await other.states() == {1: "started" if write == "start" else "finished"}
    await other.close()
