"""Recreating a container on a real Engine: forward, back, and after a kill -9 at each of its steps."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeName
from agent.runtimes.docker import DockerDriver
from agent.runtimes.driver import Incarnation
from agent.runtimes.releases import Release, Releases
from tests.runtimes.configs import config
from tests.runtimes.conftest import Steps, eventually
from tests.runtimes.engine_rig import RealEngine, a_name, driver_of, settled_as

pytestmark = pytest.mark.xdist_group("docker")

POLICY = {"Name": "unless-stopped", "MaximumRetryCount": 0}
COUNTED = ("/bin/sh", "-c", "echo $IGGY_HTTP_ADDRESS >> /births/log; trap 'exit 0' TERM; sleep 1000 & wait")
"""Writes down each run, with what it was started with."""
CALLS_OF_A_RECREATION = 6
"""Make, unbind, stop, keep, name, start."""


class Node:
    """One container with a volume that nobody named, counted runs, and a config to be applied."""

    def __init__(self, engine: RealEngine, folder: Path, births: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.births_folder = births
        self.name = a_name()
        self.releases = Releases(folder, RuntimeName.IGGY)
        self.id = ""

    def create(self, **host: Any) -> None:
        self.id = self.engine.create(
            self.name,
            COUNTED,
            Env=["IGGY_HTTP_ADDRESS=original", "OTHER=stays"],
            Volumes={"/data": {}},
            HostConfig={"RestartPolicy": POLICY, "Binds": [f"{self.births_folder}:/births"], **host},
        )

    async def apply(self, version: int = 1, **values: str) -> Release:
        """Stage a config and make it the current one, as a reconfigure does before its restart."""
        wanted = config(version=version, values=values or {"IGGY_HTTP_ADDRESS": "applied"})
        release = await asyncio.to_thread(self.releases.stage, wanted)
        await asyncio.to_thread(self.releases.switch, release.name)
        return release

    async def withdraw(self) -> None:
        """Have no current config, as going back to the original container does."""
        await asyncio.to_thread(self.releases.switch, None)

    def births(self) -> list[str]:
        log = self.births_folder / "log"
        return log.read_text().split() if log.exists() else []

    def volume(self, name: str | None = None) -> str:
        mounts = self.engine.inspect(name or self.name)["Mounts"]
        return next(str(mount["Name"]) for mount in mounts if mount["Destination"] == "/data")

    def environment(self) -> set[str]:
        return set(self.engine.inspect(self.name)["Config"]["Env"])

    def policy(self, name: str | None = None) -> dict[str, Any]:
        return dict(self.engine.inspect(name or self.name)["HostConfig"]["RestartPolicy"])


@pytest.fixture
def node(engine: RealEngine, folder: Path, tmp_path: Path) -> Iterator[Node]:
    births = tmp_path / "births"
    births.mkdir()
    node = Node(engine, folder, births)
    node.create()
    yield node
    engine.clear(node.name)


@pytest.fixture
async def driver(node: Node) -> AsyncIterator[DockerDriver]:
    async with driver_of(node.engine.address, node.name, node.folder) as driver:
        yield driver


async def running(driver: DockerDriver, node: Node) -> None:
    await driver.start(Steps())
    await settled_as(driver, "running")
    await eventually(lambda: bool(node.births()))


async def test_a_restart_with_another_config_recreates_the_container_and_keeps_the_old_one(
    node: Node, driver: DockerDriver, steps: Steps
) -> None:
    await running(driver, node)
    volume = node.volume()
    release = await node.apply(IGGY_HTTP_ADDRESS="applied", IGGY_NEW="value")
    outcome = await driver.restart(steps)
    assert steps.words() == ["recreate", "stop", "start!"]
    assert steps[0].detail["restart_policy"] == "unless-stopped"
    assert steps[2].before is not None
    assert steps[2].before.incarnation is None
    assert outcome.calls == ("recreate", "stop", "start")
    up = await settled_as(driver, "running")
    assert up.config_sha256 == release.sha256
    assert node.environment() == {"IGGY_HTTP_ADDRESS=applied", "OTHER=stays", "IGGY_NEW=value"}
    assert node.volume() == volume
    assert node.policy() == POLICY
    kept = node.engine.inspect(f"{node.name}.iggy-agent-kept")
    assert kept["Id"] == node.id
    assert kept["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert not kept["State"]["Running"]


async def test_a_committed_container_lets_the_kept_one_go_but_not_its_volume(node: Node, driver: DockerDriver) -> None:
    await running(driver, node)
    volume = node.volume()
    release = await node.apply()
    await driver.restart(Steps())
    await driver.tidy(None)
    assert f"{node.name}.iggy-agent-kept" in node.engine.names(node.name)
    await driver.tidy(release.sha256)
    assert node.engine.names(node.name) == {node.name}
    assert node.engine.api.inspect_volume(volume)["Name"] == volume


async def test_what_the_engine_makes_late_after_a_recreation_is_tidied_away_too(
    node: Node, driver: DockerDriver
) -> None:
    await running(driver, node)
    release = await node.apply()
    await driver.restart(Steps())
    await driver.tidy(release.sha256)
    node.engine.create(f"{node.name}.iggy-agent-new")
    await driver.tidy(release.sha256)
    assert node.engine.names(node.name) == {node.name}


async def test_going_back_puts_the_original_container_back_with_its_restart_policy(
    node: Node, driver: DockerDriver, steps: Steps
) -> None:
    await running(driver, node)
    await node.apply()
    await driver.restart(Steps())
    await settled_as(driver, "running")
    await node.withdraw()
    await driver.restart(steps)
    assert steps.words() == ["recreate", "stop", "start!"]
    back = await settled_as(driver, "running")
    assert back.config_sha256 is None
    assert node.engine.inspect(node.name)["Id"] == node.id
    assert node.policy() == POLICY
    assert node.engine.names(node.name) == {node.name}


async def test_a_removed_key_goes_and_a_hidden_value_comes_back(node: Node, driver: DockerDriver) -> None:
    first = await node.apply(1, IGGY_HTTP_ADDRESS="applied", IGGY_NEW="value")
    await driver.start(Steps())
    await driver.tidy(first.sha256)
    second = await node.apply(2, IGGY_OTHER="x")
    await driver.restart(Steps())
    await driver.tidy(second.sha256)
    assert node.environment() == {"IGGY_HTTP_ADDRESS=original", "OTHER=stays", "IGGY_OTHER=x"}
    await node.withdraw()
    await driver.restart(Steps())
    assert node.environment() == {"IGGY_HTTP_ADDRESS=original", "OTHER=stays"}


async def test_a_config_over_one_that_was_never_committed_keeps_the_committed_container(
    node: Node, driver: DockerDriver
) -> None:
    await running(driver, node)
    await node.apply(1)
    await driver.restart(Steps())
    await node.apply(2, IGGY_HTTP_ADDRESS="second")
    await driver.restart(Steps())
    await settled_as(driver, "running")
    assert node.engine.inspect(f"{node.name}.iggy-agent-kept")["Id"] == node.id
    assert node.engine.names(node.name) == {node.name, f"{node.name}.iggy-agent-kept"}
    assert node.policy() == POLICY
    await node.withdraw()
    await driver.restart(Steps())
    assert node.engine.inspect(node.name)["Id"] == node.id
    assert node.policy() == POLICY


async def test_a_superseded_config_that_was_stopped_makes_room_for_the_original_which_is_not_started(
    node: Node, driver: DockerDriver
) -> None:
    await running(driver, node)
    await node.apply()
    await driver.restart(Steps())
    await node.withdraw()
    await driver.tidy(None)
    assert (await driver.observe()).running
    await driver.stop(Steps())
    await driver.tidy(None)
    assert node.engine.names(node.name) == {node.name}
    found = node.engine.inspect(node.name)
    assert (found["Id"], found["State"]["Running"]) == (node.id, False)
    assert node.policy() == POLICY


async def test_a_stopped_container_is_recreated_by_its_next_start(
    node: Node, driver: DockerDriver, steps: Steps
) -> None:
    release = await node.apply()
    assert (await driver.observe()).config_sha256 is None
    await driver.start(steps)
    assert steps.words() == ["recreate", "start!"]
    assert (await settled_as(driver, "running")).config_sha256 == release.sha256


async def test_a_running_container_is_not_recreated_by_a_start(node: Node, driver: DockerDriver, steps: Steps) -> None:
    await running(driver, node)
    await node.apply()
    assert (await driver.start(steps)).calls == ()
    assert steps == []


async def test_a_gone_image_is_found_before_anything_is_stopped(node: Node, driver: DockerDriver, steps: Steps) -> None:
    image = node.engine.api.commit(node.name, repository=node.name, tag="gone")["Id"]
    node.engine.clear(node.name)
    made = node.engine.create(node.name, COUNTED, Image=image, HostConfig={"Binds": [f"{node.births_folder}:/births"]})
    await driver.start(Steps())
    await settled_as(driver, "running")
    node.engine.api.stop(made, timeout=0)
    node.engine.api.remove_image(image, force=True)
    await node.apply()
    with pytest.raises(Rejection) as rejected:
        await driver.restart(steps)
    assert rejected.value.code is ReasonCode.START_FAILED
    assert "its image" in rejected.value.message
    assert "is gone" in rejected.value.message
    assert node.engine.names(node.name) == {node.name}
    assert node.engine.inspect(node.name)["Id"] == made


async def test_an_undone_recreation_leaves_the_running_container_as_it_was(node: Node, driver: DockerDriver) -> None:
    await running(driver, node)
    await node.apply()
    await asyncio.to_thread(kill_after, node, 2)
    assert node.policy()["Name"] == "no"
    await node.withdraw()
    await driver.tidy(None)
    assert node.policy() == POLICY
    assert node.engine.names(node.name) == {node.name}
    assert len(node.births()) == 1


def kill_after(node: Node, calls: int) -> list[dict[str, Any]]:
    """Restart in a process that is killed after so many calls; returns what it journaled."""
    journal = node.folder / f"journal-{calls}"
    command = [sys.executable, "-m", "tests.runtimes.dying_docker_agent", node.engine.address, node.name]
    done = subprocess.run([*command, str(node.folder), str(calls), str(journal)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


async def recover(driver: DockerDriver, journal: list[dict[str, Any]]) -> None:
    """Do what the table of recovery says about a restart."""
    seen = await driver.settle()
    assert seen.state != "missing"
    decisive = [call for call in journal if call["decisive"]]
    if seen.running and decisive and seen.incarnation != Incarnation(decisive[-1]["incarnation"]):
        return
    await (driver.restart(Steps()) if seen.running or not decisive else driver.start(Steps()))


@pytest.mark.parametrize("calls", range(CALLS_OF_A_RECREATION + 1))
async def test_a_recreation_that_is_killed_after_any_step_is_finished_once(
    node: Node, driver: DockerDriver, calls: int
) -> None:
    await running(driver, node)
    volume = node.volume()
    release = await node.apply()
    journal = await asyncio.to_thread(kill_after, node, calls)
    assert "recreate" in [call["call"] for call in journal]
    await recover(driver, journal)
    up = await settled_as(driver, "running")
    assert up.config_sha256 == release.sha256
    await driver.tidy(release.sha256)
    assert node.engine.names(node.name) == {node.name}
    assert node.policy() == POLICY
    assert node.volume() == volume
    await eventually(lambda: len(node.births()) >= 2)
    assert node.births() == ["original", "applied"]


@pytest.mark.parametrize("calls", range(CALLS_OF_A_RECREATION + 1))
async def test_a_recreation_that_is_killed_after_any_step_is_undone(
    node: Node, driver: DockerDriver, calls: int
) -> None:
    await running(driver, node)
    volume = node.volume()
    await node.apply()
    await asyncio.to_thread(kill_after, node, calls)
    await node.withdraw()
    await driver.settle()
    await driver.restart(Steps())
    up = await settled_as(driver, "running")
    assert up.config_sha256 is None
    await driver.tidy(None)
    assert node.engine.names(node.name) == {node.name}
    assert node.engine.inspect(node.name)["Id"] == node.id
    assert node.policy() == POLICY
    assert node.volume() == volume
    assert node.births()[-1] == "original"
    assert node.births().count("applied") == (1 if calls == CALLS_OF_A_RECREATION else 0)


@pytest.mark.parametrize("calls", range(1, CALLS_OF_A_RECREATION + 1))
async def test_going_back_that_is_killed_after_any_step_is_finished(
    node: Node, driver: DockerDriver, calls: int
) -> None:
    await running(driver, node)
    await node.apply()
    await driver.restart(Steps())
    await node.withdraw()
    journal = await asyncio.to_thread(kill_after, node, calls)
    await recover(driver, journal)
    assert (await settled_as(driver, "running")).config_sha256 is None
    await driver.tidy(None)
    assert node.engine.names(node.name) == {node.name}
    assert node.engine.inspect(node.name)["Id"] == node.id
    assert node.policy() == POLICY


@pytest.mark.parametrize("calls", [1, 2])
async def test_a_container_of_two_networks_is_connected_to_both_whatever_was_cut_off(
    engine: RealEngine, node: Node, driver: DockerDriver, calls: int
) -> None:
    networks = [f"{node.name}-{number}" for number in (1, 2)]
    for network in networks:
        engine.api.create_network(network, driver="bridge")
    try:
        engine.clear(node.name)
        node.create(NetworkMode=networks[0])
        engine.api.connect_container_to_network(node.name, networks[1], aliases=["second"])
        await running(driver, node)
        release = await node.apply()
        await recover(driver, await asyncio.to_thread(kill_after, node, calls))
        await settled_as(driver, "running")
        await driver.tidy(release.sha256)
        found = engine.inspect(node.name)["NetworkSettings"]["Networks"]
        assert set(found) == set(networks)
        assert "second" in found[networks[1]]["Aliases"]
        assert engine.names(node.name) == {node.name}
    finally:
        engine.clear(node.name)
        for network in networks:
            engine.api.remove_network(network)


async def test_a_kept_container_that_somebody_started_is_left_alone(node: Node, driver: DockerDriver) -> None:
    await running(driver, node)
    release = await node.apply()
    await driver.restart(Steps())
    kept = f"{node.name}.iggy-agent-kept"
    node.engine.api.start(kept)
    await driver.tidy(release.sha256)
    assert node.engine.inspect(kept)["State"]["Running"]
    await node.withdraw()
    await driver.restart(Steps())
    assert node.engine.inspect(node.name)["Id"] == node.id


async def test_a_container_that_cannot_be_recreated_is_left_as_it_was(
    node: Node, driver: DockerDriver, steps: Steps
) -> None:
    await running(driver, node)
    taken = node.engine.create(f"{node.name}.iggy-agent-new")
    node.engine.api.start(taken)
    await node.apply()
    with pytest.raises(Rejection) as rejected:
        await driver.restart(steps)
    assert rejected.value.code is ReasonCode.BUSY
    assert steps.words() == ["recreate"]
    assert (await driver.observe()).running
    assert node.policy() == POLICY


async def test_a_container_in_a_crash_loop_is_recreated(node: Node, driver: DockerDriver) -> None:
    node.engine.clear(node.name)
    program = "echo run >> /births/log; [ $IGGY_HTTP_ADDRESS = applied ] && exec sleep 100"
    crashing = ("/bin/sh", "-c", program)
    binds = [f"{node.births_folder}:/births"]
    node.engine.create(node.name, crashing, HostConfig={"RestartPolicy": {"Name": "always"}, "Binds": binds})
    await driver.start(Steps())
    await eventually(lambda: len(node.births()) >= 2)
    release = await node.apply()
    await driver.restart(Steps())
    up = await settled_as(driver, "running")
    assert up.config_sha256 == release.sha256
    assert node.policy()["Name"] == "always"
