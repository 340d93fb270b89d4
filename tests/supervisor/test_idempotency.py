"""The `idempotency-key` header: done once, answered again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.rig import Rig, command, running


async def test_the_same_request_is_done_once_and_answered_again(rig: Rig) -> None:
    await rig.agent()
    first = await rig.call("POST", "activities/iggy/restart", body="{}", idempotency_key="k")
    again = await rig.call("POST", "activities/iggy/restart", body="{}", idempotency_key="k")
    assert again.ok(202) == first.ok(202)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 1


async def test_another_body_or_path_with_the_same_key_is_a_409(rig: Rig) -> None:
    agent = await rig.agent()
    (await rig.call("POST", "activities/iggy/restart", body="{}", idempotency_key="k")).ok(202)
    for path, body in (("iggy/restart", {"nodes": [agent.node_id]}), ("iggy/stop", {})):
        answer = await rig.call("POST", f"activities/{path}", json_body=body or None, idempotency_key="k")
        answer.problem(409, "idempotency_error")
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 1


async def test_two_keys_and_two_callers_do_not_meet(rig: Rig) -> None:
    await rig.agent()
    other = (await command(rig.data, "keys", "create"))["api_key"]
    for key, idempotency_key in ((rig.key, "a"), (rig.key, "b"), (other, "a")):
        answer = await rig.call("POST", "activities/iggy/restart", ld_api_key=key, idempotency_key=idempotency_key)
        assert "idempotent-replayed" not in answer.headers
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 3


async def test_after_ten_minutes_it_is_a_new_request(rig: Rig) -> None:
    await rig.agent()
    (first,) = (await rig.call("POST", "activities/iggy/stop", idempotency_key="k")).ok(202)["items"]
    rig.clock.forward(599)
    (kept,) = (await rig.call("POST", "activities/iggy/stop", idempotency_key="k")).ok(202)["items"]
    rig.clock.forward(2)
    (new,) = (await rig.call("POST", "activities/iggy/stop", idempotency_key="k")).ok(202)["items"]
    assert kept == first
    assert new["id"] > first["id"]


async def test_the_same_request_at_the_same_time_is_a_409_until_the_first_is_done(rig: Rig) -> None:
    await rig.agent()
    answers = await asyncio.gather(
        *(rig.call("POST", "activities/iggy/restart", idempotency_key="k") for _ in range(20))
    )
    for answer in answers:
        if answer.status != 202:
            answer.problem(409, "idempotent_request_in_progress")
    assert sum(answer.status == 202 and "idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 1


async def test_a_request_in_flight_holds_its_key(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.agent()
    reached, gate = asyncio.Event(), asyncio.Event()
    write = rig.supervisor._store.write

    async def slow(*arguments: Any) -> Any:
        reached.set()
        await gate.wait()
        return await write(*arguments)

    monkeypatch.setattr(rig.supervisor._store, "write", slow)
    first = asyncio.create_task(rig.call("POST", "activities/iggy/restart", idempotency_key="k"))
    await reached.wait()
    again = await rig.call("POST", "activities/iggy/restart", idempotency_key="k")
    again.problem(409, "idempotent_request_in_progress")
    (await rig.call("POST", "activities/iggy/stop", idempotency_key="k")).problem(409, "idempotency_error")
    gate.set()
    (await first).ok(202)


async def test_a_refused_request_is_judged_again(rig: Rig) -> None:
    answer = await rig.call("POST", "activities/iggy/restart", idempotency_key="k")
    answer.problem(409, "no_nodes")
    await rig.agent()
    (await rig.call("POST", "activities/iggy/restart", idempotency_key="k")).ok(202)


@pytest.mark.parametrize("key", ["x" * 256])
async def test_a_key_that_is_too_long_is_a_400(rig: Rig, key: str) -> None:
    (await rig.call("POST", "activities/iggy/restart", idempotency_key=key)).problem(400, "invalid_parameter")


async def test_a_replay_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        await rig.agent()
        first = (await rig.call("POST", "activities/iggy/restart", idempotency_key="k")).ok(202)
        key = rig.key
    async with running(tmp_path) as rig:
        again = await rig.call("POST", "activities/iggy/restart", idempotency_key="k", ld_api_key=key)
        assert again.ok(202) == first
        assert again.headers["idempotent-replayed"] == "true"


async def test_an_enrolment_token_is_shown_again_though_it_is_stored_nowhere(rig: Rig) -> None:
    first = (await rig.call("POST", "enrollment-tokens", idempotency_key="k")).ok(201)
    again = await rig.call("POST", "enrollment-tokens", idempotency_key="k")
    assert again.ok(201) == first
    assert again.headers["idempotent-replayed"] == "true"
    stored = b"".join(path.read_bytes() for path in await asyncio.to_thread(lambda: list(rig.data.iterdir())))
    assert first["enrollment_token"].encode() not in stored
    await rig.agent(token=first["enrollment_token"])


async def test_a_config_is_saved_once_and_says_its_id_again(rig: Rig) -> None:
    body = {"name": "a", "values": {}}
    first = await rig.call("POST", "configs/iggy", json_body=body, idempotency_key="k")
    again = await rig.call("POST", "configs/iggy", json_body=body, idempotency_key="k")
    assert again.ok(201) == first.ok(201)
    assert again.headers["ld-config"] == first.headers["ld-config"] == str(first.body["id"])
    assert (await rig.call("GET", "configs/iggy/a/versions")).ok()["total_results"] == 1
