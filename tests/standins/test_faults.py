"""Each switch of the stand-ins does what their README says."""

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import standins
from tests.conformance.programs import PATIENCE, Connectors, Programs, Run, Server, ask, is_open, taken, until
from tests.conformance.samples import SOURCE

PROGRAMS = Programs(standins.IGGY_SERVER, standins.IGGY_CONNECTORS, {}, legacy=True)


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        run.end()


@pytest.fixture
def server(tmp_path: Path, runs: list[Run]) -> Server:
    return Server(PROGRAMS, tmp_path / "iggy", runs)


@pytest.fixture
def connectors(tmp_path: Path, runs: list[Run], server: Server) -> Connectors:
    return Connectors(PROGRAMS, tmp_path / "connectors-runtime", server.ports["tcp"], runs)


def test_both_say_that_they_are_stand_ins(server: Server, connectors: Connectors) -> None:
    run = server.started()
    assert run.log.startswith("Iggy Server 0.8.0 (stand-in for iggy-server, not Apache Iggy)")
    assert "stand-in for iggy-server, not Apache Iggy" in (server.data / "logs" / "iggy-server.log").read_text()
    assert "stand-in for iggy-connectors, not Apache Iggy" in connectors.started().log


def test_the_wrappers_are_the_programs(tmp_path: Path, runs: list[Run]) -> None:
    folder = Path(standins.__file__).with_name("bin")
    for program, version in (("iggy-server", "server 0.8.0\n"), ("iggy-connectors", "iggy-connectors 0.4.0\n")):
        run = Run([str(folder / program), "--version"], {"PATH": "/usr/bin:/bin"}, tmp_path)
        runs.append(run)
        assert run.wait() == 0, run.errors
        assert run.coloured == version


def test_starts_and_graceful_ends_are_recorded(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "starts"
    first = server.started(STANDIN_STARTS_FILE=str(record))
    first.stop()
    second = server.started(STANDIN_STARTS_FILE=str(record))
    second.end()
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(line["event"], line["pid"]) for line in lines] == [
        ("start", first.pid),
        ("end", first.pid),
        ("start", second.pid),
    ]
    assert lines[1]["exit_code"] == 0
    assert lines[0]["start_ticks"] == lines[1]["start_ticks"] < lines[2]["start_ticks"]
    assert lines[0]["argv"][-1] == "iggy-server"


def test_a_start_is_recorded_also_when_it_fails(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "starts"
    run = server.start(STANDIN_STARTS_FILE=str(record), STANDIN_FAULT="exit_at_start:3")
    assert run.wait() == 3
    (line,) = [json.loads(line) for line in record.read_text().splitlines()]
    assert (line["event"], line["pid"]) == ("start", run.pid)


def test_a_child_that_is_left_goes_on_after_its_server_has_ended(server: Server) -> None:
    run = server.start(STANDIN_FAULT="leaves_child:600")
    assert run.wait() == 0
    (child,) = (
        int(environ.parent.name) for environ in Path("/proc").glob("[0-9]*/environ") if _names(environ, server.data)
    )
    os.kill(child, signal.SIGKILL)


def _names(environ: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in environ.read_bytes()
    except OSError:  # it ended meanwhile
        return False


@pytest.mark.parametrize(("name", "value"), [("STANDIN_FAULT", "nonsense"), ("STANDIN_GENERATION", "1.0")])
def test_a_switch_that_does_not_exist_is_an_error(server: Server, name: str, value: str) -> None:
    run = server.start(changes={name: value})
    assert run.wait() == 1
    assert value in run.errors


def test_slow_start_refuses_connections_for_so_long(server: Server) -> None:
    began = time.monotonic()
    run = server.start(STANDIN_FAULT="slow_start:0.5")
    until(lambda: "Iggy server is running" in run.log, "the first half of the start")
    assert not any(is_open(server.ports[transport]) for transport in ("http", "tcp"))
    server.ready(run)
    assert time.monotonic() - began > 0.5


def test_slow_start_can_be_stopped(server: Server) -> None:
    run = server.start(STANDIN_FAULT="slow_start:600")
    until(lambda: "Iggy server is running" in run.log, "the first half of the start")
    assert run.stop() == 0


def test_never_ready_runs_without_http(server: Server, connectors: Connectors) -> None:
    run = server.start(STANDIN_FAULT="never_ready")
    until(server.current_config.exists, "all but HTTP")
    assert not is_open(server.http)
    waiting = connectors.start(STANDIN_FAULT="never_ready")
    until(lambda: "All sources and sinks spawned." in waiting.log, "all but HTTP")
    assert not is_open(connectors.port)
    assert (waiting.stop(), run.stop()) == (0, 0)


def test_ready_then_dies_with_its_code(server: Server, connectors: Connectors) -> None:
    run = server.start(STANDIN_FAULT="ready_then_dies:0.5:7")
    until(lambda: "Started HTTP API" in run.log, "the start")
    assert run.wait() == 7
    server.started()
    run = connectors.start(STANDIN_FAULT="ready_then_dies")
    until(lambda: "Started iggy-connectors HTTP API" in run.log, "the start")
    assert run.wait() == 1


def test_crash_loop_ends_the_first_starts(server: Server, connectors: Connectors) -> None:
    assert server.start(STANDIN_FAULT="crash_loop:2").wait() == 1
    assert server.start(STANDIN_FAULT="crash_loop:2").wait() == 1
    server.started(STANDIN_FAULT="crash_loop:2")
    for _ in range(2):
        assert connectors.start(STANDIN_FAULT="crash_loop").wait() == 101


@pytest.mark.parametrize(("fault", "status"), [("ping_503", 503), ("ping_hangs", None)])
def test_a_probe_can_be_failed_while_it_runs(
    server: Server, connectors: Connectors, tmp_path: Path, fault: str, status: int | None
) -> None:
    switch = tmp_path / "faults"
    server.started(STANDIN_FAULTS_FILE=str(switch))
    connectors.started(STANDIN_FAULTS_FILE=str(switch))
    switch.write_text(f"{fault}\n")
    for port, path in ((server.http, "/ping"), (connectors.port, "/health")):
        if status is None:
            with pytest.raises(TimeoutError):
                ask(port, path, timeout=0.3)
        else:
            assert ask(port, path).status == status
    switch.unlink()
    assert server.answers()
    assert connectors.healthy()


def test_ignore_sigterm_leaves_only_sigkill(server: Server, connectors: Connectors) -> None:
    run = server.started(STANDIN_FAULT="ignore_sigterm")
    waiting = connectors.started(STANDIN_FAULT="ignore_sigterm")
    for deaf in (run, waiting):
        deaf.process.send_signal(signal.SIGTERM)
        until(partial(_ignores, deaf), "the signal")
        assert deaf.alive
    assert server.answers()
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL


def _ignores(run: Run) -> bool:
    return "ignoring SIGTERM" in run.log


def test_slow_drain_takes_so_long_and_ignores_a_second_signal(server: Server) -> None:
    run = server.started(STANDIN_FAULT="slow_drain:0.5")
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    until(lambda: "initiating graceful shutdown" in run.log, "the stop")
    assert run.stop() == 0
    assert 0.5 < time.monotonic() - began < PATIENCE


def test_dirty_stop_ends_with_1(server: Server, connectors: Connectors) -> None:
    run = server.started(STANDIN_FAULT="dirty_stop")
    assert connectors.started(STANDIN_FAULT="dirty_stop").stop() == 1
    assert run.stop() == 1


def test_a_connector_can_be_put_in_error_while_health_is_fine(
    server: Server, connectors: Connectors, tmp_path: Path
) -> None:
    switch = tmp_path / "faults"
    server.started()
    (connectors.files / "source.toml").write_text(SOURCE)
    connectors.started(STANDIN_FAULTS_FILE=str(switch))
    assert connectors.stats()["sources_running"] == 1
    switch.write_text("connector_error:random")
    assert connectors.stats()["connectors"][0]["status"] == "error"
    switch.unlink()
    assert connectors.stats()["sources_running"] == 0
    assert connectors.healthy()


@pytest.mark.parametrize("transport", ["http", "tcp", "websocket"])
def test_a_taken_port_is_a_success_to_0_8(server: Server, transport: str) -> None:
    with taken(server.ports[transport]):
        run = server.start()
        assert run.wait() == 0
    assert "All shards have shut down. Iggy server is exiting." in run.log
