"""The compose file as a user brings it up: by Debian's docker-compose, with images made here."""

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.ports import Ports
from tests.e2e.process import clean_environment
from tests.e2e.public_api import Activity, PublicApi
from tests.e2e.waiting import until
from tests.runtimes.engine_rig import RealEngine
from tests.sidecar import images

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
CONTAINER = {IGGY: "iggy", CONNECTORS: "iggy-connectors"}
COMPOSE = images.ROOT / "config" / "compose.yaml"
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"


class Project:
    """The compose file, brought up on an Engine."""

    def __init__(self, engine: RealEngine, ports: Ports, folder: Path) -> None:
        self.engine = engine
        self.url = f"https://localhost:{ports.take()}"
        self._folder = folder
        self._environment = {
            **clean_environment(),
            "DOCKER_HOST": engine.address,
            "DOCKER_SOCKET": engine.address.removeprefix("unix://"),
            "DOCKER_GID": str(Path(engine.address.removeprefix("unix://")).stat().st_gid),
            "COMPOSE_PROJECT_NAME": "node",
            "COMPOSE_FILE": str(COMPOSE),
            "AGENT_IMAGE": images.AGENT,
            "IGGY_IMAGE": images.IGGY,
            "CONNECTORS_IMAGE": images.CONNECTORS,
            "SUPERVISOR_PORT": self.url.rpartition(":")[2],
            "IGGY_TCP_PORT": str(ports.take()),
            "IGGY_HTTP_PORT": str(ports.take()),
            "IGGY_ROOT_PASSWORD": "a-password-of-the-test",
            # This machine's Engine may not raise limits.
            "IGGY_MEMLOCK": "65536",
        }

    async def compose(self, *arguments: str, check: bool = True) -> str:
        """Run docker-compose; returns what it printed."""
        process = await asyncio.create_subprocess_exec(
            *("docker-compose", "--ansi", "never", *arguments),
            env=self._environment,
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 90)
        assert not check or process.returncode == 0, out.decode()
        return out.decode()

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        name = self.container(service)["Id"]
        made = self.engine.api.exec_create(name, list(command))
        said: bytes = self.engine.api.exec_start(made["Id"])
        assert self.engine.api.exec_inspect(made["Id"])["ExitCode"] in {0, 1}, said
        return said.decode()

    def container(self, service: str) -> Mapping[str, Any]:
        """Return the container of a service, as the Engine lists it."""
        (found,) = self.containers(service)
        return found

    def containers(self, service: str) -> list[dict[str, Any]]:
        """List the containers of a service: for a moment a reconfigure has two."""
        label = f"com.docker.compose.service={service}"
        return [dict(found) for found in self.engine.api.containers(all=True, filters={"label": label})]

    def environment(self, service: str) -> list[str]:
        """Return the environment of a service's container."""
        return list(self.engine.inspect(self.container(service)["Id"])["Config"]["Env"])

    def births(self, runtime: RuntimeName) -> int:
        """Count the runs in the container in use, by the program's own record."""
        return self.inside(runtime, "cat", "/births/starts.jsonl").count('"event": "start"')

    async def agent_status(self) -> dict[str, Any] | None:
        said = await asyncio.to_thread(self.inside, "agent", "iggy-agent", "status", "--format", "json")
        return dict(json.loads(said)) if said.startswith("{") else None


@asynccontextmanager
async def project_up(engine: RealEngine, folder: Path) -> AsyncIterator[tuple[Project, PublicApi]]:
    ports = Ports()
    project = Project(engine, ports, folder)
    async with AsyncExitStack() as stack:
        stack.callback(ports.close)
        try:
            await project.compose("up", "--detach")
            authority = await asyncio.to_thread(project.inside, "supervisor", "cat", "tls/certificate.pem")
            tls = ssl.create_default_context(cadata=authority)
            tls.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # as from Python 3.13 on
            deployment = int(project.inside("supervisor", "cat", "deployment"))
            key = project.inside("supervisor", "cat", "api-key").strip()
            api = await stack.enter_async_context(PublicApi(project.url, deployment, key, tls=tls))
            yield project, api
        except BaseException as error:
            error.add_note(await project.compose("logs", "--tail", "40", check=False))
            raise
        finally:
            await project.compose("down", "--volumes", "--timeout", "3", check=False)


def alone(project: Project, service: str) -> bool:
    return len(project.containers(service)) == 1


async def enrolled(api: PublicApi) -> bool:
    try:
        return bool(await api.nodes())
    except aiohttp.ClientError:  # the Supervisor is on its way up
        return False


async def completed(api: PublicApi, runtime: RuntimeName, action: str) -> Activity:
    activity = await api.run(runtime, action)
    assert activity.status is ActivityStatus.COMPLETED, (activity.code, activity.message, activity.evidence)
    return activity


@pytest.mark.skipif(shutil.which("docker-compose") is None and not os.environ.get("CI"), reason="needs docker-compose")
async def test_the_compose_file_is_a_node_whose_runtimes_are_managed_through_the_public_api(
    engine: RealEngine, tmp_path: Path
) -> None:
    async with project_up(engine, tmp_path) as (project, api):
        await until(partial(enrolled, api), "the agent has enrolled", every=0.1)
        for runtime in RuntimeName:
            assert not (await completed(api, runtime, "start")).changed
            assert (await completed(api, runtime, "restart")).changed
            assert project.births(runtime) == 2
        status = await project.agent_status()
        assert status is not None
        assert status["conditions"] == []
        assert {one["runtime"]: one["ready"] for one in status["runtimes"]} == {IGGY: True, CONNECTORS: True}

        config = await api.create_config(IGGY, "bigger", values={SIZE: "4 MB"})
        applied = await completed(api, IGGY, f"reconfigure:{config}")
        assert applied.evidence["outcome"] == "applied"
        config = await api.create_config(
            CONNECTORS, "files", files={"connectors/none.txt": "", "config.toml": '[state]\npath = "/tmp/state"\n'}
        )
        await completed(api, CONNECTORS, f"reconfigure:{config}")
        for runtime in RuntimeName:
            await until(partial(alone, project, runtime), f"{runtime} has one container again")
        recreated = {runtime: project.container(runtime)["Id"] for runtime in RuntimeName}

        said = await project.compose("up", "--detach")
        assert "iggy is up-to-date" in said
        assert "iggy-connectors is up-to-date" in said
        assert {runtime: project.container(runtime)["Id"] for runtime in RuntimeName} == recreated
        assert "iggy" in await project.compose("ps")

        await project.compose("up", "--detach", "--no-deps", "--force-recreate", "iggy")
        assert f"{SIZE}=4 MB" not in project.environment(IGGY)
        await completed(api, IGGY, "restart")
        await until(partial(alone, project, IGGY), "iggy has one container again")
        assert f"{SIZE}=4 MB" in project.environment(IGGY)

        for runtime in RuntimeName:
            assert (await completed(api, runtime, "stop")).changed
            assert project.container(runtime)["State"] == "exited"
        assert len(await api.nodes()) == 1, "it enrolled once"
