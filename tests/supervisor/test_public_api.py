"""The Activities API, sentence by sentence, over real HTTP with the exact JSON."""

import asyncio
import re
from pathlib import Path

import aiohttp
import pytest

from tests.supervisor.rig import Rig, command, report, running

ITEM_FIELDS = [
    "id",
    "tenant_id",
    "division_id",
    "environment_id",
    "deployment_id",
    "author_id",
    "runtime",
    "action",
    "node_id",
    "status",
    "created_at",
    "finished_at",
]
WHOLE_SECONDS = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.mark.parametrize("body", [None, b"{}", b" \n", b'{"nodes": [%d]}'])
async def test_a_dispatch_answers_202_with_one_processing_item_per_node(rig: Rig, body: bytes | None) -> None:
    agent = await rig.agent()
    sent = body % agent.node_id if body and b"%d" in body else body
    answer = await rig.call("POST", "activities/iggy/restart", body=sent, content_type="application/json")
    assert list(answer.ok(202)) == ["items"]
    (item,) = answer.body["items"]
    assert list(item) == ITEM_FIELDS
    assert item["tenant_id"] == rig.deployment["tenant_id"]
    assert item["division_id"] == rig.deployment["division_id"]
    assert item["environment_id"] == rig.deployment["environment_id"]
    assert item["deployment_id"] == rig.deployment["id"]
    assert (item["runtime"], item["action"], item["node_id"]) == ("iggy", "restart", agent.node_id)
    assert (item["status"], item["finished_at"]) == ("processing", None)
    assert re.fullmatch(WHOLE_SECONDS, item["created_at"])
    assert 2**53 < item["id"] < 2**63
    assert answer.headers["Content-Type"] == "application/json"


async def test_a_post_without_body_and_content_type_is_accepted(rig: Rig) -> None:
    await rig.agent()
    async with rig.session.post(
        f"{rig.url}{rig.base}/activities/connectors/stop",
        headers={"ld-api-key": rig.key},
        skip_auto_headers=["Content-Type"],
    ) as response:
        assert "Content-Type" not in response.request_info.headers
        assert response.status == 202


async def test_the_documented_curl_of_a_form_content_type_is_accepted_too(rig: Rig) -> None:
    await rig.agent()
    answer = await rig.call(
        "POST", "activities/iggy/start", body="{}", content_type="application/x-www-form-urlencoded"
    )
    answer.ok(202)


async def test_only_the_nodes_listed_are_targeted_each_once(rig: Rig) -> None:
    first, second, third = [await rig.agent() for _ in range(3)]
    items = await rig.dispatch("iggy/stop", [third.node_id, first.node_id, third.node_id])
    assert [item["node_id"] for item in items] == [third.node_id, first.node_id]
    assert [item["node_id"] for item in await rig.dispatch("iggy/start")] == [
        first.node_id,
        second.node_id,
        third.node_id,
    ]
    assert (await second.poll())["items"][0]["action"] == "start"
    assert len({item["id"] for item in items}) == 2


async def test_a_completed_item_has_exactly_the_documented_fields_and_types(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    assert await agent.report(report(item["id"])) == ["recorded"]
    page = (await rig.call("GET", "activities?page=1&results=10")).ok()
    assert list(page) == ["items", "page", "total_results", "total_pages"]
    assert (page["page"], page["total_results"], page["total_pages"]) == (1, 1, 1)
    (listed,) = page["items"]
    assert list(listed) == ITEM_FIELDS
    assert listed["status"] == "completed"
    assert re.fullmatch(WHOLE_SECONDS, listed["finished_at"])
    assert listed["finished_at"] >= listed["created_at"]
    assert {name for name in listed if type(listed[name]) is int} == {name for name in ITEM_FIELDS if "id" in name}


async def test_a_rejected_item_also_has_its_reason(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    reason = {"code": "not_ready", "message": "cannot restart iggy: not ready", "hint": "look"}
    await agent.report(report(item["id"], status="rejected", reason=reason))
    (listed,) = (await rig.call("GET", "activities")).ok()["items"]
    assert list(listed) == [*ITEM_FIELDS, "reason"]
    assert (listed["status"], listed["reason"]) == ("rejected", reason)


async def test_one_activity_is_shown_with_what_the_node_reported(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    before = await rig.activity(item["id"])
    assert before == item | {"started_at": None, "changed": None, "recovered": None, "evidence": None}
    started_at = item["created_at"].replace("Z", ".5Z")
    await agent.report(report(item["id"], recovered=True, started_at=started_at, evidence={"a": [1]}))
    after = await rig.activity(item["id"])
    assert list(after) == [*ITEM_FIELDS, "started_at", "changed", "recovered", "evidence"]
    assert (after["changed"], after["recovered"], after["evidence"]) == (True, True, {"a": [1]})
    assert after["started_at"] == item["created_at"]


async def test_finished_at_lies_between_dispatch_and_now_whatever_the_nodes_clock_says(rig: Rig) -> None:
    agent = await rig.agent()
    early, late = await rig.dispatch(), await rig.dispatch()
    await agent.report(
        report(early[0]["id"], finished_at="1999-01-01T00:00:00Z"),
        report(late[0]["id"], finished_at="2999-01-01T00:00:00Z"),
    )
    assert (await rig.activity(early[0]["id"]))["finished_at"] == early[0]["created_at"]
    assert (await rig.activity(late[0]["id"]))["finished_at"] < "2999"


async def test_started_at_lies_between_dispatch_and_end_whatever_the_nodes_clock_says(rig: Rig) -> None:
    agent = await rig.agent()
    early, late = (await rig.dispatch())[0], (await rig.dispatch())[0]
    await agent.report(
        report(early["id"], started_at="1999-01-01T00:00:00Z"), report(late["id"], started_at="2999-01-01T00:00:00Z")
    )
    assert (await rig.activity(early["id"]))["started_at"] == early["created_at"]
    shown = await rig.activity(late["id"])
    assert shown["started_at"] == shown["finished_at"]


async def test_activities_are_listed_newest_first_in_pages(rig: Rig) -> None:
    await rig.agent()
    made = [(await rig.dispatch())[0]["id"] for _ in range(12)]
    first = (await rig.call("GET", "activities")).ok()
    assert [item["id"] for item in first["items"]] == made[:1:-1]
    assert (first["page"], first["total_results"], first["total_pages"]) == (1, 12, 2)
    last = (await rig.call("GET", "activities?page=3&results=5")).ok()
    assert [item["id"] for item in last["items"]] == made[1::-1]
    assert (last["page"], last["total_pages"]) == (3, 3)
    beyond = (await rig.call("GET", "activities?page=9&results=100")).ok()
    assert (beyond["items"], beyond["page"], beyond["total_results"], beyond["total_pages"]) == ([], 9, 12, 1)


async def test_an_empty_list_has_no_pages(rig: Rig) -> None:
    assert (await rig.call("GET", "activities")).ok() == {
        "items": [],
        "page": 1,
        "total_results": 0,
        "total_pages": 0,
    }


async def test_a_reconfigure_shows_its_config_id_in_the_action(rig: Rig) -> None:
    agent = await rig.agent()
    config = await rig.config()
    (item,) = await rig.dispatch(f"iggy/reconfigure:{config['id']}")
    assert item["action"] == f"reconfigure:{config['id']}"
    assert (await rig.call("GET", "activities")).ok()["items"][0]["action"] == item["action"]
    assert (await agent.poll())["items"][0]["action"] == item["action"]


async def test_the_author_is_the_keys_or_the_one_that_it_names(rig: Rig) -> None:
    await rig.agent()
    named = await command(rig.data, "keys", "create", "--author-id", "608123456789012345")
    answer = await rig.call("POST", "activities/iggy/start", ld_api_key=named["api_key"])
    assert answer.ok(202)["items"][0]["author_id"] == 608123456789012345
    own = await command(rig.data, "keys", "create")
    answer = await rig.call("POST", "activities/iggy/start", ld_api_key=own["api_key"])
    assert answer.ok(202)["items"][0]["author_id"] == own["id"]


async def test_ids_of_many_dispatches_at_once_are_unique_and_durable_before_the_answer(rig: Rig) -> None:
    agents = [await rig.agent() for _ in range(5)]
    made = await asyncio.gather(*(rig.dispatch() for _ in range(30)))
    ids = [item["id"] for items in made for item in items]
    assert len(set(ids)) == 150
    for agent in agents:
        sequences = [item["sequence"] for item in (await agent.poll())["items"]]
        assert sequences == sorted(set(sequences))
        assert len(sequences) == 30
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 150


async def test_every_permission_rule(rig: Rig) -> None:
    await rig.agent()
    calls = {
        ("POST", "activities/iggy/start"): {"deployment:manage"},
        ("POST", "enrollment-tokens"): {"deployment:manage"},
        ("GET", "activities"): {"deployment:manage", "deployment:read"},
        ("GET", "nodes"): {"deployment:manage", "deployment:read"},
        ("GET", "configs/iggy"): {"deployment:config:manage", "deployment:config:read"},
        ("POST", "configs/iggy"): {"deployment:config:manage"},
    }
    body = '{"name": "a", "values": {}}'
    for permission in ("deployment:read", "deployment:manage", "deployment:config:read", "deployment:config:manage"):
        key = (await command(rig.data, "keys", "create", "--permission", permission))["api_key"]
        for (method, path), allowed in calls.items():
            answer = await rig.call(method, path, ld_api_key=key, body=body if path == "configs/iggy" else None)
            if permission in allowed:
                assert answer.status in {200, 201, 202}, (permission, path)
            else:
                answer.problem(403, "permission_denied")
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 1


async def test_a_missing_an_unknown_a_revoked_and_an_expired_key_are_401(rig: Rig) -> None:
    (await rig.call("GET", "activities", ld_api_key="")).problem(401, "api_key_missing")
    (await rig.call("GET", "activities", ld_api_key="isk_wrong")).problem(401, "api_key_invalid")
    key = await command(rig.data, "keys", "create")
    (await rig.call("GET", "activities", ld_api_key=key["api_key"])).ok()
    await command(rig.data, "keys", "revoke", str(key["id"]))
    (await rig.call("GET", "activities", ld_api_key=key["api_key"])).problem(401, "api_key_invalid")
    rig.clock.forward(91 * 86_400)
    (await rig.call("GET", "activities")).problem(401, "api_key_expired")


async def test_a_deployment_that_the_key_does_not_see_is_404(rig: Rig) -> None:
    other = await command(rig.data, "deployments", "create")
    key = (await command(rig.data, "keys", "create", "--deployment", str(other["id"])))["api_key"]
    (await rig.call("GET", "activities", ld_api_key=key)).problem(404, "unknown_deployment")
    (await rig.call("GET", f"/deployments/{other['id']}/activities", ld_api_key=key)).ok()
    (await rig.call("GET", "/deployments/5/activities")).problem(404, "unknown_deployment")


async def test_an_activity_of_another_deployment_is_404(rig: Rig) -> None:
    await rig.agent()
    (item,) = await rig.dispatch()
    other = await command(rig.data, "deployments", "create")
    (await rig.call("GET", f"/deployments/{other['id']}/activities/{item['id']}")).problem(404, "unknown_activity")
    (await rig.call("GET", "activities/7")).problem(404, "unknown_activity")


async def test_each_answer_has_a_request_id_of_its_own(rig: Rig) -> None:
    ids = {(await rig.call("GET", path)).headers["ld-request"] for path in ("activities", "activities", "/nothing")}
    assert len(ids) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in ids)


async def test_unknown_paths_and_methods_are_problems_too(rig: Rig) -> None:
    (await rig.call("GET", "/")).problem(404, "not_found")
    (await rig.call("GET", "/deployments/1/nothing")).problem(404, "not_found")
    (await rig.call("GET", "activities/")).problem(404, "not_found")
    answer = await rig.call("DELETE", "activities")
    answer.problem(405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET"


async def test_a_fault_of_the_supervisor_is_a_500_problem_without_its_details(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("private detail")  # noqa: EM101, TRY003 - a fault, as it comes

    monkeypatch.setattr("supervisor.activities.list_activities", broken)
    answer = await rig.call("GET", "activities")
    assert "private" not in str(answer.problem(500, "internal_error"))


async def test_nothing_of_a_stopped_supervisor_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path / "other") as other:
        await other.agent()
        made = await other.dispatch()
    async with running(tmp_path / "other") as other:
        assert (await other.call("GET", "activities")).ok()["items"] == made


async def test_a_client_that_gives_up_leaves_the_dispatch_done(rig: Rig) -> None:
    await rig.agent()
    with pytest.raises(TimeoutError):
        await rig.session.post(
            f"{rig.url}{rig.base}/activities/iggy/start",
            headers={"ld-api-key": rig.key},
            timeout=aiohttp.ClientTimeout(total=0.001),
        )
    await rig.dispatch()
    assert (await rig.call("GET", "activities")).ok()["total_results"] in {1, 2}
