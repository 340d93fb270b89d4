"""The Docker driver against a real Engine: the four verbs, what it observes, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.docker import DockerDriver
from tests.runtimes.conftest import Steps
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
    assert sorted(await driver.log_tail(ended.incarnation, max_bytes=1000)) == ["err", "first line"]
    assert await driver.log_tail(ended.incarnation, max_bytes=4) != []
    await asyncio.sleep(0.2)
    await driver.start(Steps())
    await settled_as(driver, "failed")
    second = await settled_as(driver, "failed")
    assert len(await driver.log_tail(second.incarnation, max_bytes=1000)) == 2
    assert await driver.log_tail(None, max_bytes=10) == []
