"""The agent in a container beside the runtimes, which it manages through a filter before the Engine's socket."""

import asyncio
import os
import re
import shutil
import subprocess
from contextlib import AsyncExitStack, closing

import pytest

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.e2e.ports import Ports
from tests.runtimes.engine_rig import RealEngine
from tests.sidecar.images import ROOT
from tests.sidecar.node import Sidecar, sidecar_on
from tests.sidecar.socket_proxy import SocketProxy, documented

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
OUTSIDE = (
    *(("GET", "/containers/json"), ("GET", "/info"), ("GET", "/containers/x/archive"), ("GET", "/images/json")),
    *(("POST", "/containers/x/exec"), ("POST", "/containers/x/kill"), ("POST", "/containers/x/restart")),
    *(("POST", "/images/create"), ("POST", "/containers/x/start/y"), ("DELETE", "/volumes/x"), ("DELETE", "/images/x")),
)
"""Calls that the agent does not make."""
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"


async def node_behind(engine: RealEngine, stack: AsyncExitStack, *, recreation: bool) -> tuple[Sidecar, SocketProxy]:
    """Bring a node up whose agent has a part of the Engine only."""
    sidecar = await stack.enter_async_context(sidecar_on(engine))
    socket = sidecar.folder / "engine.sock"
    allowed = documented(recreation=recreation)
    proxy = SocketProxy(engine.address.removeprefix("unix://"), socket, allowed)
    await stack.enter_async_context(proxy)
    for runtime in RuntimeName:
        sidecar.create_runtime(runtime)
    binds, groups = [f"{socket}:/var/run/docker.sock"], [str(os.getgid())]
    sidecar.create_agent(sidecar.docker_settings(), Binds=binds, GroupAdd=groups)
    engine.api.start(sidecar.agent)
    await sidecar.until_healthy()
    await sidecar.until_enrolled()
    return sidecar, proxy


async def test_all_four_actions_of_both_runtimes_need_no_more_of_the_engine_than_is_documented(
    engine: RealEngine,
) -> None:
    async with AsyncExitStack() as stack:
        sidecar, proxy = await node_behind(engine, stack, recreation=True)
        volumes = [sidecar.volume(runtime) for runtime in RuntimeName]
        config = {
            IGGY: await sidecar.outside.api.create_config(IGGY, "bigger", values={SIZE: "4 MB"}),
            CONNECTORS: await sidecar.outside.api.create_config(
                CONNECTORS, "files", files={"config.toml": '[state]\npath = "/births/state"\n'}
            ),
        }
        for runtime in RuntimeName:
            assert (await sidecar.completed(runtime, "start")).changed
            assert (await sidecar.completed(runtime, "restart")).changed
            applied = await sidecar.completed(runtime, f"reconfigure:{config[runtime]}")
            assert applied.evidence["outcome"] == "applied"
            assert not (await sidecar.completed(runtime, "start")).changed
        assert sidecar.births() == [3, 3]
        environment = sidecar.inspect(sidecar.runtime(IGGY))["Config"]["Env"]
        assert f"{SIZE}=4 MB" in environment
        tiny = await sidecar.outside.api.create_config(IGGY, "tiny", values={"IGGY_SYSTEM_MEMORY_POOL_SIZE": "1 MiB"})
        refused = await sidecar.outside.api.run(IGGY, f"reconfigure:{tiny}")
        assert (refused.code, refused.evidence["outcome"]) == (ReasonCode.ROLLED_BACK, "rolled_back")
        assert "less than minimum" in "\n".join(refused.evidence["log_tail"])
        for runtime in RuntimeName:
            stopped = await sidecar.completed(runtime, "stop")
            assert (stopped.evidence["exit_code"], stopped.evidence["killed"]) == (0, False)
        assert [sidecar.volume(runtime) for runtime in RuntimeName] == volumes
        assert engine.names(sidecar.prefix) == {sidecar.agent, *map(sidecar.runtime, RuntimeName)}
        assert proxy.refused == []


async def test_without_the_right_to_make_containers_all_but_a_reconfigure_of_values_goes_on(engine: RealEngine) -> None:
    async with AsyncExitStack() as stack:
        sidecar, proxy = await node_behind(engine, stack, recreation=False)
        await sidecar.completed(IGGY, "start")
        config = await sidecar.outside.api.create_config(IGGY, "bigger", values={SIZE: "4 MB"})
        refused = await sidecar.outside.api.run(IGGY, f"reconfigure:{config}")
        assert (refused.status, refused.code) == (ActivityStatus.REJECTED, ReasonCode.NOT_PERMITTED)
        assert "refused by the socket proxy" in str(refused.evidence), refused.raw
        assert sidecar.births() == [1, 0], "it was touched, though it could not be made anew"
        for action in ("restart", "stop", "start"):
            assert (await sidecar.completed(IGGY, action)).changed
        assert sidecar.births() == [3, 0]
        assert proxy.refused


def test_the_sample_filter_lets_through_what_is_documented_and_not_more() -> None:
    sample = (ROOT / "config" / "socket-proxy.cfg").read_text()
    acls = re.findall(r"^ +acl (looks|acts|drops) path_reg (\S+)$", sample, re.MULTILINE)
    methods = {"looks": "GET", "acts": "POST", "drops": "DELETE"}

    def passes(method: str, path: str) -> bool:
        return any(method == methods[name] and re.search(pattern, path) for name, pattern in acls)

    for method, path in documented(recreation=True):
        example = re.sub(r"\{\w+\}", "iggy-1.a_b", path)
        assert passes(method, f"/v1.41{example}"), (method, path)
        assert not passes("PUT", f"/v1.41{example}")
    assert passes("GET", "/version")
    assert passes("GET", "/v1.41/images/registry.example.com:5000/apache/iggy:0.8.0/json")
    for method, path in OUTSIDE:
        assert not passes(method, f"/v1.41{path}"), (method, path)


@pytest.mark.skipif(shutil.which("haproxy") is None and not os.environ.get("CI"), reason="needs haproxy")
async def test_the_sample_filter_suffices_for_a_reconfigure(engine: RealEngine) -> None:
    async with sidecar_on(engine) as sidecar:
        with closing(Ports()) as ports:
            port = ports.take()
            sample = (ROOT / "config" / "socket-proxy.cfg").read_text()
            sample = sample.replace("bind :2375", f"bind 127.0.0.1:{port}")
            file = sidecar.folder / "haproxy.cfg"
            file.write_text(sample.replace("/var/run/docker.sock", engine.address.removeprefix("unix://")))
            with (sidecar.folder / "haproxy.log").open("wb") as log:
                proxy = subprocess.Popen(["haproxy", "-db", "-f", str(file)], stdout=log, stderr=log)  # noqa: ASYNC220 - short
            try:
                sidecar.create_runtime(IGGY)
                settings = {key: value for key, value in sidecar.docker_settings().items() if "CONNECTORS" not in key}
                sidecar.create_agent(settings | {"DOCKER_HOST": f"tcp://127.0.0.1:{port}"})
                engine.api.start(sidecar.agent)
                await sidecar.until_enrolled()
                await sidecar.completed(IGGY, "start")
                config = await sidecar.outside.api.create_config(IGGY, "bigger", values={SIZE: "4 MB"})
                await sidecar.completed(IGGY, f"reconfigure:{config}")
                assert (await sidecar.completed(IGGY, "stop")).evidence["exit_code"] == 0
                assert sidecar.births() == [2, 0]
            finally:
                proxy.kill()
                await asyncio.to_thread(proxy.wait)


async def test_an_agent_that_is_degraded_is_alive_and_ends_when_its_container_is_stopped(engine: RealEngine) -> None:
    async with sidecar_on(engine) as sidecar:
        (sidecar.folder / "credentials" / "enrollment_token").unlink()
        sidecar.create_agent(sidecar.docker_settings())
        engine.api.start(sidecar.agent)
        await sidecar.until_healthy()
        engine.api.stop(sidecar.agent, timeout=20)
        assert sidecar.inspect(sidecar.agent)["State"]["ExitCode"] == 0
