"""The Engine is restarted in the middle of actions, and takes the agent's own container down with it."""

import asyncio
import os

import pytest

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.waiting import until
from tests.runtimes.engine_rig import RealEngine
from tests.sidecar.node import Sidecar, sidecar_on

ALL = os.environ.get("CRASHES") == "all"
IGGY = RuntimeName.IGGY
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"


async def node(engine: RealEngine, sidecar: Sidecar) -> None:
    """Bring it up, with the Engine's own socket: a folder is mounted, for the socket in it is made anew."""
    sidecar.create_runtime(IGGY)
    address = {"DOCKER_HOST": "unix:///engine/docker.sock"}
    group = str(engine.folder.joinpath("docker.sock").stat().st_gid)
    engine.folder.chmod(0o755)
    settings = {key: value for key, value in sidecar.docker_settings().items() if "CONNECTORS" not in key}
    sidecar.create_agent(settings | address, Binds=[f"{engine.folder}:/engine"], GroupAdd=[group, "0"])
    engine.api.start(sidecar.agent)
    await sidecar.until_enrolled()
    await sidecar.completed(IGGY, "start")


@pytest.mark.parametrize("action", ["reconfigure", "restart"] if ALL else ["reconfigure"])
async def test_an_action_that_the_restart_of_the_engine_cuts_off_is_finished_once(
    engine: RealEngine, action: str
) -> None:
    async with sidecar_on(engine) as sidecar:
        await node(engine, sidecar)
        volume = sidecar.volume(IGGY)
        if action == "reconfigure":
            action += f":{await sidecar.outside.api.create_config(IGGY, 'bigger', values={SIZE: '4 MB'})}"
        (sidecar.folder / IGGY / "faults").write_text("slow_drain:2")
        dispatched = await sidecar.outside.api.dispatch(IGGY, action)
        await until(lambda: drains(sidecar), "the old run drains", every=0.02)
        (sidecar.folder / IGGY / "faults").write_text("")

        await asyncio.to_thread(engine.stop)
        await asyncio.to_thread(engine.start)
        finished = await sidecar.outside.api.finished(dispatched.id, within=60)

        assert finished.status is ActivityStatus.COMPLETED, finished.raw
        assert len([one for one in await sidecar.outside.api.activities() if one.id == dispatched.id]) == 1
        ready = await sidecar.completed(IGGY, "start")
        assert not ready.changed
        assert sidecar.inspect(sidecar.runtime(IGGY))["State"]["Running"]
        assert sidecar.volume(IGGY) == volume
        assert engine.names(sidecar.prefix) == {sidecar.agent, sidecar.runtime(IGGY)}
        if action.startswith("reconfigure"):
            assert f"{SIZE}=4 MB" in sidecar.inspect(sidecar.runtime(IGGY))["Config"]["Env"]


def drains(sidecar: Sidecar) -> bool:
    said: bytes = sidecar.engine.api.logs(sidecar.runtime(IGGY), tail=5)
    return b"initiating graceful shutdown" in said
