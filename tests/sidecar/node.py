"""The agent in a container, on the host's network; the Supervisor outside."""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.node_settings import PASSWORD, USERNAME, Options
from tests.e2e.programs import standin_programs
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.runtimes.engine_rig import RealEngine, a_name
from tests.sidecar import images
from tests.system.node import Outside

STATE = "/var/lib/iggy-agent"
USER = 10001
"""Of the image."""
PROGRAM = {RuntimeName.IGGY: "iggy-server", RuntimeName.CONNECTORS: "iggy-connectors"}
IMAGE = {RuntimeName.IGGY: images.IGGY, RuntimeName.CONNECTORS: images.CONNECTORS}
UNLESS_STOPPED = {"Name": "unless-stopped", "MaximumRetryCount": 0}


class Sidecar:
    """Containers on one Engine, each with a name that begins like all of this one's.

    Args:
        engine: Where.
        outside: The Supervisor's side.
    """

    def __init__(self, engine: RealEngine, outside: Outside) -> None:
        self.engine = engine
        self.outside = outside
        self.prefix = a_name()
        self.folder = Path(tempfile.mkdtemp(prefix="sidecar-"))
        for name in ("credentials", "state", *(f"state/runtimes/{one}" for one in RuntimeName), *RuntimeName):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "credentials" / "enrollment_token").write_text(outside.token)
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, USER, USER)
            path.chmod(0o755)

    @property
    def agent(self) -> str:
        """The name of the agent's container."""
        return f"{self.prefix}-agent"

    def runtime(self, runtime: RuntimeName) -> str:
        """Return the name of a runtime's container."""
        return f"{self.prefix}-{runtime}"

    # --- containers

    def create_runtime(self, runtime: RuntimeName, **host: Any) -> None:
        """Make a runtime's container, with a volume that nobody named, and leave it down."""
        folder = f"runtimes/{runtime}"
        binds = [f"{self.folder}/{runtime}:/births", f"{self.folder}/state/{folder}:{STATE}/{folder}:ro"]
        body = {
            "Image": IMAGE[runtime],
            "Env": [f"{name}={value}" for name, value in self.environment(runtime).items()],
            "Volumes": {"/data": {}},
            "HostConfig": {"NetworkMode": "host", "Binds": binds, "RestartPolicy": UNLESS_STOPPED, **host},
        }
        self._create(self.runtime(runtime), body)

    def create_agent(
        self, settings: Mapping[str, str], *, image: str = images.AGENT, checked_every: int = 1, **host: Any
    ) -> None:
        """Make the agent's container; its health is checked every so many seconds, the image says 30."""
        common = {
            "CREDENTIALS_DIRECTORY": "/run/iggy-setup/credentials",
            "AGENT_SUPERVISOR__URL": self.outside.supervisor_url,
            "AGENT_AGENT__SHUTDOWN_GRACE": "5",
            "AGENT_AGENT__LOG_LEVEL": "debug",
        }
        binds = [f"{self.folder}/credentials:/run/iggy-setup/credentials:ro", f"{self.folder}/state:{STATE}"]
        body = {
            "Image": image,
            "Env": [f"{name}={value}" for name, value in (common | dict(settings)).items()],
            "Healthcheck": {"Interval": checked_every * 1_000_000_000},
            "HostConfig": {
                "NetworkMode": "host",
                "RestartPolicy": UNLESS_STOPPED,
                "ReadonlyRootfs": True,
                "Tmpfs": {"/run/iggy-agent": f"uid={USER},mode=0755"},
                **host,
                "Binds": [*binds, *host.get("Binds", [])],
            },
        }
        self._create(self.agent, body)

    def _create(self, name: str, body: Mapping[str, Any]) -> None:
        self.engine.api.create_container_from_config(dict(body), name)  # type: ignore[no-untyped-call]  # the stub has no types for it

    def environment(self, runtime: RuntimeName) -> dict[str, str]:
        """Return a runtime's environment: the rig's ports."""
        ports = self.outside.node.ports
        if runtime is RuntimeName.IGGY:
            return {
                "IGGY_HTTP_ADDRESS": f"127.0.0.1:{ports.iggy_http}",
                "IGGY_TCP_ADDRESS": f"127.0.0.1:{ports.iggy_tcp}",
                "IGGY_QUIC_ADDRESS": f"127.0.0.1:{ports.iggy_quic}",
                "IGGY_WEBSOCKET_ADDRESS": f"127.0.0.1:{ports.iggy_websocket}",
                "IGGY_ROOT_USERNAME": USERNAME,
                "IGGY_ROOT_PASSWORD": PASSWORD,
                "IGGY_SYSTEM_PATH": "/births/data",
            }
        return {
            "IGGY_CONNECTORS_HTTP_ADDRESS": f"127.0.0.1:{ports.connectors_http}",
            "IGGY_CONNECTORS_IGGY_ADDRESS": f"127.0.0.1:{ports.iggy_tcp}",
            "IGGY_CONNECTORS_IGGY_USERNAME": USERNAME,
            "IGGY_CONNECTORS_IGGY_PASSWORD": PASSWORD,
            "IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": "/etc/iggy/connectors",
            "IGGY_CONNECTORS_STATE_PATH": "/births/state",
        }

    def settings(self, runtime: RuntimeName, **keys: str) -> dict[str, str]:
        """Return the agent's settings of a runtime, as environment."""
        ports = self.outside.node.ports
        probe = f"{ports.iggy_http}/ping" if runtime is RuntimeName.IGGY else f"{ports.connectors_http}/health"
        times = {"START_TIMEOUT": "30", "STOP_TIMEOUT": "20", "ACTION_TIMEOUT": "90", "PROBE__READY_TIMEOUT": "6"}
        values = {"PROBE__HTTP": f"http://127.0.0.1:{probe}", "PROBE__STABLE_FOR": "0.1", **times, **keys}
        return {f"AGENT_RUNTIMES__{runtime.upper()}__{key}": value for key, value in values.items()}

    def docker_settings(self) -> dict[str, str]:
        """Return the agent's settings of both runtimes as containers."""
        return {
            key: value
            for runtime in RuntimeName
            for key, value in self.settings(runtime, DRIVER="docker", CONTAINER=self.runtime(runtime)).items()
        }

    def inspect(self, name: str) -> Mapping[str, Any]:
        """Look at a container."""
        return self.engine.inspect(name)

    def volume(self, runtime: RuntimeName) -> str:
        """Name the volume of a runtime's container."""
        mounts = self.inspect(self.runtime(runtime))["Mounts"]
        return next(str(mount["Name"]) for mount in mounts if mount["Destination"] == "/data")

    # --- looking and acting

    def records(self, runtime: RuntimeName, event: str) -> list[dict[str, Any]]:
        """Return what a runtime's program recorded of its runs: their `start` or their `end`."""
        file = self.folder / runtime / "starts.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        return [one for one in found if one["event"] == event and one["program"] == PROGRAM[runtime]]

    def births(self) -> list[int]:
        """Count the runs of both runtimes."""
        return [len(self.records(runtime, "start")) for runtime in RuntimeName]

    async def health(self) -> str:
        """Return what the image's health check says."""
        state = (await asyncio.to_thread(self.inspect, self.agent))["State"]
        return str(state["Health"]["Status"])

    async def until_healthy(self) -> None:
        """Wait until the image's health check says that the agent is alive."""

        async def healthy() -> bool:
            return await self.health() == "healthy"

        await until(healthy, "the agent's container is healthy", every=0.1)

    async def until_enrolled(self) -> None:
        """Wait until the agent is a node of the Supervisor."""
        await until(self.outside.api.nodes, "the agent has enrolled", every=0.05)

    async def completed(self, runtime: RuntimeName, action: str) -> Activity:
        """Run an action that has to be completed."""
        activity = await self.outside.api.run(runtime, action)
        assert activity.status is ActivityStatus.COMPLETED, (activity.code, activity.message, activity.evidence)
        return activity

    def end(self) -> None:
        """Remove all of it."""
        self.engine.clear(self.prefix)
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        """Return the end of the agent's log."""
        said: bytes = self.engine.api.logs(self.agent, tail=60)
        return said.decode(errors="replace")


@asynccontextmanager
async def sidecar_on(engine: RealEngine) -> AsyncIterator[Sidecar]:
    """Have a Supervisor, and no container yet."""
    async with Outside(standin_programs(), Options(heartbeat_interval=5)) as outside:
        sidecar = Sidecar(engine, outside)
        try:
            yield sidecar
        except BaseException as error:
            if sidecar.engine.names(sidecar.agent):
                error.add_note(sidecar.logs())
            raise
        finally:
            await asyncio.to_thread(sidecar.end)
