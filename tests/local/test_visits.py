"""Visitors who hold on to their connections."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.local import visits
from agent.local.client import ask
from tests.local.conftest import Agent

HALF = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n"
LIMIT = 10.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def visit(stack: ExitStack, path: Path, sent: bytes) -> socket.socket:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(str(path))  # and wait for that, should many come at once
    connection.settimeout(LIMIT)
    connection.sendall(sent)
    return connection


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "sent", [b"", HALF, b"\x16\x03\x01", b"POST /v1/status HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"]
)
def test_a_visit_ends_when_its_time_is_over(
    agent: Agent, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(visits, "LONGEST_VISIT", 0.1)
    connection = visit(stack, agent.socket, sent)
    while connection.recv(4096):
        pass


def test_one_more_visitor_than_there_is_room_for_ends_the_oldest_and_is_answered(
    agent: Agent, stack: ExitStack
) -> None:
    held = [visit(stack, agent.socket, HALF) for _ in range(visits.MAX_VISITS)]
    assert ask(agent.socket, "/v1/status")["healthy"] is True
    assert has_ended(held[0])
    held[-1].sendall(b"\r\n")
    assert held[-1].recv(12) == b"HTTP/1.1 200"


def test_what_visitors_hold_is_given_back(agent: Agent, stack: ExitStack) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5 * visits.MAX_VISITS):
        with ExitStack() as short:
            visit(short, agent.socket, HALF)
    assert ask(agent.socket, "/v1/status")["healthy"] is True
    deadline = time.monotonic() + LIMIT
    while len(list(Path("/proc/self/fd").iterdir())) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
