"""What the Engine says of a container, in the driver's words: the states that a real one seldom shows."""

from typing import Any

import pytest

from agent.protocol import RuntimeState
from agent.runtimes.containers import (
    CONFIG_LABEL,
    VARIABLES_LABEL,
    Container,
    Usage,
    container_of,
    log_window,
    parse_time,
    read_usage,
)
from agent.runtimes.driver import Incarnation, Observation

ID = "0123456789abcdef" * 4
STARTED, ENDED = "2026-01-01T00:00:10.123456789Z", "2026-01-01T00:00:20Z"


def container(status: str = "exited", *, labels: dict[str, str] | None = None, **state: Any) -> Container:
    facts = {"Status": status, "StartedAt": STARTED, "FinishedAt": ENDED, "ExitCode": 0, **state}
    return Container({"Id": ID, "Name": "/iggy", "State": facts, "Config": {"Labels": labels}})


def seen(found: Container, **facts: Any) -> Observation:
    return found.observation(**{"stopped_by_us": None, "usage": None, **facts})


RUN = Incarnation(f"{ID[:12]}@{STARTED}")


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (container("created", StartedAt="0001-01-01T00:00:00Z"), RuntimeState.STOPPED),
        (container("running", Running=True), RuntimeState.RUNNING),
        (container("paused", Running=True, Paused=True), RuntimeState.RUNNING),
        (container("restarting", Running=True, Restarting=True), RuntimeState.STARTING),
        (container("removing"), RuntimeState.STOPPING),
        (container("dead"), RuntimeState.FAILED),
        (container(ExitCode=143), RuntimeState.STOPPED),
        (container(ExitCode=137), RuntimeState.FAILED),
        (container(ExitCode=1), RuntimeState.FAILED),
        (container(ExitCode=0, OOMKilled=True), RuntimeState.FAILED),
        (container(Error="no such thing"), RuntimeState.FAILED),
    ],
)
def test_each_state(found: Container, state: RuntimeState) -> None:
    assert seen(found).state is state


def test_a_run_that_we_killed_did_not_fail() -> None:
    assert seen(container(ExitCode=137), stopped_by_us=RUN).state is RuntimeState.STOPPED
    assert seen(container(ExitCode=137), stopped_by_us=Incarnation("other")).state is RuntimeState.FAILED


def test_health_and_what_could_not_be_started_are_told() -> None:
    assert seen(container("running", Health={"Status": "unhealthy"})).detail["health"] == "unhealthy"
    assert seen(container("running", Error="old")).detail == {"container": ID[:12], "container_state": "running"}
    assert "bad mount" in seen(container(Error="bad mount")).detail["cause"]


def test_the_use_of_another_run_is_not_shown() -> None:
    usage = Usage(RUN, 5, 1.5)
    assert seen(container("running"), usage=usage).memory_bytes == 5
    assert seen(container("running", StartedAt=ENDED), usage=usage).memory_bytes is None
    assert seen(container(), usage=usage).cpu_seconds is None


@pytest.mark.parametrize("spoilt", ["", "{", "[]", "7"])
def test_a_label_that_somebody_spoilt_says_nothing(spoilt: str) -> None:
    assert container(labels={VARIABLES_LABEL: spoilt}).variables == {}
    assert container(labels={CONFIG_LABEL: "x"}).config_sha256 == "x"


@pytest.mark.parametrize("text", [None, "", "0001-01-01T00:00:00Z", "yesterday", 7])
def test_what_is_no_time_is_none(text: object) -> None:
    assert parse_time(text) is None


def test_memory_is_told_without_the_file_cache_of_either_cgroup_version() -> None:
    cpu = {"cpu_usage": {"total_usage": 2_500_000_000}}
    for cache in ("total_inactive_file", "inactive_file"):
        stats = {"memory_stats": {"usage": 100, "stats": {cache: 30}}, "cpu_stats": cpu}
        assert read_usage(RUN, stats) == Usage(RUN, 70, 2.5)
    assert read_usage(RUN, {}) == Usage(RUN, None, None)


def test_the_log_of_a_run_begins_a_little_before_it_and_ends_with_the_next() -> None:
    _, began = container_of(RUN)
    assert began is not None
    before = "2026-01-01T00:00:10.1Z"
    assert log_window(container(), RUN) == (began.timestamp() - 0.1, None)
    previous = parse_time(before)
    assert previous is not None
    looping = container("restarting", Running=True, Restarting=True)
    assert log_window(looping, RUN) == (began.timestamp() - 0.1, None)
    in_a_moment = container("exited", Running=False, FinishedAt=before)  # noted before its own start
    assert log_window(in_a_moment, RUN) == (began.timestamp() - 0.1, None)
    running = container("running", Running=True, FinishedAt=before)
    assert log_window(running, RUN) == (previous.timestamp(), None)
    later = container("running", Running=True, StartedAt=ENDED)
    next_one = parse_time(ENDED)
    assert next_one is not None
    assert log_window(later, RUN) == (began.timestamp() - 0.1, next_one.timestamp() - 0.1)
