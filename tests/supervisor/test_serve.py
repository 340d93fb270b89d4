"""The real process: its first line, TLS, one server per folder, SIGTERM."""

import asyncio
import signal
import ssl
import time
from pathlib import Path
from typing import cast

import pytest
import trustme

from supervisor.cli import main
from supervisor.serve import Address
from tests.supervisor.process import run, serving, serving_rig
from tests.supervisor.rig import Json


async def test_sigterm_answers_held_polls_and_exits_0_soon(tmp_path: Path) -> None:
    async with serving_rig(tmp_path) as (server, rig):
        agents = [await rig.agent() for _ in range(3)]
        for agent in agents:
            await agent.poll()
        polls = [asyncio.create_task(agent.poll(wait=50)) for agent in agents]
        await rig.call("GET", "nodes")  # after it, the polls are held or on their way
        begun = time.monotonic()
        assert await server.end(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 4  # 2 s on a machine that is not busy
        for result in await asyncio.gather(*polls, return_exceptions=True):
            # One whose request had not arrived when the server stopped listening has found it closed.
            assert isinstance(result, OSError) or cast("Json", result)["items"] == []


async def test_a_second_server_on_the_same_folder_refuses_and_says_who_has_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as first:
        code, out, err = await run("serve", "--data", str(tmp_path), "--listen", "127.0.0.1:0")
        assert (code, out) == (1, "")
        assert "another iggy-supervisor serves it already" in err
        assert str(first.process.pid) in err
        assert "hint:" in err
        assert await first.end(signal.SIGINT) == 0
    async with serving(tmp_path):
        pass  # the lock ended with its process


async def test_it_listens_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    key, chain, ca = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "ca.pem"

    def write() -> None:
        certificate.private_key_pem.write_to_path(key)
        certificate.cert_chain_pems[0].write_to_path(chain)
        authority.cert_pem.write_to_path(ca)

    await asyncio.to_thread(write)
    arguments = ("--tls-cert", str(chain), "--tls-key", str(key))
    async with serving_rig(tmp_path / "data", *arguments) as (server, rig):
        assert server.url.startswith("https://127.0.0.1:")
        context = await asyncio.to_thread(ssl.create_default_context, cafile=str(ca))
        async with rig.session.get(f"{server.url}/openapi/supervisor.json", ssl=context) as response:
            assert response.status == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.com:443", "10.0.0.1:80"])
def test_anything_but_loopback_needs_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str], listen: str) -> None:
    code, err = main(["serve", "--data", str(tmp_path), "--listen", listen]), capsys.readouterr().err
    assert code == 78
    assert "without TLS" in err
    assert "--tls-cert" in err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--tls-cert", "cert.pem"], 2, "need each other"),
        (["--tls-cert", "/nonexistent/c.pem", "--tls-key", "/nonexistent/k.pem"], 78, "there is no file"),
        (["--listen", "8700"], 2, "expected HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], 2, "expected HOST:PORT"),
    ],
)
def test_wrong_options_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert main(["serve", "--data", str(tmp_path), *arguments]) == code
    assert text in capsys.readouterr().err


def test_a_key_that_does_not_belong_to_its_certificate_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    assert main(["serve", "--data", str(tmp_path), "--tls-cert", str(garbage), "--tls-key", str(garbage)]) == 78
    assert "do not load" in capsys.readouterr().err


async def test_a_port_that_is_taken_is_explained(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    code, _, err = await run("serve", "--data", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    taken.close()
    await taken.wait_closed()
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in err
    assert "address already in use" in err


async def test_the_settings_reach_the_agents(tmp_path: Path) -> None:
    arguments = ("--activity-ttl", "120", "--heartbeat-interval", "3", "--poll-wait", "99")
    async with serving_rig(tmp_path, *arguments) as (_, rig):
        agent = await rig.agent()
        answer = await agent.beat()
        assert (answer["heartbeat_interval"], answer["poll_wait"]) == (3.0, 55.0)
        await rig.dispatch()
        (item,) = (await agent.poll())["items"]
        assert item["created_at"][:16] < item["expires_at"][:16]


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False)],
)
def test_loopback_is_recognised(text: str, loopback: bool) -> None:
    assert Address.parse(text).loopback is loopback


def test_a_url_has_brackets_around_ipv6() -> None:
    assert Address.parse("[::1]:0").url(8700, tls=True) == "https://[::1]:8700"
