"""What holds for every call: headers, sizes, time-outs, and each failure with its own sentence."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import NoReturn

import pytest
from aiohttp import web

from agent.conditions import Conditions
from agent.errors import SettingsError, SupervisorError
from agent.journal import Journal
from agent.link.failures import Failure
from agent.link.health import Channel
from agent.protocol import MAX_BODY_BYTES
from tests.fakes.supervisor import TOKEN, FakeSupervisor, Handler, hang, huge, plain, redirect, status
from tests.link.conftest import Node, a_node


async def listed(node: Node) -> SupervisorError:
    with pytest.raises(SupervisorError) as caught:
        await node.client.activities(after=0, wait=0, limit=10)
    assert TOKEN not in str(caught.value)
    return caught.value


async def test_every_call_says_who_calls_and_with_which_journal(node: Node, supervisor: FakeSupervisor) -> None:
    await node.client.activities(after=3, wait=0.5, limit=7)
    await node.client.report([b'{"activity_id": 1}'])
    await node.client.rotate_token()
    for call in supervisor.requests:
        assert call.headers["Authorization"] == f"Bearer {TOKEN}"
        assert call.headers["Agent-Instance"] == "instance-1"
        assert call.headers["Journal-Revision"] == "0"
        assert call.headers["User-Agent"].startswith("iggy-agent/")
    assert supervisor.requests[0].query == {"after": "3", "wait": "0.5", "limit": "7"}
    assert supervisor.requests[1].headers["Content-Type"] == "application/json"


async def test_no_proxy_of_the_environment_is_used(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with a_node(supervisor, journal, conditions) as node:
        await node.client.activities(after=0, wait=0, limit=1)


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_past_the_bound_is_given_up(node: Node, supervisor: FakeSupervisor, chunked: bool) -> None:
    supervisor.script("activities", huge(64 * 1024 * 1024, chunked=chunked))
    error = await listed(node)
    assert error.code == Failure.TOO_LARGE
    await node.client.activities(after=0, wait=0, limit=1)


async def test_a_body_at_the_bound_is_taken_and_one_byte_more_is_not(node: Node, supervisor: FakeSupervisor) -> None:
    content = b'{"items": []}'
    padded = content + b" " * (MAX_BODY_BYTES - len(content))
    supervisor.script(
        "activities", plain(200, padded, "application/json"), plain(200, padded + b" ", "application/json")
    )
    assert (await node.client.activities(after=0, wait=0, limit=1)).items == []
    assert (await listed(node)).code == Failure.TOO_LARGE


async def test_a_huge_error_body_still_tells_its_status(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.script("activities", plain(503, b"x" * 2 * MAX_BODY_BYTES, headers={"Retry-After": "3"}))
    error = await listed(node)
    assert (error.status, error.retry_after) == (503, 3)


async def test_a_date_to_retry_after_is_reckoned_by_the_supervisors_clock(
    node: Node, supervisor: FakeSupervisor
) -> None:
    theirs = datetime.now(UTC) + timedelta(hours=-5)
    node.clock.learn(theirs, round_trip=0)
    until = format_datetime(theirs + timedelta(seconds=100), usegmt=True)

    async def undated(request: web.Request, _handler: Handler) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\nRetry-After: %s\r\n\r\n" % until.encode())
        request.transport.close()
        return web.Response()

    dated = format_datetime(theirs + timedelta(seconds=40), usegmt=True)
    supervisor.script("activities", undated, plain(503, b"", headers={"Retry-After": until, "Date": dated}))
    retry_after = (await listed(node)).retry_after
    assert retry_after is not None
    assert 85 <= retry_after <= 100
    assert (await listed(node)).retry_after == 60


async def test_a_redirect_is_not_followed(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.script("activities", redirect(f"{supervisor.url}/agent/v1/heartbeats"))
    error = await listed(node)
    assert (error.status, error.code) == (307, Failure.REDIRECT)
    assert supervisor.count("heartbeats") == 0
    assert "redirect" in node.conditions.all()[0].message


async def test_a_wrong_path_says_that_the_url_may_be_wrong(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions
) -> None:
    async with a_node(supervisor, journal, conditions, url=f"{supervisor.url}/elsewhere") as node:
        error = await listed(node)
    assert error.status == 404
    assert "supervisor.url may be wrong" in str(conditions.all()[0].hint)


async def test_a_hanging_answer_fails_in_bounded_time(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.script("activities", hang())
    begun = time.monotonic()
    error = await listed(node)
    assert error.code == Failure.TIMEOUT
    assert 0.4 < time.monotonic() - begun < 5


async def test_a_closed_port_says_that_nothing_listens(node: Node, supervisor: FakeSupervisor) -> None:
    await supervisor.stop()
    error = await listed(node)
    assert error.code == Failure.REFUSED
    assert "no connection" in error.message
    assert str(supervisor.port) in error.message


async def test_a_name_without_an_address_says_so(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions
) -> None:
    async with a_node(supervisor, journal, conditions, url="https://supervisor.invalid") as node:
        error = await listed(node)
    assert error.code == Failure.DNS
    assert "supervisor.invalid has no address" in error.message


async def test_a_name_that_cannot_be_looked_up_for_want_of_a_thread_says_so_and_is_looked_up_again(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> NoReturn:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    url = supervisor.url.replace("127.0.0.1", "localhost")
    async with a_node(supervisor, journal, conditions, url=url) as node:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        with monkeypatch.context() as patch:
            patch.setattr(threading, "_start_new_thread", refuse)
            error = await listed(node)
        assert error.code == Failure.DNS
        assert "the name localhost could not be looked up (Resource temporarily unavailable)" in error.message
        assert "TasksMax" in (error.hint or "")
        await node.client.activities(after=0, wait=0, limit=1)
    assert conditions.all() == []


async def test_a_condition_stays_until_each_failing_kind_of_call_has_succeeded(
    node: Node, supervisor: FakeSupervisor
) -> None:
    supervisor.script("activities", status(500))
    supervisor.script("token", status(401))
    await listed(node)
    with pytest.raises(SupervisorError):
        await node.client.rotate_token()
    await node.client.report([b'{"activity_id": 1}'])
    assert {condition.code for condition in node.conditions.all()} == {"supervisor_unreachable", "unauthorized"}
    await node.client.activities(after=0, wait=0, limit=1)
    assert {condition.code for condition in node.conditions.all()} == {"unauthorized"}
    await node.client.rotate_token()
    assert node.conditions.all() == []
    figures = node.client.status(Channel.ACTIVITIES)
    assert (figures.calls, figures.failures) == (2, 1)
    assert figures.last_success_at is not None
    assert figures.last_error_at is not None
    assert "500" in str(figures.last_error)


async def test_plain_http_to_another_machine_is_refused_before_any_call(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions
) -> None:
    with pytest.raises(SettingsError, match="plain HTTP"):
        async with a_node(supervisor, journal, conditions, url="http://192.0.2.1"):
            pass


async def test_a_bad_ca_file_is_told_when_the_client_opens(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="ca_file"):
        async with a_node(supervisor, journal, conditions, ca_file=tmp_path / "no.pem"):
            pass
