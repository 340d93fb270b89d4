"""kill -9 of the agent between the calls to the Engine, over the whole path: one effect, one report, nothing lost.

`make test` kills at a few points; `CRASHES=all` in each action before and after each call, and after each step that is
journaled.
"""

import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.runtimes.engine_rig import RealEngine
from tests.sidecar.images import ROOT
from tests.sidecar.node import UNLESS_STOPPED, Sidecar, sidecar_on

ALL = os.environ.get("CRASHES") == "all"
IGGY = RuntimeName.IGGY
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"
POINTS = ("before:engine.", "after:engine.", "after:journal.record")
REFUSED = {"IGGY_SYSTEM_MEMORY_POOL_SIZE": "1 MiB"}
NO = {"Name": "no", "MaximumRetryCount": 0}

PLAIN = [
    ("restart", 1, ("after:engine.stop:1",)),
    ("stop", 0, ("after:engine.stop:1",)),
    ("start", 1, ("after:engine.start:1",)),
]

pytestmark = pytest.mark.timeout(3600 if ALL else 240)


class Node:
    """A runtime in a container, and an agent on this machine that is started again whenever it was killed."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.outside = sidecar.outside
        self.folder = sidecar.folder
        self.sizes = itertools.count(2)
        self.cases = itertools.count(1)
        settings = self.outside.node.settings_file
        settings.write_text(settings.read_text().partition("[runtimes.")[0])

    async def keep_agent(self) -> None:
        """Start the agent if it does not run."""
        if not self.outside.agent.alive:
            environment = {
                "PYTHONPATH": str(ROOT),
                "DOCKER_HOST": self.sidecar.engine.address,
                "CREDENTIALS_DIRECTORY": str(self.folder / "credentials"),
                **self.sidecar.settings(IGGY, DRIVER="docker", CONTAINER=self.sidecar.runtime(IGGY)),
            }
            program = [sys.executable, "-m", "tests.sidecar.crashing_agent", str(self.folder)]
            await self.outside.start_agent(program=program, environment=environment, wait=False)

    async def finished(self, activity: Activity) -> Activity:
        """Keep the agent alive until an activity is finished and all is reported; return it."""

        async def look() -> Activity | None:
            await self.keep_agent()
            row = await self.outside.journaled(activity.id)
            reported = row is not None and row["state"] == "reported"
            return await self.outside.api.get(activity.id) if reported else None

        return await until(look, f"activity {activity.id} is reported", within=60, every=0.02)

    async def run(self, action: str) -> Activity:
        return await self.finished(await self.outside.api.dispatch(IGGY, action))

    async def crash(self, action: str, point: str | None) -> tuple[Activity, list[str]]:
        """Run an action and kill the agent at a point; return the report, and the points that were passed."""
        case = str(next(self.cases))
        plan = self.folder / "plan.json"
        plan.write_text(json.dumps({"case": case, "crashes": [point] if point else []}))
        activity = await self.run(action)
        plan.unlink()
        crashed = self.folder / f"crashed-{case}"
        assert (crashed.read_text().split() if crashed.exists() else []) == ([point] if point else [])
        trace = (self.folder / f"trace-{case}").read_text().splitlines()
        return activity, [line.split()[1] for line in trace]

    async def config(self, **values: str) -> tuple[str, str]:
        """Make a config; return the action that applies it, and the size by which it is known."""
        size = f"{next(self.sizes)} MB"
        made = await self.outside.api.create_config(IGGY, "one", values={SIZE: size, **values})
        return f"reconfigure:{made}", size

    def environment(self) -> list[str]:
        """Return the environment of the container in use."""
        return list(self.sidecar.inspect(self.sidecar.runtime(IGGY))["Config"]["Env"])


@asynccontextmanager
async def node_on(engine: RealEngine, policy: dict[str, object]) -> AsyncIterator[Node]:
    async with sidecar_on(engine) as sidecar:
        sidecar.create_runtime(IGGY, RestartPolicy=policy)
        node = Node(sidecar)
        await node.keep_agent()
        await sidecar.until_enrolled()
        assert (await node.run("start")).status is ActivityStatus.COMPLETED
        yield node


async def judge(node: Node, activity: Activity, *, starts: int, before: int, volume: str, policy: object) -> None:
    """Check what has to be true after each action, however often the agent died."""
    sidecar = node.sidecar
    assert sidecar.births()[0] - before == starts, "it was not started as often as the action says"
    assert sidecar.volume(IGGY) == volume

    async def alone() -> bool:
        await node.keep_agent()  # it may have been killed while it tidied up
        return sidecar.engine.names(sidecar.prefix) == {sidecar.runtime(IGGY)}

    await until(alone, "the container in use is the only one")
    assert sidecar.inspect(sidecar.runtime(IGGY))["HostConfig"]["RestartPolicy"] == policy
    assert (await node.outside.api.get(activity.id)).raw == activity.raw, "the report changed after it was recorded"


def chosen(points: list[str], some: tuple[str, ...]) -> list[str]:
    """Choose where to kill."""
    assert set(some) <= set(points), points
    return [point for point in points if point.startswith(POINTS)] if ALL else list(some)


async def test_a_reconfigure_makes_one_container_anew_wherever_the_agent_is_killed(engine: RealEngine) -> None:
    async with node_on(engine, UNLESS_STOPPED) as node:
        volume = node.sidecar.volume(IGGY)
        action, _ = await node.config()
        activity, points = await node.crash(action, None)
        assert activity.status is ActivityStatus.COMPLETED, activity.raw
        for point in chosen(points, ("after:engine.create:1", "after:engine.rename:1", "after:engine.start:1")):
            before = node.sidecar.births()[0]
            action, size = await node.config()
            activity, _ = await node.crash(action, point)
            assert (activity.status, activity.evidence["outcome"]) == (ActivityStatus.COMPLETED, "applied"), point
            assert f"{SIZE}={size}" in node.environment(), point
            await judge(node, activity, starts=1, before=before, volume=volume, policy=UNLESS_STOPPED)


async def test_a_config_that_is_refused_is_rolled_back_wherever_the_agent_is_killed(engine: RealEngine) -> None:
    async with node_on(engine, NO) as node:
        volume = node.sidecar.volume(IGGY)
        good, size = await node.config()
        assert (await node.run(good)).status is ActivityStatus.COMPLETED
        bad, _ = await node.config(**REFUSED)
        activity, points = await node.crash(bad, None)
        assert activity.code == ReasonCode.ROLLED_BACK, activity.raw
        for point in chosen(points, ("after:engine.rename:3",)):
            before = node.sidecar.births()[0]
            bad, _ = await node.config(**REFUSED)
            activity, _ = await node.crash(bad, point)
            assert (activity.code, activity.evidence["outcome"]) == (ReasonCode.ROLLED_BACK, "rolled_back"), point
            assert f"{SIZE}={size}" in node.environment(), point
            await judge(node, activity, starts=2, before=before, volume=volume, policy=NO)


@pytest.mark.parametrize(("action", "starts", "some"), PLAIN if ALL else PLAIN[:1])
async def test_a_plain_action_is_done_once_wherever_the_agent_is_killed(
    engine: RealEngine, action: str, starts: int, some: tuple[str, ...]
) -> None:
    async with node_on(engine, UNLESS_STOPPED) as node:
        volume = node.sidecar.volume(IGGY)
        opposite = {"restart": "start", "stop": "start", "start": "stop"}[action]
        await node.run(opposite)
        _, points = await node.crash(action, None)
        for point in chosen(points, some):
            await node.run(opposite)
            before = node.sidecar.births()[0]
            activity, _ = await node.crash(action, point)
            assert (activity.status, activity.changed) == (ActivityStatus.COMPLETED, True), (point, activity.raw)
            await judge(node, activity, starts=starts, before=before, volume=volume, policy=UNLESS_STOPPED)
            assert node.sidecar.inspect(node.sidecar.runtime(IGGY))["State"]["Running"] is (action != "stop")
