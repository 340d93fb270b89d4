"""Bad networks and bad answers between a real agent and the real Supervisor: nothing is lost, nothing is done twice,
nothing loops hot, no lane is blocked.
"""

import asyncio
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from agent.protocol import ActivityStatus, ReasonCode
from tests.e2e import fault_proxy
from tests.e2e.crash_node import IGGY, CrashNode
from tests.e2e.fault_proxy import Exchange, Fault, FaultProxy, answer_with, change_items, refuse_reports
from tests.e2e.nursery import Nursery
from tests.e2e.ports import Ports
from tests.e2e.public_api import Activity, ApiError
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

OUTAGE = 1.5
"""Seconds; long ones are for the tests of the link, which have clocks of their own."""
KIB = 1024


@asynccontextmanager
async def behind_a_proxy(rig: Rig, nursery: Nursery, name: str) -> AsyncIterator[tuple[CrashNode, FaultProxy]]:
    """Make a node whose agent calls through a proxy."""
    ports = Ports()
    try:
        async with (
            FaultProxy(rig.supervisor_url, ports.take()) as proxy,
            CrashNode(rig, nursery, name, USUAL, supervisor_url=proxy.url) as node,
        ):
            yield node, proxy
    finally:
        ports.close()


def completed(*activities: Activity) -> bool:
    return all(activity.status is ActivityStatus.COMPLETED and activity.changed for activity in activities)


async def has(node: CrashNode, *conditions: str) -> bool:
    return set(conditions) <= set(await node.conditions())


# --- outages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outage:
    """One kind of outage.

    Attributes:
        calls: The most that may be made in it, by all channels together.
    """

    name: str
    fault: Fault
    calls: int


OUTAGES = (
    Outage("dropped", fault_proxy.drop, 40),
    Outage("answers lost", fault_proxy.swallow, 40),
    Outage("cut in the body", fault_proxy.cut, 40),
    Outage("500", answer_with(500), 40),
    Outage("429", answer_with(429, Retry_After="1"), 8),
    Outage("hanging", fault_proxy.hang, 6),
)


async def outlast(rig: Rig, nursery: Nursery, outage: Outage) -> None:
    """Lose the network while one restart is under way, and dispatch another meanwhile."""
    async with behind_a_proxy(rig, nursery, f"outage {outage.name}") as (node, proxy):
        await node.bring_up()
        first = await node.dispatch("restart")
        await until(lambda: len(node.births()) == 2, "the first restart has had its effect")
        proxy.set(outage.fault)
        began = time.monotonic()
        second = await node.dispatch("restart")
        await asyncio.sleep(OUTAGE)
        calls = proxy.calls_since(began)
        proxy.set(fault_proxy.none)
        found = [await node.finished(first), await node.finished(second)]
        assert completed(*found), [activity.raw for activity in found]
        assert len(node.births()) == 3
        assert calls <= outage.calls, f"{calls} calls in {OUTAGE:g} s: a hot loop"
        await until(lambda: _is_well(node), "the agent is well again")


async def _is_well(node: CrashNode) -> bool:
    return await node.conditions() == []


async def test_an_outage_loses_nothing_and_repeats_nothing(rig: Rig, nursery: Nursery) -> None:
    async with asyncio.TaskGroup() as group:
        for outage in OUTAGES:
            group.create_task(outlast(rig, nursery, outage))


async def test_a_refused_token_is_shown_and_tried_rarely_and_stops_nothing(rig: Rig, nursery: Nursery) -> None:
    async with behind_a_proxy(rig, nursery, "refused") as (node, proxy):
        await node.bring_up()
        proxy.set(answer_with(401))
        began = time.monotonic()
        activity = await node.dispatch("restart")
        await until(lambda: has(node, "unauthorized"), "the agent says that it is refused")
        await asyncio.sleep(OUTAGE)
        assert proxy.calls_since(began) <= 6
        assert node.agent.alive
        proxy.set(fault_proxy.none)
        assert await node.end(signal.SIGTERM) == 0  # instead of waiting for half a minute
        await node.release()
        assert completed(await node.finished(activity))
        assert len(node.births()) == 2


# --- what answers hold ------------------------------------------------------------------------------------------------


async def dispatch_together(node: CrashNode, actions: Sequence[str]) -> list[Activity]:
    """Dispatch while there is no agent, so that all come in one answer."""
    await node.end()
    activities = [await node.dispatch(action) for action in actions]
    await node.release()
    return activities


async def test_items_twice_and_out_of_order_are_done_once_and_in_order(rig: Rig, nursery: Nursery) -> None:
    async with behind_a_proxy(rig, nursery, "twice") as (node, proxy):
        await node.bring_up()
        proxy.set(change_items(lambda items: [*reversed(items), *items]))
        found = [await node.finished(activity) for activity in await dispatch_together(node, ["stop", "start"])]
        assert completed(*found), [activity.raw for activity in found]
        assert completed(await node.run("restart"))
        assert len(node.births()) == 3


async def test_an_item_that_does_not_parse_holds_up_no_other(rig: Rig, nursery: Nursery) -> None:
    bad = {"id": 5, "runtime": IGGY, "action": {"verb": "restart"}, "created_at": "yesterday"}

    def spoil(items: list[Any]) -> list[Any]:
        if not items:
            return items
        return ["text", items[0], {**bad, "sequence": items[0]["sequence"]}, {"action": "stop"}, *items[1:]]

    async with behind_a_proxy(rig, nursery, "spoilt") as (node, proxy):
        await node.bring_up()
        proxy.set(change_items(spoil))
        found = [await node.finished(activity) for activity in await dispatch_together(node, ["stop", "start"])]
        assert completed(*found), [activity.raw for activity in found]
        assert len(node.births()) == 2
        await node.rest()
        row = await node.ask("/v1/activities/5")
        assert row is not None
        assert (row["state"], row["code"]) == ("reported", ReasonCode.INVALID_ACTIVITY)


async def test_ten_large_configs_at_once_all_arrive(rig: Rig, nursery: Nursery) -> None:
    async with behind_a_proxy(rig, nursery, "large") as (node, proxy):
        ids = [
            await rig.api.create_config(IGGY, "large", files={"data/large.txt": f"{number}" * 400 * KIB})
            for number in range(10)
        ]
        activities = await dispatch_together(node, [f"reconfigure:{config_id}" for config_id in ids])
        found = [await node.finished(activity) for activity in activities]
        assert completed(*found), [(activity.code, activity.message) for activity in found]
        assert node.births() == []
        assert node.current() == f"{ids[-1]}-{found[-1].evidence['attempted']['version']}"
        assert len(proxy.calls) < 60


# --- reports ----------------------------------------------------------------------------------------------------------


async def test_a_report_that_is_too_large_is_sent_without_its_evidence(rig: Rig, nursery: Nursery) -> None:
    def too_large(report: Mapping[str, Any]) -> bool:
        return len(json.dumps(report["evidence"])) > 200

    async with behind_a_proxy(rig, nursery, "too large") as (node, proxy):
        await node.bring_up()
        proxy.set(refuse_reports(too_large))
        found = await node.run("restart")
        assert completed(found), found.raw
        assert "after" not in found.evidence
        assert len(node.births()) == 2


async def test_a_report_that_nobody_takes_is_kept_and_holds_up_no_other(rig: Rig, nursery: Nursery) -> None:
    refused: set[int] = set()
    async with behind_a_proxy(rig, nursery, "kept") as (node, proxy):
        await node.bring_up()
        proxy.set(refuse_reports(lambda report: report["activity_id"] in refused))
        await node.end()
        kept = await node.dispatch("restart")
        refused.add(kept.id)
        await node.release()
        await until(lambda: has(node, "report_refused"), "the agent shows what is refused")
        other = await node.finished(await node.dispatch("stop"))
        assert completed(other), other.raw
        refused.clear()
        await node.end()
        await node.release()
        assert completed(await node.finished(kept))
        assert len(node.births()) == 2


# --- a Supervisor that forgets ----------------------------------------------------------------------------------------


async def test_a_report_that_the_supervisor_forgot_is_sent_again(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "forgotten", USUAL) as node:
        await node.bring_up()
        first = await node.run("restart")
        await rig.supervisor.terminate()
        with closing(sqlite3.connect(rig.supervisor_database, isolation_level=None)) as store:
            store.execute(
                "UPDATE activities SET status = 'processing', finished_at = NULL, report = NULL, report_sha256 = NULL"
                " WHERE id = ?",
                (first.id,),
            )
        await rig.start_supervisor()
        assert (await node.finished(first)).raw == first.raw
        assert len(node.births()) == 2


async def test_a_supervisor_put_back_from_an_old_copy_gets_what_it_lost_and_nothing_is_repeated(
    rig: Rig, nursery: Nursery
) -> None:
    copy = rig.folder / "old copy"
    async with CrashNode(rig, nursery, "older", USUAL) as node:
        await node.bring_up()
        await node.end()
        first = await node.dispatch("restart")
        await rig.supervisor.terminate()
        shutil.copytree(rig.supervisor_database.parent, copy)
        await rig.start_supervisor()
        await node.release()
        done = await node.finished(first)
        second = await node.run("restart")
        assert completed(done, second)

        await rig.supervisor.terminate()
        shutil.rmtree(rig.supervisor_database.parent)
        copy.rename(rig.supervisor_database.parent)
        await rig.start_supervisor()
        assert (await node.finished(first)).raw == done.raw
        with pytest.raises(ApiError, match="404"):
            await rig.api.get(second.id)
        third = await node.run("restart")
        assert completed(third), third.raw
        assert third.id > second.id
        assert len(node.births()) == 4


async def test_a_request_of_a_dead_agent_that_arrives_late_does_not_silence_the_living_one(
    rig: Rig, nursery: Nursery
) -> None:
    late = asyncio.Event()
    arrived: list[int] = []

    async def hold(exchange: Exchange) -> web.StreamResponse:
        async def arrive() -> None:
            await late.wait()
            arrived.append((await exchange.forward()).status)

        group.create_task(arrive())
        return await fault_proxy.hang(exchange)

    async with behind_a_proxy(rig, nursery, "late") as (node, proxy), asyncio.TaskGroup() as group:
        await node.bring_up()
        await node.end()
        proxy.set(hold)
        began = time.monotonic()
        node.start_again()
        await until(lambda: proxy.calls_since(began) >= 2, "an agent has called, and nothing of it has arrived")
        await node.end()
        proxy.set(fault_proxy.none)
        await node.release()
        assert completed(await node.run("restart"))
        late.set()
        await until(lambda: 200 in arrived, "its calls have arrived")
        assert completed(await node.run("restart"))
        assert await node.conditions() == []
        assert len(node.births()) == 3
