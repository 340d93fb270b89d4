import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from agent.runtimes.probe import ConnectorsRule, Probe, ProbePlan, ProbeResult
from tests.runtimes.servers import answering, free_port, hanging, json_answering, serving

RUNNING = {"key": "random", "connector_type": "source", "status": "running", "enabled": True}
BROKEN = {"key": "stdout", "connector_type": "sink", "status": "error", "enabled": True}
DISABLED = {"key": "old", "connector_type": "sink", "status": "stopped", "enabled": False}
HEALTHY = '{"status":"healthy"}'


async def check(**settings: Any) -> ProbeResult:
    probe = Probe(ProbePlan(**settings))
    try:
        return await probe.check()
    finally:
        await probe.close()


async def test_the_expected_body_is_ready_whatever_white_space_is_around_it() -> None:
    async with serving(ping="pong\n") as url:
        assert await check(http=f"{url}/ping", expect="pong") == ProbeResult(ready=True)
        assert await check(http=f"{url}/ping") == ProbeResult(ready=True)


async def test_another_body_is_not_ready() -> None:
    async with serving(ping="Iggy API") as url:
        result = await check(http=f"{url}/ping", expect="pong")
    assert (result.ready, result.why) == (False, "body is 'Iggy API', expected 'pong'")


async def test_another_status_is_not_ready() -> None:
    async with serving(ping=answering("", status=503)) as url:
        assert (await check(http=f"{url}/ping")).why == "answered 503, expected 200"
        assert (await check(http=f"{url}/ping", status=503)).ready


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with serving(ping=answering("", status=302, Location="/other"), other="pong") as url:
        assert (await check(http=f"{url}/ping", expect="pong")).why == "answered 302, expected 200"


async def test_nobody_listening_is_connection_refused() -> None:
    port = free_port()
    refused = f"connection refused at 127.0.0.1:{port}"
    assert (await check(http=f"http://127.0.0.1:{port}/ping")).why == refused
    assert (await check(tcp=f"127.0.0.1:{port}")).why == refused


async def test_another_failure_to_connect_says_its_cause() -> None:
    for plan in ({"http": "http://255.255.255.255:80/ping"}, {"tcp": "255.255.255.255:80"}):
        why = (await check(**plan)).why
        assert why is not None
        assert why.startswith("cannot connect to 255.255.255.255:80: ")


async def test_no_answer_in_time_is_said() -> None:
    async with serving(ping=hanging) as url:
        assert (await check(http=f"{url}/ping", attempt_timeout=0.2)).why == "no answer in 0.2 s"


async def test_a_body_without_end_is_cut() -> None:
    async with serving(ping="x" * 70_000) as url:
        assert (await check(http=f"{url}/ping", expect="pong")).why == "body has over 65536 bytes"


async def test_what_is_not_http_is_no_usable_answer() -> None:
    async with tcp_server(b"SSH-2.0-nonsense\r\n") as port:
        why = (await check(http=f"http://127.0.0.1:{port}/ping")).why
    assert why is not None
    assert why.startswith("no usable answer: ")
    assert (await check(http="http://[bad/ping", connectors=ConnectorsRule.IGNORE)).ready is False


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_a_name_that_cannot_be_looked_up_for_want_of_a_thread_is_not_ready_until_it_can(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    def refuse(*_args: object) -> NoReturn:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with serving(ping="pong") as url:
        port = urlsplit(url).port
        plan = {"tcp": f"localhost:{port}"} if scheme == "tcp" else {"http": f"http://localhost:{port}/ping"}
        with monkeypatch.context() as patch:
            patch.setattr(threading, "_start_new_thread", refuse)
            result = await check(**plan)
        assert result.why == f"cannot connect to localhost:{port}: no thread can be made to look the name up"
        assert (await check(**plan)).ready


async def test_an_open_tcp_port_is_ready() -> None:
    async with tcp_server(b"") as port:
        assert (await check(tcp=f"127.0.0.1:{port}")).ready
        assert (await check(tcp=f"localhost:{port}")).ready


async def test_without_any_probe_it_is_ready() -> None:
    assert await check() == ProbeResult(ready=True)


async def test_each_attempt_has_a_connection_of_its_own() -> None:
    peers: list[Any] = []

    async def ping(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(text="pong")

    async with serving(ping=ping) as url:
        probe = Probe(ProbePlan(http=f"{url}/ping"))
        assert (await probe.check()).ready
        assert (await probe.check()).ready
        await probe.close()
    assert len(set(peers)) == 2


@pytest.mark.parametrize(
    ("rule", "ready", "why"),
    [
        (ConnectorsRule.WARN, True, None),
        (ConnectorsRule.REQUIRE, False, "sink stdout is error"),
    ],
)
async def test_a_connector_in_error_is_said_or_decides(rule: ConnectorsRule, ready: bool, why: str | None) -> None:
    stats = json_answering({"connectors": [RUNNING, BROKEN, DISABLED]}, api_key="key")
    async with serving(health=HEALTHY, stats=stats) as url:
        result = await check(http=f"{url}/health", connectors=rule, api_key="key")
    assert (result.ready, result.why) == (ready, why)
    assert result.as_evidence() == {
        "ready": ready,
        **({"why": why} if why else {}),
        "connectors_not_running": [{"key": "stdout", "type": "sink", "status": "error"}],
    }


async def test_all_connectors_running_is_ready() -> None:
    async with serving(health=HEALTHY, stats=json_answering({"connectors": [RUNNING, DISABLED]})) as url:
        assert await check(http=f"{url}/health", connectors=ConnectorsRule.REQUIRE) == ProbeResult(ready=True)


async def test_connectors_are_not_asked_about_when_they_are_to_be_ignored() -> None:
    async with serving(health=HEALTHY, stats=hanging) as url:
        assert await check(http=f"{url}/health", connectors=ConnectorsRule.IGNORE) == ProbeResult(ready=True)


async def test_iggy_is_not_asked_for_connectors() -> None:
    async with serving(ping="pong", stats=hanging) as url:
        assert await check(http=f"{url}/ping") == ProbeResult(ready=True)


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        (json_answering({}, api_key="key"), "answered 401, expected 200"),
        (json_answering({"connectors": [{"key": "x"}]}), "it does not list its connectors"),
        (json_answering([]), "it does not list its connectors"),
        (answering("<html>"), "it does not list its connectors"),
        (hanging, "no answer in 0.3 s"),
    ],
)
async def test_stats_that_cannot_be_read_are_a_note_or_decide(stats: Any, text: str) -> None:
    async with serving(health=HEALTHY, stats=stats) as url:
        warned = await check(http=f"{url}/health", attempt_timeout=0.3)
        required = await check(http=f"{url}/health", attempt_timeout=0.3, connectors=ConnectorsRule.REQUIRE)
    sentence = f"cannot read {url}/stats: {text}"
    assert warned == ProbeResult(ready=True, detail={"connectors_note": sentence})
    assert (required.ready, required.why) == (False, sentence)


async def test_a_secret_is_not_in_the_plans_text() -> None:
    assert "hunter2" not in repr(ProbePlan(api_key="hunter2"))


def tcp_server(greeting: bytes) -> Any:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def serve() -> AsyncIterator[int]:
        async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            writer.close()

        server = await asyncio.start_server(greet, "localhost", 0, family=2)
        async with server:
            yield server.sockets[0].getsockname()[1]

    return serve()
