"""The heartbeat: its pace, what it carries, and when it comes early."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from agent.errors import JournalError
from agent.journal import Journal
from agent.protocol import Verb
from tests.fakes.supervisor import FakeSupervisor, activity, altered, cut, hang, plain, status
from tests.link.conftest import Node, eventually, gaps, running, steady


async def test_it_says_how_the_node_is_and_learns_the_pace(node: Node, supervisor: FakeSupervisor) -> None:
    await node.result(1)
    await node.journal.take([activity(2)], sweep=None)
    node.conditions.set("disk_full", "the disk is full")
    supervisor.heartbeat_interval, supervisor.poll_wait = 7.5, 25.0
    async with running(node.heartbeat().run()):
        await eventually(lambda: node.pace.poll_wait == 25.0)
    [beat] = supervisor.heartbeats
    assert beat["agent"]["journal"] == {"waiting": 1, "unreported": 1}
    assert beat["agent"]["conditions"] == ["disk_full"]
    assert beat["node"]["hostname"] == "here"
    assert node.pace.heartbeat_interval == 7.5
    call = supervisor.calls("heartbeats")[0]
    assert call.headers["Agent-Instance"] == "instance-1"
    assert call.headers["Journal-Revision"] == "0"
    assert call.headers["User-Agent"] == "iggy-agent/1"


async def test_the_supervisor_sets_the_pace(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.heartbeat_interval = 0.6
    heartbeat = node.heartbeat()
    async with running(heartbeat.run()):
        await eventually(lambda: supervisor.count("heartbeats") == 3)
    assert all(gap >= 0.55 for gap in gaps(supervisor, "heartbeats"))
    assert heartbeat.status.failures == 0


async def test_an_absurd_pace_is_no_hot_loop(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.heartbeat_interval = 0.000001
    async with running(node.heartbeat().run()):
        await eventually(lambda: supervisor.count("heartbeats") == 3)
    assert all(gap >= 0.45 for gap in gaps(supervisor, "heartbeats"))


async def test_a_started_write_sends_its_revision_at_once(node: Node, supervisor: FakeSupervisor) -> None:
    await node.journal.take([activity(1)], sweep=None)
    async with running(node.heartbeat().run()):
        await eventually(lambda: supervisor.count("heartbeats") == 1)
        await node.journal.start(activity(1)["id"], Verb.RESTART)
        await eventually(lambda: supervisor.revision == 1)
    assert supervisor.count("heartbeats") == 2


async def test_changes_in_a_burst_travel_together(node: Node, supervisor: FakeSupervisor) -> None:
    heartbeat = node.heartbeat()
    async with running(heartbeat.run()):
        await eventually(lambda: supervisor.count("heartbeats") == 1)
        for number in range(50):
            node.conditions.set(f"condition_{number}", "it is so")
            heartbeat.beat()
            await asyncio.sleep(0)
        await eventually(lambda: supervisor.count("heartbeats") == 2)
    assert gaps(supervisor, "heartbeats")[0] >= 0.45
    assert len(supervisor.heartbeats[-1]["agent"]["conditions"]) == 50


async def test_a_change_of_condition_travels_early(node: Node, supervisor: FakeSupervisor) -> None:
    async with running(node.heartbeat().run()):
        await eventually(lambda: supervisor.count("heartbeats") == 1)
        node.conditions.set("disk_full", "the disk is full")
        await eventually(lambda: supervisor.count("heartbeats") == 2)
    assert supervisor.heartbeats[1]["agent"]["conditions"] == ["disk_full"]


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(429, retry_after="0"),
        cut(),
        plain(200, b"{}", "application/json"),
        plain(200, b"", "application/json"),
        altered(lambda answer: {**answer, "poll_wait": 4000}),
        hang(),
    ],
    ids=lambda fault: fault.__qualname__.partition(".")[0],
)
async def test_it_goes_on_after_any_failure(node: Node, supervisor: FakeSupervisor, fault: Any) -> None:
    supervisor.script("heartbeats", fault)
    async with running(node.heartbeat().run()):
        await eventually(lambda: "supervisor_unreachable" in node.conditions)
        await eventually(lambda: "supervisor_unreachable" not in node.conditions)
    assert node.pace.poll_wait <= 55


async def test_a_failure_does_not_call_for_a_heartbeat_at_once(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.always("heartbeats", status(503))
    heartbeat = node.heartbeat(backoff=steady(0.2))
    async with running(heartbeat.run()):
        for _ in range(20):
            heartbeat.beat()
            await asyncio.sleep(0.01)
        await eventually(lambda: supervisor.count("heartbeats") == 3)
    assert gaps(supervisor, "heartbeats")[0] >= 0.19
    assert gaps(supervisor, "heartbeats")[1] >= 0.38


async def test_it_beats_also_when_the_journal_cannot_be_read(
    node: Node, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(_self: Journal) -> Any:
        msg = "cannot read the journal"
        raise JournalError(msg)

    monkeypatch.setattr(Journal, "counts", failing)
    async with running(node.heartbeat().run()):
        await eventually(lambda: supervisor.heartbeats)
    assert supervisor.heartbeats[0]["agent"]["journal"] == {"waiting": 0, "unreported": 0}


async def test_the_clock_follows_the_supervisor(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.server_time_offset = timedelta(hours=-2)
    async with running(node.heartbeat().run()):
        await eventually(lambda: "clock_skew" in node.conditions)
    assert abs(node.clock.offset - timedelta(hours=-2)) < timedelta(seconds=5)
