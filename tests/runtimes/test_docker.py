"""The Docker driver against a real Engine: the four verbs, what it observes, and what it refuses."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.docker import DockerDriver
from tests.runtimes.configs import config
from tests.runtimes.conftest import Steps, eventually
from tests.runtimes.engine_rig import DEAF, RealEngine, a_name, driver_of, settled_as

pytestmark = pytest.mark.xdist_group("docker")


@pytest.fixture
def name(engine: RealEngine) -> Iterator[str]:
    name = a_name()
    yield name
    engine.clear(name)


@pytest.fixture
async def driver(engine: RealEngine, name: str, folder: Path) -> AsyncIterator[DockerDriver]:
    async with driver_of(engine.address, name, folder) as driver:
        yield driver


async def test_start_brings_it_up_as_a_decisive_call_and_once(
    engine: RealEngine, name: str, driver: DockerDriver, steps: Steps
) -> None:
    engine.create(name)
    before = await driver.observe()
    assert (before.state, before.incarnation, before.exit_code) == ("stopped", None, None)
    outcome = await driver.start(steps)
    assert steps.words() == ["start!"]
    assert steps[0].before == before
    assert outcome.calls == ("start",)
    up = await settled_as(driver, "running")
    assert up.incarnation
    assert up.pid
    assert up.started_at
    again = await driver.start(steps)
    assert again.calls == ()
    assert steps.words() == ["start!"]


async def test_a_restart_is_a_stop_and_then_a_decisive_start_in_another_incarnation(
    engine: RealEngine, name: str, driver: DockerDriver, steps: Steps
) -> None:
    engine.create(name)
    await driver.start(Steps())
    first = await settled_as(driver, "running")
    outcome = await driver.restart(steps)
    assert steps.words() == ["stop", "start!"]
    assert outcome.before.incarnation == first.incarnation
    assert (outcome.exit_code, outcome.killed) == (0, False)
    second = await settled_as(driver, "running")
    assert second.incarnation != first.incarnation
    assert steps[1].before is not None
    assert steps[1].before.incarnation == first.incarnation
    assert not steps[1].before.running


async def test_stop_says_that_it_had_to_kill(engine: RealEngine, name: str, folder: Path, steps: Steps) -> None:
    engine.create(name, DEAF)
    async with driver_of(engine.address, name, folder, stop_timeout=1.0) as driver:
        await driver.start(Steps())
        outcome = await driver.stop(steps)
        assert steps.words() == ["stop!"]
        assert (outcome.exit_code, outcome.killed) == (137, True)
        assert outcome.detail["stop_seconds"] >= 0.9
        assert (await driver.observe()).state == "stopped"
        assert (await driver.stop(steps)).calls == ()
        assert steps.words() == ["stop!"]


async def test_a_missing_container_is_not_found_by_every_verb(driver: DockerDriver, steps: Steps, name: str) -> None:
    assert (await driver.observe()).state == "missing"
    for verb in (driver.start, driver.stop, driver.restart):
        with pytest.raises(Rejection) as rejected:
            await verb(steps)
        assert rejected.value.code is ReasonCode.NOT_FOUND
        assert f"there is no container named {name}" in rejected.value.message
    assert steps == []


async def test_a_container_is_found_by_its_name_and_not_by_the_beginning_of_an_id(
    engine: RealEngine, name: str, folder: Path
) -> None:
    made = engine.create(name)
    async with driver_of(engine.address, made[:12], folder) as driver:
        assert (await driver.observe()).state == "missing"


async def test_the_log_of_a_run_is_its_own(engine: RealEngine, name: str, driver: DockerDriver) -> None:
    engine.create(name, ("/bin/sh", "-c", "echo first line; echo err >&2; exit 3"))
    await driver.start(Steps())
    ended = await settled_as(driver, "failed")
    assert ended.exit_code == 3
    lines: list[str] = []
    async with asyncio.timeout(20):
        while len(lines) < 2:  # the Engine writes them down a moment after the end
            lines = await driver.log_tail(ended.incarnation, max_bytes=1000)
            await asyncio.sleep(0.02)
    assert sorted(lines) == ["err", "first line"]
    assert await driver.log_tail(ended.incarnation, max_bytes=4) != []
    await asyncio.sleep(0.2)
    await driver.start(Steps())
    await settled_as(driver, "failed")
    second = await settled_as(driver, "failed")
    assert len(await driver.log_tail(second.incarnation, max_bytes=1000)) == 2
    assert await driver.log_tail(None, max_bytes=10) == []


async def test_a_container_that_ended_by_itself_is_failed_and_one_that_was_asked_to_end_is_stopped(
    engine: RealEngine, name: str, driver: DockerDriver
) -> None:
    engine.create(name, ("/bin/sh", "-c", "exit 0"))
    await driver.start(Steps())
    assert (await settled_as(driver, "stopped")).exit_code == 0
    engine.clear(name)
    engine.create(name, ("/bin/sh", "-c", "kill -9 $$; sleep 1; exit 137"))
    await driver.start(Steps())
    killed = await settled_as(driver, "failed")
    assert killed.exit_code == 137


async def test_an_oom_kill_is_told_as_the_cause(engine: RealEngine, name: str, driver: DockerDriver) -> None:
    hungry = ("/bin/sh", "-c", "x=abcdefgh; while :; do x=$x$x; done")
    engine.create(name, hungry, HostConfig={"Memory": 16 * 2**20, "MemorySwap": 16 * 2**20})
    await driver.start(Steps())
    seen = await settled_as(driver, "failed")
    assert seen.detail["oom_killed"] is True
    assert "ran out of memory" in seen.detail["cause"]
    assert seen.exit_code == 137


async def test_a_crash_loop_is_starting_and_never_stopped_and_counts_its_restarts(
    engine: RealEngine, name: str, driver: DockerDriver
) -> None:
    engine.create(name, ("/bin/sh", "-c", "sleep 0.05; exit 7"), HostConfig={"RestartPolicy": {"Name": "always"}})
    await driver.start(Steps())
    states = set()
    async with asyncio.timeout(20):
        while (seen := await driver.observe()).restarts in {None, 0, 1}:
            states.add(seen.state)
            await driver.wait_for_change()
    assert states <= {"starting", "running"}
    outcome = await driver.stop(Steps())
    assert outcome.calls == ("stop",)
    assert not (await driver.settle()).running
    assert any("always" in warning for warning in driver.warnings())


async def test_a_paused_container_runs_with_a_hindrance_and_start_lets_it_go_on(
    engine: RealEngine, name: str, driver: DockerDriver, steps: Steps
) -> None:
    engine.create(name)
    await driver.start(Steps())
    first = await settled_as(driver, "running")
    engine.api.pause(name)
    paused = await driver.observe()
    assert (paused.state, paused.incarnation) == ("running", first.incarnation)
    assert paused.hindrance == "its container is paused"
    assert (await driver.start(steps)).calls == ("start",)
    assert steps.words() == ["start"]
    now = await driver.observe()
    assert (now.hindrance, now.incarnation) == (None, first.incarnation)


@pytest.mark.parametrize("verb", ["stop", "restart"])
async def test_a_paused_container_is_let_go_on_before_it_is_stopped(
    engine: RealEngine, name: str, driver: DockerDriver, verb: str
) -> None:
    engine.create(name)
    await driver.start(Steps())
    await settled_as(driver, "running")
    engine.api.pause(name)
    outcome = await getattr(driver, verb)(Steps())
    assert (outcome.exit_code, outcome.killed) == (0, False)


async def test_a_taken_port_is_a_sentence_of_its_own(
    engine: RealEngine, name: str, driver: DockerDriver, steps: Steps
) -> None:
    engine.api.create_network(name, driver="bridge")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host = {"NetworkMode": name, "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}}
        engine.create(name, ExposedPorts={"80/tcp": {}}, HostConfig=host)
        with pytest.raises(Rejection) as rejected:
            await driver.start(steps)
    assert rejected.value.code is ReasonCode.START_FAILED
    assert "a port that it publishes is taken" in rejected.value.message
    assert steps.words() == ["start!"]
    seen = await driver.observe()
    assert (seen.state, seen.incarnation) == ("failed", None)
    assert "the Engine could not start it" in seen.detail["cause"]
    engine.clear(name)
    engine.api.remove_network(name)


async def test_a_missing_command_is_a_sentence_of_its_own(engine: RealEngine, name: str, driver: DockerDriver) -> None:
    engine.create(name, ("/bin/not-there",))
    with pytest.raises(Rejection) as rejected:
        await driver.start(Steps())
    assert rejected.value.code is ReasonCode.START_FAILED
    assert "its command is not there" in rejected.value.message


async def test_a_container_that_would_vanish_is_refused_with_a_warning(
    engine: RealEngine, name: str, driver: DockerDriver, steps: Steps
) -> None:
    engine.create(name, HostConfig={"AutoRemove": True})
    engine.api.start(name)
    await settled_as(driver, "running")
    for verb in (driver.stop, driver.restart):
        with pytest.raises(Rejection) as rejected:
            await verb(steps)
        assert rejected.value.code is ReasonCode.NOT_PERMITTED
    assert (await driver.start(steps)).calls == ()
    with pytest.raises(Rejection) as rejected:
        driver.check_config(config())
    assert rejected.value.code is ReasonCode.NOT_PERMITTED
    assert steps == []
    assert any("AutoRemove" in warning for warning in driver.warnings())
    assert (await driver.observe()).running


async def test_files_of_a_config_need_the_folder_mounted_at_the_same_path(
    engine: RealEngine, name: str, driver: DockerDriver, folder: Path
) -> None:
    files = {"config.toml": "a = 1"}
    for target, fits in ((f"{folder}/current", False), ("/elsewhere", False), (str(folder), True)):
        engine.clear(name)
        engine.create(name, HostConfig={"Binds": [f"{folder}:{target}:ro"]})
        await driver.observe()
        driver.check_config(config())
        if fits:
            driver.check_config(config(files=files))
            continue
        with pytest.raises(Rejection) as rejected:
            driver.check_config(config(files=files))
        assert rejected.value.code is ReasonCode.CONFIG_INVALID
        assert str(folder) in rejected.value.message


async def test_memory_and_cpu_are_shown_a_look_later(engine: RealEngine, name: str, driver: DockerDriver) -> None:
    engine.create(name)
    await driver.start(Steps())
    async with asyncio.timeout(20):
        while (seen := await driver.observe()).memory_bytes is None:  # noqa: ASYNC110 - it shows only when asked for
            await asyncio.sleep(0.05)
    assert seen.memory_bytes > 0
    assert seen.cpu_seconds is not None


async def test_a_container_removed_behind_our_back_is_missing_at_once(
    engine: RealEngine, name: str, driver: DockerDriver
) -> None:
    engine.create(name)
    await driver.start(Steps())
    run = await settled_as(driver, "running")
    engine.api.remove_container(name, force=True)
    await settled_as(driver, "missing")
    with pytest.raises(Rejection) as rejected:
        await driver.log_tail(run.incarnation, max_bytes=100)
    assert rejected.value.code is ReasonCode.NOT_FOUND


async def test_two_looks_have_to_agree_before_it_is_settled(engine: RealEngine, name: str, folder: Path) -> None:
    engine.create(name)
    async with driver_of(engine.address, name, folder, settle_pause=0.3) as driver:
        began = time.monotonic()
        assert (await driver.settle()).state == "stopped"
        assert time.monotonic() - began >= 0.3


async def test_nothing_listens_once_it_is_closed(engine: RealEngine, name: str, folder: Path) -> None:
    async with driver_of(engine.address, name, folder) as driver:
        await driver.observe()
        assert any(thread.name == "docker-iggy-events" for thread in threading.enumerate())
    await driver.close()
    await eventually(lambda: not any(thread.name == "docker-iggy-events" for thread in threading.enumerate()))
