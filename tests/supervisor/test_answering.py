"""Every answer is ours: a problem with its id, whatever the request asks of the HTTP server itself."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from supervisor.answering import answer_every_request
from tests.supervisor.rig import Answer, Rig


async def raw(rig: Rig, *lines: str) -> str:
    """Send a request as it is written here, and return all that comes back until the connection is closed."""
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write("\r\n".join([*lines, f"Host: {host}", "Connection: close", "", ""]).encode())
    async with asyncio.timeout(20):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


def parse(text: str) -> Answer:
    head, _, body = text.partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    names = {name: value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Answer(int(first.split()[1]), names, json.loads(body), body.encode())


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /openapi/supervisor.json",
        "POST /agent/v1/enroll",
        "GET /deployments/1/activities",
        "DELETE /openapi/supervisor.json",
        "GET /nothing",
        "GET /",
        "GET /a%0Ab",
    ],
)
async def test_an_unknown_expectation_is_a_problem_on_every_path(rig: Rig, request_line: str) -> None:
    answer = parse(await raw(rig, f"{request_line} HTTP/1.1", "Expect: foo"))
    assert answer.problem(417, "expectation_failed")["field"] == "Expect"


async def test_who_waits_to_send_a_body_is_asked_for_it(rig: Rig) -> None:
    answer = await raw(rig, "POST /agent/v1/enroll HTTP/1.1", "Expect: 100-Continue", "Content-Length: 0")
    continued, _, rest = answer.partition("\r\n\r\n")
    assert continued == "HTTP/1.1 100 Continue"
    parse(rest).problem(400, "invalid_json")


async def test_an_old_client_expects_nothing(rig: Rig) -> None:
    answer = parse(await raw(rig, "GET /nothing HTTP/1.0", "Expect: foo"))
    answer.problem(404, "not_found")


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_a_method_that_a_path_does_not_know_is_a_405_that_says_which_it_knows(rig: Rig, method: str) -> None:
    answer = await rig.call(method, "configs/iggy")
    answer.problem(405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, POST"


async def test_a_target_that_is_no_path_is_a_404(rig: Rig) -> None:
    parse(await raw(rig, "OPTIONS * HTTP/1.1")).problem(404, "not_found")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (web.HTTPUnsupportedMediaType, 400, "bad_request"),
        (web.HTTPExpectationFailed, 417, "expectation_failed"),
        (web.HTTPServiceUnavailable, 500, "internal_error"),
        (web.HTTPNotModified, 500, "internal_error"),
        (TimeoutError, 500, "internal_error"),
    ],
)
async def test_what_the_http_server_raises_is_a_problem_too(
    error: type[Exception], status: int, code: str, logs: list[MutableMapping[str, Any]]
) -> None:
    async def fails(_: web.Request) -> web.StreamResponse:
        raise error

    response = await answer_every_request(make_mocked_request("GET", "/x"), fails)
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    answer = Answer(
        response.status,
        {**response.headers, "Content-Type": response.content_type},
        json.loads(response.body),
        response.body,
    )
    answer.problem(status, code)
    assert [entry["event"] for entry in logs] == (["request.failed"] if status == 500 else [])
