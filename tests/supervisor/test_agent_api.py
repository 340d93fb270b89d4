"""The agent's side: long polls that wake at once, sweeps, sizes, reports."""

import asyncio
import json
import statistics
import time

import pytest

from agent.protocol import MAX_ANSWER_BYTES, MAX_BODY_BYTES, Activity
from tests.supervisor.rig import Agent, Json, Rig, heartbeat, node_of, report, until


async def held(rig: Rig, agent: Agent, after: int = 0, polls: int = 1) -> asyncio.Task[Json]:
    """Begin a poll, and return once the Supervisor holds so many of this agent."""
    poll = asyncio.create_task(agent.poll(after=after, wait=15))
    await until(lambda: len(node_of(rig, agent).held) == polls)
    return poll


async def test_an_activity_arrives_whole(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch("connectors/start")
    answer = await agent.poll()
    assert list(answer) == ["items", "last", "revision"]
    (raw,) = answer["items"]
    assert set(raw) == {"id", "sequence", "runtime", "action", "author_id", "created_at", "expires_at", "config"}
    activity = Activity.model_validate(raw)
    assert (activity.id, activity.runtime, activity.action) == (item["id"], "connectors", "start")
    assert (activity.config, activity.author_id) == (None, item["author_id"])
    assert activity.expires_at is not None
    assert (activity.expires_at - activity.created_at).total_seconds() == 3600
    assert answer["last"] == activity.sequence


async def test_a_held_poll_wakes_at_once_on_a_dispatch_to_its_node(rig: Rig) -> None:
    agent, other = await rig.agent(), await rig.agent()
    idle = await held(rig, other)
    delays = []
    after = 0
    for _ in range(9):
        poll = await held(rig, agent, after)
        await rig.dispatch(nodes=[agent.node_id])
        answered = time.monotonic()
        (item,) = (await poll)["items"]
        delays.append(time.monotonic() - answered)
        after = item["sequence"]
    assert statistics.median(delays) < 0.05
    assert not idle.done()
    idle.cancel()


async def test_a_poll_with_nothing_to_do_is_held_as_long_as_it_asked(rig: Rig) -> None:
    agent = await rig.agent()
    begun = time.monotonic()
    assert (await agent.poll(wait=0.3))["items"] == []
    assert 0.25 < time.monotonic() - begun < 5


async def test_idle_polls_cost_no_query(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await rig.agent()
    await agent.poll()
    monkeypatch.setattr(rig.supervisor._store, "read", None)
    monkeypatch.setattr(rig.supervisor._store, "write", None)
    assert (await agent.poll(wait=0.05))["items"] == []
    monkeypatch.undo()


async def test_a_poll_is_a_pure_read_in_order_of_sequence_above_after(rig: Rig) -> None:
    agent = await rig.agent()
    for action in ("start", "restart", "stop"):
        await rig.dispatch(f"iggy/{action}")
    first = await agent.poll()
    assert first == await agent.poll()
    sequences = [item["sequence"] for item in first["items"]]
    assert [item["action"] for item in first["items"]] == ["start", "restart", "stop"]
    assert sequences == sorted(sequences)
    assert (await agent.poll(after=sequences[0]))["items"] == first["items"][1:]
    assert (await agent.poll(after=sequences[-1]))["items"] == []
    assert (await agent.poll(limit=2))["items"] == first["items"][:2]


async def test_a_sweep_pages_through_everything_that_is_processing(rig: Rig) -> None:
    agent = await rig.agent()
    made = [(await rig.dispatch())[0]["id"] for _ in range(7)]
    await agent.report(report(made[3]))
    seen, after = [], 0
    while items := (await agent.poll(after=after, limit=2))["items"]:
        seen += [item["id"] for item in items]
        after = items[-1]["sequence"]
    assert seen == made[:3] + made[4:]


async def test_only_what_is_processing_is_listed_and_last_never_goes_back(rig: Rig) -> None:
    agent = await rig.agent()
    assert (await agent.poll())["last"] == 0
    (item,) = await rig.dispatch()
    last = (await agent.poll())["last"]
    await agent.report(report(item["id"]))
    answer = await agent.poll()
    assert (answer["items"], answer["last"]) == ([], last)


async def test_an_answer_is_cut_at_its_bound_and_one_item_always_goes(rig: Rig) -> None:
    agent = await rig.agent()
    configs = [await rig.config(name=f"c{n}", values={"IGGY_A": "ü" * 150_000}) for n in range(5)]
    big = await rig.config(name="big", values={"IGGY_A": "x" * 520_000})
    for config in [*configs, big, big]:
        await rig.dispatch(f"iggy/reconfigure:{config['id']}")
    seen, after, pages = [], 0, 0
    while True:
        answer = await agent.call("GET", f"activities?after={after}")
        items = answer.ok()["items"]
        if not items:
            break
        assert len(answer.raw) <= MAX_ANSWER_BYTES
        seen += [item["config"]["id"] for item in items]
        after = items[-1]["sequence"]
        pages += 1
    assert seen == [config["id"] for config in [*configs, big, big]]
    assert pages == 5


@pytest.mark.parametrize(
    "query",
    ["after=-1", "after=x", "after=9223372036854775808", "wait=56", "wait=-1", "wait=x", "limit=0", "limit=101"],
)
async def test_a_wrong_parameter_is_a_400(rig: Rig, query: str) -> None:
    agent = await rig.agent()
    (await agent.call("GET", f"activities?{query}")).problem(400, "invalid_parameter")


async def test_one_poll_too_many_lets_go_of_the_oldest(rig: Rig) -> None:
    agent = await rig.agent()
    polls = [await held(rig, agent, polls=number) for number in (1, 2, 3, 4)]
    polls.append(asyncio.create_task(agent.poll(wait=15)))
    assert (await polls[0])["items"] == []
    assert not any(poll.done() for poll in polls[1:])
    await rig.dispatch()
    assert all(len(answer["items"]) == 1 for answer in await asyncio.gather(*polls[1:]))


# --- reports


async def test_the_first_report_of_a_node_wins_for_ever(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    first = report(item["id"])
    assert await agent.report(first) == ["recorded"]
    assert await agent.report(first) == ["duplicate"]
    reason = {"code": "not_ready", "message": "cannot", "hint": None}
    assert await agent.report(first | {"status": "rejected", "reason": reason}) == ["conflict"]
    assert await agent.report(first | {"evidence": {}}) == ["conflict"]
    assert (await rig.activity(item["id"]))["status"] == "completed"


async def test_a_report_on_what_the_node_was_never_given_is_unknown(rig: Rig) -> None:
    agent, other = await rig.agent(), await rig.agent()
    items = await rig.dispatch()
    mine = next(item["id"] for item in items if item["node_id"] == agent.node_id)
    theirs = next(item["id"] for item in items if item["node_id"] == other.node_id)
    assert await agent.report(report(5), report(theirs), report(mine)) == ["unknown", "unknown", "recorded"]
    assert (await rig.activity(theirs))["status"] == "processing"


async def test_the_same_activity_twice_in_a_batch_is_recorded_once(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    one = report(item["id"])
    assert await agent.report(one, one, one | {"changed": False}) == ["recorded", "duplicate", "conflict"]


async def test_an_unknown_field_of_a_newer_agent_is_ignored(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    assert await agent.report(report(item["id"], colour="red")) == ["recorded"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{}", "invalid_body"),
        (b'{"reports": []}', "invalid_body"),
        (b'{"reports": [5]}', "invalid_body"),
        (json.dumps({"reports": [report(5, status="done")]}).encode(), "invalid_body"),
        (json.dumps({"reports": [report(True)]}).encode(), "invalid_body"),
        (json.dumps({"reports": [report(5, status="rejected")]}).encode(), "invalid_body"),
        (json.dumps({"reports": [report(5, finished_at="2026-01-01T00:00:00")]}).encode(), "invalid_body"),
        (json.dumps({"reports": [report(5)] * 101}).encode(), "invalid_body"),
    ],
)
async def test_a_report_of_the_wrong_shape_is_a_400(rig: Rig, body: bytes, code: str) -> None:
    agent = await rig.agent()
    (await agent.call("POST", "reports", body=body)).problem(400, code)


async def test_a_batch_with_one_bad_report_records_nothing(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    body = {"reports": [report(item["id"]), report(6, status="rejected")]}
    (await agent.call("POST", "reports", json_body=body)).problem(400, "invalid_body")
    assert (await rig.activity(item["id"]))["status"] == "processing"


async def test_bodies_and_evidence_are_bounded(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    too_much = {"reports": [report(item["id"], evidence={"log": "x" * 300_000})]}
    (await agent.call("POST", "reports", json_body=too_much)).problem(413, "evidence_too_large")
    huge = {"reports": [report(item["id"], evidence={"log": "x" * MAX_BODY_BYTES})]}
    (await agent.call("POST", "reports", json_body=huge)).problem(413, "body_too_large")
    (await agent.call("POST", "heartbeats", json_body=heartbeat(filler="x" * 70_000))).problem(413, "body_too_large")
    assert await agent.report(report(item["id"], evidence={})) == ["recorded"]


# --- heartbeats


async def test_a_heartbeat_is_answered_with_the_time_and_the_pace(rig: Rig) -> None:
    agent = await rig.agent()
    answer = await agent.beat()
    assert set(answer) == {"server_time", "heartbeat_interval", "poll_wait"}
    assert (answer["heartbeat_interval"], answer["poll_wait"]) == (10.0, 50.0)


async def test_nodes_are_listed_with_their_latest_heartbeat_and_its_age(rig: Rig) -> None:
    agent, silent = await rig.agent(), await rig.agent()
    await agent.beat()
    await agent.beat(node={"hostname": "renamed"})
    rig.clock.forward(7)
    page = (await rig.call("GET", "nodes")).ok()
    assert (page["page"], page["total_results"], page["total_pages"]) == (1, 2, 1)
    first, second = page["items"]
    assert list(first) == [
        "id",
        "tenant_id",
        "division_id",
        "environment_id",
        "deployment_id",
        "hostname",
        "agent_version",
        "created_at",
        "heartbeat_at",
        "heartbeat",
        "heartbeat_age",
    ]
    assert (first["id"], first["hostname"], first["agent_version"]) == (agent.node_id, "host", "1.2.3")
    assert first["heartbeat"]["node"]["hostname"] == "renamed"
    assert first["heartbeat"]["runtimes"][0]["state"] == "running"
    assert 7 <= first["heartbeat_age"] < 20
    assert (second["id"], second["heartbeat"], second["heartbeat_age"]) == (silent.node_id, None, None)


async def test_a_wrong_heartbeat_is_a_400(rig: Rig) -> None:
    agent = await rig.agent()
    answer = await agent.call("POST", "heartbeats", json_body=heartbeat(runtimes=[{"runtime": "mcp"}]))
    answer.problem(400, "invalid_body")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"node": {"hostname": "h", "uptime_seconds": "5"}}, "node.uptime_seconds"),
        ({"node": {"hostname": "h", "cpu_count": True}}, "node.cpu_count"),
        ({"sent_at": 1_700_000_000}, "sent_at"),
        ({"sent_at": "1700000000"}, "sent_at"),
        ({"node": {"hostname": 5}}, "node.hostname"),
    ],
)
async def test_a_value_of_another_type_is_not_made_to_fit(rig: Rig, change: dict[str, object], path: str) -> None:
    agent = await rig.agent()
    answer = await agent.call("POST", "heartbeats", json_body=heartbeat(**change))
    assert answer.problem(400, "invalid_body")["field"] == path


async def test_a_whole_number_may_be_said_as_a_fraction(rig: Rig) -> None:
    """To JSON Schema, which the document is in, 2.0 is an integer."""
    agent = await rig.agent()
    body = json.dumps(heartbeat()).replace('"cpu_count": 2', '"cpu_count": 2.0')
    assert '"cpu_count": 2.0' in body
    (await agent.call("POST", "heartbeats", body=body)).ok()


@pytest.mark.parametrize("wait", ["0.012287545830212046", "1e-3", "5E-324", "-0.0"])
async def test_any_number_of_seconds_may_be_waited_for(rig: Rig, wait: str) -> None:
    agent = await rig.agent()
    (await agent.call("GET", f"activities?after=0&wait={wait}")).ok()
