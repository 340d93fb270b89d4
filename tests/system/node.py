"""A node on the booted systemd: `make install`, users, settings, a credential to enrol with; the Supervisor outside."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.local.client import ask
from agent.protocol import RuntimeName
from tests.e2e.births import PROGRAM, Birth, read_births
from tests.e2e.node_settings import PASSWORD, USERNAME
from tests.e2e.public_api import PublicApi
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.system.booted import Booted, CommandError

ROOT = Path(__file__).resolve().parents[2]
WHEELHOUSE = ROOT / "build" / "wheelhouse"
UNIT = {RuntimeName.IGGY: "iggy.service", RuntimeName.CONNECTORS: "iggy-connectors.service"}
STATE = {RuntimeName.IGGY: "/var/lib/iggy", RuntimeName.CONNECTORS: "/var/lib/iggy-connectors"}
STANDINS = "/usr/local/lib/iggy-standins/tests/standins"
SETTINGS = """\
[supervisor]
url = "{url}"

[agent]
shutdown_grace = 0.3

[runtimes.iggy]
driver = "systemd"
unit = "iggy.service"
start_timeout = 15
stop_timeout = 15
action_timeout = 60

[runtimes.iggy.probe]
http = "http://127.0.0.1:{iggy}/ping"
expect = "pong"
ready_timeout = 4
stable_for = 0.2

[runtimes.connectors]
driver = "systemd"
unit = "iggy-connectors.service"
start_timeout = 15
stop_timeout = 15
action_timeout = 60

[runtimes.connectors.probe]
http = "http://127.0.0.1:{connectors}/health"
ready_timeout = 4
stable_for = 0.2
"""


BOOT_ID = {
    "boot-id.service": """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'test -e /run/boot-id || cat /proc/sys/kernel/random/uuid >/run/boot-id'
""",
    "iggy-agent.service.d/boot-id.conf": """\
[Unit]
Requires=boot-id.service
After=boot-id.service
[Service]
BindReadOnlyPaths=/run/boot-id:/proc/sys/kernel/random/boot_id
""",
}
"""Gives the agent a boot id of the container's, as docs/recovery.md tells: the kernel's is that of the machine."""
QUICK = {
    "iggy-agent.service.d/quick.conf": "[Service]\nRestartSec=100ms\n",
    "iggy.service.d/quick.conf": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=500ms\n",
    "iggy-connectors.service.d/quick.conf": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=500ms\n",
}
"""The tests start and end everything far more often than a node does, and do not wait for it."""


class Outside(Rig):
    """The Supervisor's side of the usual rig: its agent and its runtimes are never started."""

    token: str

    async def enroll(self, token: str) -> None:
        """Keep the token for the node."""
        self.token = token


class Node:
    """The node, and how to look at it from outside.

    Args:
        system: Mounted, and not booted yet.
        supervisor: Up.
    """

    def __init__(self, system: Booted, supervisor: Outside) -> None:
        self.system = system
        self.supervisor = supervisor

    @property
    def api(self) -> PublicApi:
        """A user's side of the Supervisor."""
        return self.supervisor.api

    # --- set up

    def install(self, python: str, *, wheel: Path | None = None) -> None:
        """Install the agent into the system's files, by the command that people use."""
        more = [] if wheel is None else [f"WHEEL={wheel}"]
        destination, wheels = f"DESTDIR={self.system.root_outside}", f"WHEELHOUSE={WHEELHOUSE}"
        self.system.outside("make", "-C", str(ROOT), "install", destination, f"PYTHON={python}", wheels, *more)

    def write(self, python: str) -> None:
        """Write the settings of the node, and its two programs."""
        ports, system = self.supervisor.node.ports, self.system
        settings = SETTINGS.format(
            url=self.supervisor.supervisor_url, iggy=ports.iggy_http, connectors=ports.connectors_http
        )
        system.write("etc/iggy-agent/agent.toml", settings, mode=0o640)
        system.write("etc/credstore/enrollment_token", self.supervisor.token, mode=0o600)
        programs = self.supervisor.programs
        if programs.real:
            self._copy_programs(Path(programs.server[-1]), Path(programs.connectors[-1]))
        else:
            self._write_standins(python)
        for runtime in RuntimeName:
            system.write(self._environment_file(runtime), _lines(self._environment(runtime)), mode=0o600)
        (system.root / "etc/iggy/connectors").mkdir()
        for name, text in {**BOOT_ID, **QUICK}.items():
            system.write(f"etc/systemd/system/{name}", text)

    def _write_standins(self, python: str) -> None:
        shutil.copytree(
            ROOT / "tests/standins", self.system.root / STANDINS[1:], ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in PROGRAM.values():
            program = f'#!/bin/sh\nexec {python} -I -S {STANDINS} {name} "$@"\n'
            self.system.write(f"usr/local/bin/{name}", program, mode=0o755)

    def _copy_programs(self, server: Path, connectors: Path) -> None:
        """Copy the real programs, and the plugins that lie beside the connectors runtime."""
        for file in (server, connectors, *connectors.parent.glob("libiggy_connector_*.so")):
            name = {server: "iggy-server", connectors: "iggy-connectors"}.get(file, file.name)
            shutil.copy(file, self.system.root / "usr/local/bin" / name)

    def start(self) -> None:
        """Begin as a user would: users and folders, then `enable --now`."""
        for command in (
            ["systemd-sysusers", "iggy-agent.conf"],
            ["systemd-tmpfiles", "--create", "iggy-agent.conf"],
            ["systemctl", "daemon-reload"],
        ):
            self.system.run(*command)
        try:
            self.system.run("systemctl", "enable", "--quiet", "--now", "iggy-agent")
        except CommandError as error:
            error.add_note(self.system.journal("iggy-agent"))
            raise

    def _environment_file(self, runtime: RuntimeName) -> str:
        return f"etc/iggy/{runtime}.env"

    def _environment(self, runtime: RuntimeName) -> dict[str, str]:
        ports = self.supervisor.node.ports
        common = {
            "STANDIN_STARTS_FILE": f"{STATE[runtime]}/starts.jsonl",
            "STANDIN_FAULTS_FILE": f"{STATE[runtime]}/faults",
        }
        if runtime is RuntimeName.IGGY:
            return common | {
                "IGGY_HTTP_ADDRESS": f"127.0.0.1:{ports.iggy_http}",
                "IGGY_TCP_ADDRESS": f"127.0.0.1:{ports.iggy_tcp}",
                "IGGY_QUIC_ADDRESS": f"127.0.0.1:{ports.iggy_quic}",
                "IGGY_WEBSOCKET_ADDRESS": f"127.0.0.1:{ports.iggy_websocket}",
                "IGGY_SYSTEM_MEMORY_POOL_SIZE": "512 MiB",
                "IGGY_ROOT_USERNAME": USERNAME,
                "IGGY_ROOT_PASSWORD": PASSWORD,
            }
        return common | {
            "IGGY_CONNECTORS_HTTP_ADDRESS": f"127.0.0.1:{ports.connectors_http}",
            "IGGY_CONNECTORS_IGGY_ADDRESS": f"127.0.0.1:{ports.iggy_tcp}",
            "IGGY_CONNECTORS_IGGY_USERNAME": USERNAME,
            "IGGY_CONNECTORS_IGGY_PASSWORD": PASSWORD,
            "IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": "/etc/iggy/connectors",
        }

    # --- look

    def agent(self, *properties: str) -> dict[str, str]:
        """Read properties of the agent's unit."""
        return self.system.show("iggy-agent", *properties)

    async def ask(self, target: str) -> dict[str, Any] | None:
        """Ask the agent on its socket; None while it does not answer, or does not know."""
        socket = Path(f"/proc/{self.system.leader}/root") / "run/iggy-agent/agent.sock"
        try:
            return await asyncio.to_thread(ask, socket, target)
        except AgentError:
            return None

    async def until_called(self, activity_id: int, call: str) -> None:
        """Wait until the agent has journaled a call of an activity."""

        async def called() -> bool:
            row = await self.ask(f"/v1/activities/{activity_id}")
            return row is not None and any(made["call"] == call for made in row["calls"])

        await until(called, f"the call {call} of activity {activity_id} is journaled", every=0.005)

    async def seen(self, runtime: RuntimeName) -> dict[str, Any]:
        """Return what the Supervisor shows of a runtime: the latest heartbeat of the node."""
        (node,) = (await self.api.call("GET", "nodes"))["items"]
        found: dict[str, Any] = next(one for one in node["heartbeat"]["runtimes"] if one["runtime"] == runtime)
        return found

    async def until_up(self) -> dict[str, Any]:
        """Wait until the agent talks with the Supervisor, and return its status."""

        async def up() -> dict[str, Any] | None:
            status = await self.ask("/v1/status")
            good = status is not None and status["link"] and status["link"]["activities"]["last_success_at"]
            return status if good else None

        try:
            return await until(up, "the agent talks with the Supervisor", every=0.05)
        except TimeoutError as error:
            error.add_note(self.system.journal("iggy-agent"))
            raise

    def births(self, runtime: RuntimeName) -> list[Birth]:
        """Return every run of a runtime, as its program itself recorded it."""
        return read_births(self.system.root / STATE[runtime][1:] / "starts.jsonl", runtime)

    def invocation(self, unit: str) -> str:
        """Return the run that a unit has, or had last; empty when systemd does not know."""
        return self.system.show(unit, "InvocationID")["InvocationID"]

    def switch_faults(self, runtime: RuntimeName, *faults: str) -> None:
        """Switch exactly these faults of a stand-in on."""
        self.system.write(f"{STATE[runtime]}/faults", "\n".join(faults))


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={json.dumps(value)}\n" for name, value in values.items())


def wheelhouse_is_there() -> bool:
    """Whether `make wheelhouse` was run."""
    return any(WHEELHOUSE.glob("*.whl"))
