"""Who speaks for a node: enrolment, tokens and their rotation, instances, removal."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.rig import Agent, Rig, command, heartbeat, node_of, report, running, until
from tests.supervisor.test_agent_api import held


async def test_enrolment_answers_who_the_node_is(rig: Rig) -> None:
    agent = await rig.agent()
    assert set(agent.enrollment) == {
        "tenant_id",
        "division_id",
        "environment_id",
        "deployment_id",
        "node_id",
        "node_token",
    }
    for level in ("tenant_id", "division_id", "environment_id"):
        assert agent.enrollment[level] == rig.deployment[level]
    assert agent.enrollment["deployment_id"] == rig.deployment["id"]
    answer = await rig.enroll(agent.enrollment_token, agent.machine)
    assert answer.headers["ld-node"] == str(agent.node_id)


async def test_the_same_machine_gets_the_same_node_and_a_fresh_token(rig: Rig) -> None:
    agent = await rig.agent()
    again = (await rig.enroll(agent.enrollment_token, agent.machine)).ok(201)
    assert again["node_id"] == agent.node_id
    assert again["node_token"] != agent.token
    (await agent.call("GET", "activities")).problem(401, "node_token_invalid")  # never used: its answer was lost
    agent.token = again["node_token"]
    await agent.poll()
    assert (await rig.call("GET", "nodes")).ok()["total_results"] == 1


async def test_another_machine_is_refused_and_changes_nothing(rig: Rig) -> None:
    agent = await rig.agent()
    (await rig.enroll(agent.enrollment_token, "another")).problem(409, "enrollment_token_used")
    await agent.poll()
    assert (await rig.call("GET", "nodes")).ok()["total_results"] == 1


async def test_an_unknown_and_an_expired_enrolment_token_are_401(rig: Rig) -> None:
    (await rig.enroll("iet_wrong", "machine")).problem(401, "enrollment_token_invalid")
    token = (await rig.call("POST", "enrollment-tokens", json_body={"ttl": 60})).ok(201)
    rig.clock.forward(61)
    (await rig.enroll(token["enrollment_token"], "machine")).problem(401, "enrollment_token_expired")


@pytest.mark.parametrize("change", [{"machine_id": ""}, {"hostname": 5}, {"machine_id": "x" * 129}])
async def test_a_wrong_enrolment_is_a_400(rig: Rig, change: dict[str, object]) -> None:
    body = {"enrollment_token": "x", "hostname": "h", "machine_id": "m", "agent_version": "1"} | change
    (await rig.call("POST", "/agent/v1/enroll", json_body=body)).problem(400, "invalid_body")


@pytest.mark.parametrize("body", [{"ttl": 0}, {"ttl": "60"}, {"ttl": 10**9}, {"time": 5}])
async def test_a_wrong_enrolment_token_body_is_a_400(rig: Rig, body: dict[str, object]) -> None:
    (await rig.call("POST", "enrollment-tokens", json_body=body)).problem(400, "invalid_body")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer int_wrong", "Basic int_wrong"])
async def test_a_call_without_a_valid_token_is_401(rig: Rig, header: str) -> None:
    agent = await rig.agent()
    for method, path in (("GET", "activities"), ("POST", "reports"), ("POST", "heartbeats"), ("POST", "token")):
        answer = await agent.call(method, path, headers={"Authorization": header})
        answer.problem(401, "node_token_invalid")


async def test_a_node_token_expires(rig: Rig) -> None:
    agent = await rig.agent()
    rig.clock.forward(366 * 86_400)
    (await agent.call("GET", "activities")).problem(401, "node_token_expired")


@pytest.mark.parametrize(
    "headers",
    [
        {"Agent-Instance": ""},
        {"Agent-Instance": "x" * 129},
        {"Journal-Revision": ""},
        {"Journal-Revision": "-1"},
        {"Journal-Revision": "9223372036854775808"},
    ],
)
async def test_a_call_without_its_headers_is_a_400(rig: Rig, headers: dict[str, str]) -> None:
    agent = await rig.agent()
    (await agent.call("GET", "activities", headers=headers)).problem(400, "invalid_parameter")


async def test_no_secret_is_stored_in_clear(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as rig:
        agent = await rig.agent()
        await agent.poll()
        rotated = (await agent.call("POST", "token")).ok()["node_token"]
        secrets = [rig.key, agent.token, agent.enrollment_token, rotated]
    stored = await asyncio.to_thread((tmp_path / "data" / "supervisor.db").read_bytes)
    assert b"machine-" in stored
    for secret in secrets:
        assert secret.encode() not in stored
        assert len(secret) > 40


async def test_a_rotated_token_works_and_the_previous_one_for_ten_minutes_more(rig: Rig) -> None:
    agent = await rig.agent()
    answer = (await agent.call("POST", "token")).ok()
    assert set(answer) == {"node_token", "previous_valid_until"}
    previous, agent.token = agent.token, answer["node_token"]
    await agent.poll()
    agent.token = previous
    rig.clock.forward(590)
    await agent.poll()
    rig.clock.forward(20)
    (await agent.call("GET", "activities")).problem(401, "node_token_expired")
    agent.token = answer["node_token"]
    await agent.poll()


async def test_a_rotation_whose_answer_was_lost_strands_nobody(rig: Rig) -> None:
    agent = await rig.agent()
    await agent.poll()
    lost = (await agent.call("POST", "token")).ok()["node_token"]
    rig.clock.forward(3600)
    again = (await agent.call("POST", "token")).ok()["node_token"]
    assert (await agent.call("GET", "activities", headers={"Authorization": f"Bearer {lost}"})).status == 401
    agent.token = again
    await agent.poll()


async def test_tokens_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        agent = await rig.agent()
        await agent.poll()
        fresh = (await agent.call("POST", "token")).ok()["node_token"]
    async with running(tmp_path) as rig:
        agent.rig = rig
        await agent.poll()
        agent.token = fresh
        await agent.poll()


# --- instances


async def calls_of(agent: Agent) -> list[int]:
    answers = [
        await agent.call("GET", "activities"),
        await agent.call("POST", "reports", json_body={"reports": [report(5)]}),
        await agent.call("POST", "heartbeats", json_body=heartbeat()),
        await agent.call("POST", "token"),
    ]
    for answer in answers:
        if answer.status == 409:
            answer.problem(409, "identity_in_use")
    return [answer.status for answer in answers]


def clone(agent: Agent, instance: str) -> Agent:
    return Agent(agent.rig, agent.enrollment, agent.enrollment_token, agent.machine, instance, token=agent.token)


async def test_the_newest_first_seen_instance_wins_on_every_call(rig: Rig) -> None:
    agent = await rig.agent()
    newer = clone(agent, "newer")
    assert await calls_of(agent) == [200] * 4
    assert await calls_of(newer) == [200] * 4
    assert await calls_of(agent) == [409] * 4
    assert await calls_of(newer) == [200] * 4
    assert (await agent.call("GET", "activities")).headers["Agent-Instance"] == "newer"


async def test_a_former_instance_stays_refused_after_a_restart_of_the_supervisor(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        agent = await rig.agent()
        newer = clone(agent, "newer")
        await agent.poll()
        await newer.poll()
    async with running(tmp_path) as rig:
        agent.rig = newer.rig = rig
        assert await calls_of(agent) == [409] * 4
        assert await calls_of(newer) == [200] * 4


async def test_a_held_poll_of_a_replaced_instance_is_answered_409_at_once(rig: Rig) -> None:
    agent = await rig.agent()
    await agent.poll()
    poll = asyncio.create_task(agent.call("GET", "activities?wait=30"))
    await until(lambda: node_of(rig, agent).held)
    await clone(agent, "newer").poll()
    async with asyncio.timeout(5):
        (await poll).problem(409, "identity_in_use")


async def test_a_refused_instance_can_change_nothing(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    await agent.poll()
    await clone(agent, "newer").poll()
    agent.revision = 99
    answer = await agent.call("POST", "reports", json_body={"reports": [report(item["id"])]})
    answer.problem(409, "identity_in_use")
    assert (await rig.activity(item["id"]))["status"] == "processing"
    assert (await clone(agent, "newer").poll())["revision"] == 0


async def test_two_instances_at_the_same_time_leave_one_winner(rig: Rig) -> None:
    agent = await rig.agent()
    await agent.poll()
    clones = [clone(agent, f"clone-{number}") for number in range(8)]
    await asyncio.gather(*(each.call("GET", "activities") for each in clones))
    statuses = [(await each.call("GET", "activities")).status for each in [agent, *clones]]
    assert sorted(statuses) == [200] + [409] * 8


# --- revision


async def test_the_highest_revision_ever_sent_is_told_and_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        agent = await rig.agent()
        assert (await agent.poll())["revision"] == 0
        agent.revision = 7
        await agent.beat()
        agent.revision = 3
        assert (await agent.poll())["revision"] == 7
    async with running(tmp_path) as rig:
        agent.rig = rig
        assert (await agent.poll())["revision"] == 7


async def test_a_report_brings_its_revision_also_when_it_is_refused(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    await agent.poll()
    agent.revision = 5
    refused = await agent.call("POST", "reports", json_body={"reports": [report(item["id"], status="maybe")]})
    refused.problem(400, "invalid_body")
    assert (await agent.poll())["revision"] == 5
    agent.revision = 7
    assert await agent.report(report(item["id"])) == ["recorded"]
    agent.revision = 0
    assert (await agent.poll())["revision"] == 7
    assert (await rig.activity(item["id"]))["status"] == "completed"


@pytest.mark.parametrize("sent", [{"status": "maybe"}, {"evidence": {"x": "x" * 300_000}}, {}])
async def test_a_replaced_instance_is_told_so_whatever_it_reports(rig: Rig, sent: dict[str, Any]) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    await agent.poll()
    await clone(agent, "newer").poll()
    for agent.revision in (0, 99):
        answer = await agent.call("POST", "reports", json_body={"reports": [report(item["id"], **sent)]})
        answer.problem(409, "identity_in_use")


async def test_a_report_that_came_slowly_from_an_instance_replaced_meanwhile_is_refused(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    await agent.poll()
    body = json.dumps({"reports": [report(item["id"])]}).encode()
    begun = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:10]
        begun.set()
        await clone(agent, "newer").poll()
        yield body[10:]

    answer = await agent.call("POST", "reports", body=slowly(), headers={"Content-Type": "application/json"})
    answer.problem(409, "identity_in_use")
    assert begun.is_set()
    assert (await rig.activity(item["id"]))["status"] == "processing"


async def test_a_held_poll_tells_the_revision_that_another_call_brought_meanwhile(rig: Rig) -> None:
    agent = await rig.agent()
    poll = await held(rig, agent)
    agent.revision = 12
    await agent.beat()
    await rig.dispatch()
    assert (await poll)["revision"] == 12


# --- removal


async def test_a_removed_node_gets_410_on_every_call_and_is_no_target_any_more(rig: Rig) -> None:
    agent, other = await rig.agent(), await rig.agent()
    items = await rig.dispatch()
    poll = await held(rig, agent, after=2**62)
    await command(rig.data, "nodes", "remove", str(agent.node_id))
    with pytest.raises(AssertionError, match="decommissioned"):
        await poll
    for method, path in (("GET", "activities"), ("POST", "reports"), ("POST", "heartbeats"), ("POST", "token")):
        (await agent.call(method, path)).problem(410, "decommissioned")
    (await rig.enroll(agent.enrollment_token, agent.machine)).problem(410, "decommissioned")
    answer = await rig.call("POST", "activities/iggy/stop", json_body={"nodes": [agent.node_id]})
    answer.problem(400, "unknown_node")
    assert [item["node_id"] for item in await rig.dispatch()] == [other.node_id]
    assert [node["id"] for node in (await rig.call("GET", "nodes")).ok()["items"]] == [other.node_id]
    gone = next(item["id"] for item in items if item["node_id"] == agent.node_id)
    shown = await rig.activity(gone)
    assert (shown["status"], shown["reason"]["code"]) == ("rejected", "no_report")
