"""Every wrong input gets a problem with its code, and nothing is created."""

import asyncio
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from agent.protocol import MAX_BODY_BYTES
from tests.supervisor.rig import Rig, command

BODIES = {
    "malformed": (b'{"nodes": [1', "invalid_json", None),
    "not utf-8": (b'{"nodes": ["\xff"]}', "invalid_json", None),
    "nan": (b'{"nodes": [NaN]}', "invalid_json", None),
    "infinite": (b'{"nodes": [1e999]}', "invalid_json", None),
    "a name twice": (b'{"nodes": [1], "nodes": [2]}', "invalid_json", None),
    "half a character": (rb'{"x": "\ud800"}', "invalid_json", None),
    "deep": (b"[" * 100_000, "invalid_json", None),
    "a number too long to read": (b'{"nodes": [' + b"9" * 5000 + b"]}", "invalid_json", None),
    "null": (b"null", "invalid_body", ""),
    "a list": (b"[1]", "invalid_body", ""),
    "a text": (b'"nodes"', "invalid_body", ""),
    "no node": (b'{"nodes": []}', "invalid_body", "nodes"),
    "nodes null": (b'{"nodes": null}', "invalid_body", "nodes"),
    "nodes a number": (b'{"nodes": 5}', "invalid_body", "nodes"),
    "misspelt": (b'{"node": [5]}', "invalid_body", "node"),
    "a boolean": (b'{"nodes": [true]}', "invalid_body", "nodes[0]"),
    "a text as id": (b'{"nodes": [5, "6"]}', "invalid_body", "nodes[0]"),
    "a fraction": (b'{"nodes": [5.5]}', "invalid_body", "nodes[0]"),
    "a whole number, said as a fraction": (b'{"nodes": [5.0]}', "unknown_node", "nodes[0]"),
    "zero": (b'{"nodes": [0]}', "invalid_body", "nodes[0]"),
    "negative": (b'{"nodes": [-5]}', "invalid_body", "nodes[0]"),
    "beyond 63 bits": (b'{"nodes": [9223372036854775808]}', "invalid_body", "nodes[0]"),
    "beyond 64 bits": (b'{"nodes": [99999999999999999999999]}', "invalid_body", "nodes[0]"),
    "unknown": (b'{"nodes": [5]}', "unknown_node", "nodes[0]"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_wrong_dispatch_body_is_a_400_and_creates_nothing(rig: Rig, name: str) -> None:
    agent = await rig.agent()
    body, code, path = BODIES[name]
    body = body.replace(b"[5, ", b"[%d, " % agent.node_id)
    problem = (await rig.call("POST", "activities/iggy/restart", body=body)).problem(400, code)
    if path is not None:
        expected = path.replace("[0]", "[1]") if name == "a text as id" else path
        assert [issue["path"] for issue in problem["field_issues"]] == [expected]
        assert all(issue["code"] and issue["reason"] for issue in problem["field_issues"])
        assert problem.get("field") == expected
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 0
    assert (await agent.poll())["items"] == []


async def test_one_unknown_node_among_known_ones_stops_the_whole_dispatch(rig: Rig) -> None:
    agent = await rig.agent()
    body = {"nodes": [agent.node_id, 7, agent.node_id, 8]}
    problem = (await rig.call("POST", "activities/iggy/restart", json_body=body)).problem(400, "unknown_node")
    assert [issue["path"] for issue in problem["field_issues"]] == ["nodes[1]", "nodes[3]"]
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 0


async def test_a_node_of_another_deployment_is_unknown(rig: Rig) -> None:
    agent = await rig.agent()
    rig.deployment = await command(rig.data, "deployments", "create")
    await rig.agent()
    answer = await rig.call("POST", "activities/iggy/restart", json_body={"nodes": [agent.node_id]})
    answer.problem(400, "unknown_node")


async def test_thousands_of_unknown_nodes_are_a_bounded_answer(rig: Rig) -> None:
    await rig.agent()
    answer = await rig.call("POST", "activities/iggy/restart", json_body={"nodes": list(range(1, 5000))})
    assert len(answer.problem(400, "unknown_node")["field_issues"]) == 20


@pytest.mark.parametrize("runtime", ["plane", "IGGY", "iggy%20", "connector:sink:postgres"])
async def test_an_unknown_runtime_is_a_400(rig: Rig, runtime: str) -> None:
    await rig.agent()
    (await rig.call("POST", f"activities/{runtime}/restart")).problem(400, "unknown_runtime")


@pytest.mark.parametrize(
    "action",
    [
        "reboot",
        "Restart",
        "reconfigure",
        "reconfigure:",
        "reconfigure:0",
        "reconfigure:-1",
        "reconfigure:abc",
        "reconfigure:1.0",
        "reconfigure:99999999999999999999",
        "reconfigure:9223372036854775808",
        "restart:1",
        "restart%0a",
    ],
)
async def test_an_unknown_action_is_a_400(rig: Rig, action: str) -> None:
    await rig.agent()
    (await rig.call("POST", f"activities/iggy/{action}")).problem(400, "unknown_action")


async def test_a_config_that_is_unknown_or_of_another_runtime_or_deployment_is_a_404(rig: Rig) -> None:
    agent = await rig.agent()
    config = await rig.config("connectors", values={"IGGY_CONNECTORS_X": "1"})
    for path in ("iggy/reconfigure:42", f"iggy/reconfigure:{config['id']}"):
        (await rig.call("POST", f"activities/{path}")).problem(404, "unknown_config")
    rig.deployment = await command(rig.data, "deployments", "create")
    await rig.agent()
    (await rig.call("POST", f"activities/connectors/reconfigure:{config['id']}")).problem(404, "unknown_config")
    assert (await agent.poll())["items"] == []


async def test_a_deployment_without_nodes_is_a_409_rather_than_an_empty_success(rig: Rig) -> None:
    (await rig.call("POST", "activities/iggy/restart")).problem(409, "no_nodes")


@pytest.mark.parametrize("text", ["0", "-1", "abc", "1.0", "9223372036854775808", "99999999999999999999", "%C2%B2"])
async def test_a_deployment_id_that_is_none_is_a_400(rig: Rig, text: str) -> None:
    problem = (await rig.call("GET", f"/deployments/{text}/activities")).problem(400, "invalid_parameter")
    assert problem["field"] == "deployment_id"


@pytest.mark.parametrize("query", ["page=0", "page=-1", "page=x", "page=", "results=0", "results=101", "results=1e1"])
async def test_a_wrong_page_is_a_400(rig: Rig, query: str) -> None:
    problem = (await rig.call("GET", f"activities?{query}")).problem(400, "invalid_parameter")
    assert problem["field"] == query.partition("=")[0]


async def test_a_huge_body_is_a_413_with_and_without_its_length(rig: Rig) -> None:
    await rig.agent()
    huge = b'{"nodes": [' + b"1," * MAX_BODY_BYTES + b"1]}"
    (await rig.call("POST", "activities/iggy/restart", body=huge)).problem(413, "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(huge), 65536):
            yield huge[start : start + 65536]

    (await rig.call("POST", "activities/iggy/restart", body=chunks())).problem(413, "body_too_large")
    assert (await rig.call("GET", "activities")).ok()["total_results"] == 0


async def test_a_body_that_unpacks_to_too_much_is_a_413(rig: Rig) -> None:
    packed = zlib.compress(b" " * (2 * MAX_BODY_BYTES))
    answer = await rig.call("POST", "activities/iggy/restart", body=packed, content_encoding="deflate")
    answer.problem(413, "body_too_large")


async def test_a_body_whose_encoding_is_broken_is_a_400(rig: Rig) -> None:
    answer = await rig.call("POST", "activities/iggy/restart", body=b"not deflate", content_encoding="deflate")
    assert answer.status == 400


async def test_a_body_that_does_not_arrive_is_a_408(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.requests.BODY_SECONDS", 0.05)
    blocked = asyncio.Event()

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await blocked.wait()

    answer = await rig.call("POST", "activities/iggy/restart", body=never())
    assert answer.problem(408, "request_timeout")["retryable"] is True
    assert answer.headers["Retry-After"] == "1"


async def test_a_wrong_key_is_told_so_before_its_body_is_judged(rig: Rig) -> None:
    (await rig.call("POST", "activities/nope/nope", body=b"{", ld_api_key="x")).problem(401, "api_key_invalid")


CONFIGS = {
    "no name": ({"values": {}}, "name"),
    "no values": ({"name": "a"}, "values"),
    "name with a slash": ({"name": "a/b", "values": {}}, "name"),
    "empty name": ({"name": "", "values": {}}, "name"),
    "a number as value": ({"name": "a", "values": {"K": 1}}, "values.K"),
    "values a list": ({"name": "a", "values": []}, "values"),
    "secret_keys a text": ({"name": "a", "values": {}, "secret_keys": "K"}, "secret_keys"),
    "a file without content": ({"name": "a", "values": {}, "files": [{"path": "a"}]}, "files[0].content"),
    "activate a text": ({"name": "a", "values": {}, "activate": "yes"}, "activate"),
    "a field too many": ({"name": "a", "values": {}, "version": 3}, "version"),
    "the mask inside of a value": ({"name": "a", "values": {"IGGY_X_URL": "http://********@h/"}}, "values.IGGY_X_URL"),
    "the mask as a secret": ({"name": "a", "values": {"IGGY_ROOT_PASSWORD": "********"}}, "values.IGGY_ROOT_PASSWORD"),
}


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_wrong_config_is_a_400_and_saves_nothing(rig: Rig, name: str) -> None:
    body, path = CONFIGS[name]
    problem = (await rig.call("POST", "configs/iggy", json_body=body)).problem(400, "invalid_body")
    assert problem["field"] == path
    assert (await rig.call("GET", "configs/iggy")).ok()["total_results"] == 0


async def test_no_answer_repeats_a_value_that_was_sent(rig: Rig) -> None:
    body = {"name": "a", "values": {"K": 1, "IGGY_ROOT_PASSWORD": ["hunter2hunter2"]}}
    answer = await rig.call("POST", "configs/iggy", json_body=body)
    answer.problem(400, "invalid_body")
    assert b"hunter2" not in answer.raw


async def test_an_unknown_kind_of_config_is_a_404(rig: Rig) -> None:
    (await rig.call("GET", "configs/warden")).problem(404, "unknown_kind")
    (await rig.call("POST", "configs/warden", body=json.dumps({"name": "a", "values": {}}))).problem(
        404, "unknown_kind"
    )


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_is_gone_in_the_middle_of_a_body_is_no_fault_of_the_supervisor(
    rig: Rig, *, reset: bool
) -> None:
    agent = await rig.agent()
    head = f"POST /agent/v1/heartbeats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {agent.token}\r\n"
    rest = "Agent-Instance: a\r\nJournal-Revision: 0\r\nContent-Length: 500\r\nExpect: 100-continue\r\n\r\n"
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rpartition(":")[2]))
        writer.write((head + rest).encode())
        assert b"100" in await reader.readline()  # now the body is waited for
        writer.write(b"{")
        await agent.rig.dispatch()
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await agent.rig.dispatch()
    assert [line for line in logs if line["event"] == "request.failed"] == []
