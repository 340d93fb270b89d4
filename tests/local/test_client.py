import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import AgentError, SocketDeniedError, UnavailableError
from agent.local import client
from agent.local.client import ask
from tests.local.conftest import ACTIVITY, Agent


@contextlib.contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """A program that gives each caller the same bytes; with None it says nothing until the end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if answer is None:
                done.wait(20)
            else:
                with contextlib.suppress(OSError):
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(20)
        listener.close()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_the_answer_of_the_agent_is_returned(agent: Agent) -> None:
    assert ask(agent.socket, "/v1/status") == {"schema_version": 1, **agent.status}
    assert ask(agent.socket, f"/v1/activities/{ACTIVITY['id']}")["id"] == ACTIVITY["id"]


def test_what_the_agent_refuses_is_said_in_its_own_words(agent: Agent) -> None:
    with pytest.raises(AgentError, match="cannot show activity 5: it is not in this node's journal") as caught:
        ask(agent.socket, "/v1/activities/5")
    assert caught.value.exit_code == 1
    assert "iggy-agent activities" in (caught.value.hint or "")


def test_nobody_there_is_not_running(folder: Path) -> None:
    for path in (folder / "absent", folder / "dead"):
        if path.name == "dead":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        with pytest.raises(UnavailableError, match="it is not running") as caught:
            ask(path, "/v1/status")
        assert caught.value.exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may ask everybody")
def test_a_closed_socket_is_no_permission(agent: Agent) -> None:
    agent.socket.chmod(0)
    with pytest.raises(SocketDeniedError) as caught:
        ask(agent.socket, "/v1/status")
    assert caught.value.exit_code == 77


def test_a_denied_connection_has_the_exit_code_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: client._UnixConnection) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(client._UnixConnection, "connect", denied)
    with pytest.raises(SocketDeniedError, match="no permission on") as caught:
        ask(folder / "s", "/v1/status")
    assert caught.value.exit_code == 77


def test_an_agent_that_hangs_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    with answering(folder / "s", None), pytest.raises(UnavailableError, match=r"no answer on .* within 0\.2 s"):
        ask(folder / "s", "/v1/status")


def test_a_place_among_those_who_wait_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(folder / "s"))
        busy.listen(0)
        waiting.connect(str(folder / "s"))
        with pytest.raises(UnavailableError, match=r"no answer on .* within 0\.2 s"):
            ask(folder / "s", "/v1/status")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}",
        http(b"[]"),
        http(b"not json"),
        http(b"\xff"),
        http(b"9" * 20_000),
        http(b"{" + b" " * (client.MAX_BYTES + 1) + b"}"),
        http(b"[" * 100_000),
    ],
)
def test_another_programs_answer_is_refused(folder: Path, answer: bytes) -> None:
    with (
        answering(folder / "s", answer),
        pytest.raises(UnavailableError, match=r"cannot (ask|read the answer of) the agent"),
    ):
        ask(folder / "s", "/v1/status")


@pytest.mark.parametrize("body", [b"{}", b'{"error": 5}', b'{"error": {}}'])
def test_an_error_without_words_is_still_an_error(folder: Path, body: bytes) -> None:
    with (
        answering(folder / "s", http(body, "503 Busy")),
        pytest.raises(AgentError, match="cannot ask the agent: HTTP 503"),
    ):
        ask(folder / "s", "/v1/status")


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9999\r\n\r\n"]
)
def test_an_answer_that_never_ends_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """Each byte comes in time."""
    monkeypatch.setattr(client, "LONGEST", 0.3)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
        server.listen()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(head)
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.01)

        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(UnavailableError):
            ask(folder / "s", "/v1/status")
        thread.join(10)
        assert not thread.is_alive()
