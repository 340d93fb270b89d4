"""The real process: its first line, TLS, one server per folder, SIGTERM."""

import asyncio
import signal
import ssl
import time
from pathlib import Path

import pytest
import trustme

from supervisor.cli import main
from supervisor.fleet import MAX_POLLS
from supervisor.serve import Address
from tests.supervisor.process import run, serving, serving_rig
from tests.supervisor.rig import Agent, Json

STOP_SECONDS = 2.0


async def held_polls(agent: Agent) -> list[asyncio.Task[Json]]:
    """Return polls that the server holds for certain: it has let go of one, which it does for the one too many."""
    polls = [asyncio.create_task(agent.poll(wait=50)) for _ in range(MAX_POLLS + 1)]
    done, held = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    return list(held)


async def seconds_to_stop(data: Path, agents: int) -> float:
    """Stop a server that holds as many polls as it may for each of some agents; each has to be answered."""
    async with serving_rig(data) as (server, rig):
        polls = [poll for _ in range(agents) for poll in await held_polls(await rig.agent())]
        begun = time.monotonic()
        assert await server.end(signal.SIGTERM) == 0
        seconds = time.monotonic() - begun
        assert [answer["items"] for answer in await asyncio.gather(*polls)] == [[]] * agents * MAX_POLLS
        return seconds


@pytest.mark.parametrize("agents", [0, 1, 20])
async def test_sigterm_answers_held_polls_and_exits_0_within_2_seconds(tmp_path: Path, agents: int) -> None:
    took = []
    for attempt in range(3):  # a machine that is busy is slow once, a server that waits is slow each time
        took.append(await seconds_to_stop(tmp_path / str(attempt), agents))
        if took[-1] < STOP_SECONDS:
            return
    pytest.fail(f"it took {took} s to stop")


async def test_a_body_that_is_still_on_its_way_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /agent/v1/enroll HTTP/1.1", f"Host: {host}", "Content-Length: 9", "Expect: 100-continue", "", ""
        writer.write("\r\n".join(head).encode())
        assert b" 100 " in await reader.readline()  # so it reads the body, which never comes
        begun = time.monotonic()
        assert await server.end(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 20  # the body may take 30 s
        writer.close()


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
