"""How iggy-connectors starts, waits for Iggy, stops, and what it refuses to start with."""

import signal
import time

import pytest

from tests.conformance.programs import Connectors, Server, ask, is_open, until

HANDLES = [signal.SIGTERM, signal.SIGINT]


def test_the_version_is_one_line(connectors: Connectors) -> None:
    run = connectors.start("--version")
    assert run.wait() == 0
    name, version = run.coloured.split()
    assert name == "iggy-connectors"
    assert version.startswith("0.4." if connectors.programs.legacy else "0.5.")


def test_an_unknown_argument_ends_it_with_2(connectors: Connectors) -> None:
    run = connectors.start("--bogus")
    assert run.wait() == 2
    assert run.errors.startswith("error: unexpected argument '--bogus' found\n")


def test_it_waits_for_iggy_without_a_port_and_goes_on_when_iggy_is_there(
    connectors_of_server: Connectors, server: Server
) -> None:
    run = connectors_of_server.start()
    until(lambda: "Retrying to connect to server (2/unlimited)" in run.log, "two attempts")
    assert not is_open(connectors_of_server.port)
    assert run.alive
    server.start()
    connectors_of_server.ready(run)


@pytest.mark.parametrize("number", [*HANDLES, signal.SIGHUP])
def test_while_it_waits_any_signal_ends_it_by_itself(connectors_of_server: Connectors, number: signal.Signals) -> None:
    run = connectors_of_server.start()
    until(lambda: "Retrying to connect" in run.log, "an attempt")
    assert run.stop(number) == -number


def test_it_is_healthy_within_seconds(connectors: Connectors) -> None:
    began = time.monotonic()
    connectors.started()
    assert time.monotonic() - began < 10
    assert ask(connectors.port, "/health") == (200, "application/json", '{"status":"healthy"}')
    assert ask(connectors.port, "/") == (200, "text/plain; charset=utf-8", "Connector Runtime API")


@pytest.mark.parametrize("number", HANDLES)
def test_a_stop_ends_it_with_0_in_time(connectors: Connectors, number: signal.Signals) -> None:
    run = connectors.started()
    began = time.monotonic()
    assert run.stop(number) == 0
    assert time.monotonic() - began < 10
    assert "All connectors closed. Runtime shutdown complete." in run.log
    assert not is_open(connectors.port)


def test_sighup_kills_it(connectors: Connectors) -> None:
    assert connectors.started().stop(signal.SIGHUP) == -signal.SIGHUP


def test_a_broken_configuration_is_a_panic(connectors: Connectors) -> None:
    config = connectors.folder / "config.toml"
    config.write_text("[iggy\n")
    run = connectors.start(IGGY_CONNECTORS_CONFIG_PATH=str(config))
    assert run.wait() == 101
    assert "Failed to load configuration: CannotLoadConfiguration" in run.errors


@pytest.mark.parametrize(
    ("name", "value"), [("IGGY_CONNECTORS_HTTP_ENABLED", "perhaps"), ("IGGY_CONNECTORS_IGGY_PASSWORD", "12345")]
)
def test_a_variable_of_the_wrong_type_is_a_panic(connectors: Connectors, name: str, value: str) -> None:
    """A password that looks like a number is a number to it."""
    run = connectors.start(**{name: value})
    assert run.wait() == 101
    assert "Failed to load configuration: CannotLoadConfiguration" in run.errors


def test_a_missing_file_and_an_unknown_variable_are_ignored(connectors: Connectors) -> None:
    missing = connectors.folder / "missing.toml"
    connectors.started(IGGY_CONNECTORS_CONFIG_PATH=str(missing), IGGY_CONNECTORS_NONSENSE="1")


def test_a_wrong_password_ends_it(connectors: Connectors) -> None:
    run = connectors.start(IGGY_CONNECTORS_IGGY_PASSWORD="wrong")
    assert run.wait() == 1
    assert run.errors == "Error: IggyError(InvalidCredentials)\n"


def test_a_wrong_token_ends_it(connectors: Connectors) -> None:
    if not connectors.programs.legacy:
        pytest.skip("0.9 was not measured with it")
    run = connectors.start(IGGY_CONNECTORS_IGGY_TOKEN="nonsense")
    assert run.wait() == 1
    assert run.errors == 'Error: IggyError(ResourceNotFound(""))\n'


def test_a_missing_token_file_ends_it(connectors: Connectors) -> None:
    missing = connectors.folder / "token"
    run = connectors.start(IGGY_CONNECTORS_IGGY_TOKEN=f"file:{missing}")
    assert run.wait() == 1
    assert run.errors == f'Error: TokenFileNotFound("{missing}")\n'


def test_a_folder_that_is_missing_is_no_connectors(connectors: Connectors) -> None:
    connectors.started(IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR=str(connectors.folder / "missing"))
    stats = connectors.stats()
    assert (stats["sources_total"], stats["sinks_total"], stats["connectors"]) == (0, 0, [])


def test_no_folder_at_all_ends_it(connectors: Connectors) -> None:
    run = connectors.start(IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR="")
    assert run.wait() == 1
    assert run.errors == 'Error: InvalidConfiguration("Connectors configuration directory not provided")\n'


def test_a_taken_port_is_a_panic(connectors: Connectors) -> None:
    connectors.started()
    second = connectors.start()
    assert second.wait() == 101
    assert f"Failed to bind to HTTP address 127.0.0.1:{connectors.port}" in second.errors


def test_without_http_it_runs_and_has_no_port(connectors: Connectors) -> None:
    run = connectors.start(IGGY_CONNECTORS_HTTP_ENABLED="false")
    until(lambda: "All sources and sinks spawned." in run.log, "the start")
    assert not is_open(connectors.port)
    assert run.alive


def test_an_api_key_guards_all_but_health(connectors: Connectors) -> None:
    connectors.started(IGGY_CONNECTORS_HTTP_API_KEY="a-key")
    assert ask(connectors.port, "/health").status == 200
    assert ask(connectors.port, "/").status == 200
    refused = ask(connectors.port, "/stats")
    assert (refused.status, refused.body) == (401, "")
    assert ask(connectors.port, "/stats", headers={"api-key": "wrong"}).status == 401
    assert ask(connectors.port, "/stats", headers={"api-key": "a-key"}).status == 200


def test_it_lives_on_while_iggy_is_away(connectors_of_server: Connectors, server: Server) -> None:
    iggy = server.started()
    run = connectors_of_server.started()
    iggy.stop()
    assert connectors_of_server.healthy()
    server.started()
    assert connectors_of_server.healthy()
    assert run.stop() == 0
