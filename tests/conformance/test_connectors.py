"""What iggy-connectors says of its connectors, and what a broken one does to it."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.programs import Connectors, Server, ask, until
from tests.conformance.samples import SINK, SOURCE

SECOND = 1_000_000
STATS = """
connectors_runtime_version connectors_runtime_version_semver process_id cpu_usage total_cpu_usage memory_usage
total_memory available_memory run_time start_time sources_total sources_running sinks_total sinks_running connectors
"""


def write(connectors: Connectors, **files: str) -> Path:
    for name, text in files.items():
        (connectors.files / f"{name}.toml").write_text(text)
    return connectors.files


def connector(connectors: Connectors, key: str) -> Any:
    return next(one for one in connectors.stats()["connectors"] if one["key"] == key)


def test_the_stats_identify_the_process_and_its_start(connectors: Connectors) -> None:
    run = connectors.started()
    stats = connectors.stats()
    assert stats["process_id"] == run.pid
    assert abs(time.time() * SECOND - stats["start_time"]) < 60 * SECOND
    assert stats["connectors_runtime_version"].startswith("0.4." if connectors.programs.legacy else "0.5.")
    for name in ("memory_usage", "total_memory", "available_memory", "run_time"):
        assert type(stats[name]) is int


def test_a_connector_that_does_not_exist(connectors: Connectors) -> None:
    connectors.started()
    for kind in ("sink", "source"):
        reason = {"code": f"{kind}_not_found", "reason": f"{kind.capitalize()} not found with key: nope"}
        answer = ask(connectors.port, f"/{kind}s/nope")
        assert (answer.status, answer.json()) == (404, reason)
        answer = ask(connectors.port, f"/{kind}s/nope/restart", method="POST")
        assert (answer.status, answer.json()) == (404, reason)


@pytest.mark.usefixtures("plugins")
def test_a_source_runs_and_counts(connectors: Connectors) -> None:
    write(connectors, source=SOURCE)
    connectors.started()
    until(lambda: connector(connectors, "random")["messages_sent"] > 0, "messages")
    stats = connectors.stats()
    assert (stats["sources_total"], stats["sources_running"]) == (1, 1)
    assert stats.keys() == set(STATS.split())
    expected = {"connector_type": "source", "status": "running", "enabled": True, "errors": 0, "name": "Random source"}
    assert expected.items() <= connector(connectors, "random").items()


@pytest.mark.usefixtures("plugins")
def test_a_source_and_a_sink_of_its_new_stream_run_together(connectors: Connectors) -> None:
    write(connectors, source=SOURCE.replace("orders", "new"), sink=SINK.replace("orders", "new"))
    connectors.started()
    until(lambda: connector(connectors, "stdout")["messages_processed"] > 0, "messages in the sink")
    info = ask(connectors.port, "/sinks").json()[0]
    assert (info["key"], info["status"], info["enabled"]) == ("stdout", "running", True)
    assert "last_error" not in info


@pytest.mark.usefixtures("plugins")
def test_a_running_connector_can_be_restarted_alone(connectors: Connectors) -> None:
    write(connectors, source=SOURCE)
    run = connectors.started()
    before = ask(connectors.port, "/sources/random").json()["id"]
    assert ask(connectors.port, "/sources/random/restart", method="POST").status == 204
    until(lambda: connector(connectors, "random")["status"] == "running", "running again")
    assert ask(connectors.port, "/sources/random").json()["id"] != before
    assert run.alive


@pytest.mark.usefixtures("plugins")
def test_a_connector_in_error_leaves_the_runtime_healthy_and_cannot_be_restarted_alone(connectors: Connectors) -> None:
    write(connectors, source=SOURCE.replace('interval = "50ms"', "interval = 5"))
    connectors.started()
    stats = connectors.stats()
    assert (stats["sources_total"], stats["sources_running"]) == (1, 0)
    assert connector(connectors, "random")["status"] == "error"
    error = ask(connectors.port, "/sources").json()[0]["last_error"]
    assert error["message"] == "Invalid configuration: Plugin initialization failed (ID: 1)"
    assert abs(time.time() * SECOND - error["timestamp"]) < 60 * SECOND
    assert connectors.healthy()
    answer = ask(connectors.port, "/sources/random/restart", method="POST")
    assert answer.status == 400
    assert answer.json()["code"] == "invalid_configuration"


@pytest.mark.usefixtures("plugins")
def test_a_sink_without_its_stream(connectors: Connectors) -> None:
    write(connectors, sink=SINK.replace("orders", "unborn"))
    run = connectors.start()
    if connectors.programs.legacy:
        assert run.wait() == 1
        assert run.errors == 'Error: IggyError(StreamNameNotFound("unborn"))\n'
    else:
        connectors.ready(run)
        assert connector(connectors, "stdout")["status"] == "error"


@pytest.mark.usefixtures("plugins")
def test_a_disabled_connector_is_counted_but_not_listed(connectors: Connectors) -> None:
    write(connectors, source=SOURCE.replace("enabled = true", "enabled = false"))
    connectors.started()
    stats = connectors.stats()
    assert (stats["sources_total"], stats["sources_running"], stats["connectors"]) == (1, 0, [])
    assert ask(connectors.port, "/sources").json() == []


@pytest.mark.usefixtures("plugins")
def test_the_environment_overrides_a_connector(connectors: Connectors) -> None:
    write(connectors, source=SOURCE)
    connectors.started(IGGY_CONNECTORS_SOURCE_RANDOM_ENABLED="false")
    assert connectors.stats()["connectors"] == []


@pytest.mark.usefixtures("plugins")
def test_a_running_source_goes_on_after_iggy_was_away(connectors_of_server: Connectors, server: Server) -> None:
    server.started()
    write(connectors_of_server, source=SOURCE)
    connectors_of_server.started()
    until(lambda: connector(connectors_of_server, "random")["messages_sent"] > 0, "messages")
    server.restarted()
    sent = connector(connectors_of_server, "random")["messages_sent"]
    until(lambda: connector(connectors_of_server, "random")["messages_sent"] > sent, "more messages")
    assert connector(connectors_of_server, "random")["status"] == "running"


@pytest.mark.usefixtures("plugins")
def test_a_stop_without_iggy_waits_for_the_source_and_is_still_graceful(
    connectors_of_server: Connectors, server: Server
) -> None:
    if not server.programs.legacy:
        pytest.skip("0.5 was not measured with it")
    iggy = server.started()
    write(connectors_of_server, source=SOURCE)
    run = connectors_of_server.started()
    iggy.stop()
    until(lambda: "connecting to server" in run.log.split("Started iggy-connectors HTTP API")[1], "the loss")
    assert run.stop() == 0


def test_a_broken_connector_file_ends_it(connectors: Connectors) -> None:
    folder = write(connectors, broken='type = "sink"\nkey\n')
    run = connectors.start()
    assert run.wait() == 1
    cause = "raised an error: key with no value, expected `=`"
    assert run.errors == f"Error: InvalidConfiguration(\"parsing TOML file '{folder}/broken.toml' {cause}\")\n"


def test_a_connector_file_without_a_field_ends_it(connectors: Connectors) -> None:
    folder = write(connectors, half='type = "source"\nkey = "half"\n')
    run = connectors.start()
    assert run.wait() == 1
    cause = f"Failed to load connector configuration from '{folder}/half.toml': Cannot load configuration"
    assert run.errors == f'Error: InvalidConfiguration("{cause}")\n'


def test_a_plugin_that_is_nowhere_ends_it(connectors: Connectors) -> None:
    if not connectors.programs.legacy:
        pytest.skip("0.5 was not measured with it")
    write(connectors, source=SOURCE.replace("libiggy_connector_random_source", "libnowhere"))
    run = connectors.start()
    assert run.wait() == 1
    assert run.errors.startswith(
        'Error: InvalidConfiguration("Plugin library not found. Searched paths:\\n  - libnowhere.so'
    )


def test_a_file_that_is_no_plugin_ends_it(connectors: Connectors) -> None:
    if not connectors.programs.legacy:
        pytest.skip("0.5 puts the connector in error")
    fake = connectors.folder / "fake.so"
    fake.write_text("text")
    write(connectors, source=SOURCE.replace("libiggy_connector_random_source", str(fake)))
    run = connectors.start()
    assert run.wait() == 1
    assert f"Failed to load source container from {fake}" in run.errors
