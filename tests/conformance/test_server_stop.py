"""How iggy-server stops."""

import http.client
import signal
import socket
import time

import pytest

from tests.conformance.programs import PATIENCE, Server, is_open


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_of_the_signals_stops_it_with_0_in_time(server: Server, number: signal.Signals) -> None:
    run = server.started()
    began = time.monotonic()
    assert run.stop(number) == 0
    assert time.monotonic() - began < 10
    assert run.errors == ""
    assert not any(is_open(server.ports[transport]) for transport in ("http", "tcp", "websocket"))


def test_a_client_that_stays_connected_does_not_hold_up_the_stop(server: Server) -> None:
    run = server.started()
    with socket.create_connection(("127.0.0.1", server.ports["tcp"])):
        began = time.monotonic()
        assert run.stop() == 0
        assert time.monotonic() - began < 15


def test_a_connection_that_is_kept_alive_does_not_hold_up_the_stop(server: Server) -> None:
    """A probe that keeps its connection is such a client."""
    run = server.started()
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=PATIENCE)
    try:
        connection.request("GET", "/ping")
        assert connection.getresponse().read() == b"pong"
        began = time.monotonic()
        assert run.stop() == 0
        assert time.monotonic() - began < 10
    finally:
        connection.close()


def test_a_stop_is_told_in_the_log(server: Server) -> None:
    run = server.started()
    run.stop()
    assert "shutdown" in run.log.lower()


def test_a_kill_shows_as_the_signal(server: Server) -> None:
    assert server.started().stop(signal.SIGKILL) == -signal.SIGKILL
