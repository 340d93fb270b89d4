"""The settings of a rig's agent and of its runtimes: free ports, short timeouts, a folder of its own."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.protocol import RuntimeName
from tests.e2e.habitats import PROCESSES, Habitat, Home
from tests.e2e.ports import Ports
from tests.e2e.programs import Programs

USERNAME, PASSWORD = "iggy", "a-password-of-the-rig"


@dataclass(frozen=True, slots=True)
class Options:
    """How a rig differs from the usual one; times in seconds.

    Attributes:
        agent: More keys of the table `[agent]`.
        environment: More variables for both runtimes, such as STANDIN_GENERATION.
    """

    ready_timeout: float = 15.0
    stable_for: float = 0.2
    attempt_timeout: float = 2.0
    start_timeout: float = 15.0
    stop_timeout: float = 15.0
    shutdown_grace: float = 5.0
    activity_ttl: float = 600.0
    report_grace: float = 900.0
    heartbeat_interval: float = 1.0
    poll_wait: float = 20.0
    agent: Mapping[str, str | float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def action_timeout(self) -> float:
        """The least that the settings accept: all steps, and two margins of 5 s."""
        return self.stop_timeout + self.start_timeout + self.ready_timeout + self.stable_for + 10


@dataclass(frozen=True, slots=True)
class RuntimePorts:
    """The ports of both runtimes."""

    iggy_http: int
    iggy_tcp: int
    iggy_quic: int
    iggy_websocket: int
    connectors_http: int

    @classmethod
    def take(cls, ports: Ports) -> "RuntimePorts":
        """Claim them."""
        return cls(ports.take(), ports.take(), ports.take(), ports.take(), ports.take())


@dataclass(frozen=True, slots=True)
class Node:
    """What a rig's node is made of, below one folder."""

    folder: Path
    ports: RuntimePorts
    programs: Programs
    options: Options
    habitat: Habitat = PROCESSES
    runtimes: tuple[RuntimeName, ...] = tuple(RuntimeName)

    @property
    def state_dir(self) -> Path:
        """The agent's state folder."""
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        """The agent's socket."""
        return self.folder / "agent.sock"

    @property
    def settings_file(self) -> Path:
        """The agent's settings."""
        return self.folder / "agent.toml"

    @property
    def starts_file(self) -> Path:
        """Where each run of a runtime is recorded by its program."""
        return self.folder / "starts.jsonl"

    def move_state(self, folder: Path) -> None:
        """Put the state folder elsewhere, such as on a disk of its own; while there is no agent."""
        for path in self.state_dir.iterdir():
            shutil.move(path, folder)
        self.state_dir.rmdir()
        self.state_dir.symlink_to(folder)

    def faults_file(self, runtime: RuntimeName) -> Path:
        """Return where faults of a stand-in are switched on."""
        return self.folder / f"faults-{runtime}"

    def connectors_toml(self, *, metrics: bool = False) -> str:
        """Write a whole config of the connectors runtime, as a user would."""
        tables: dict[str, dict[str, str | float | bool]] = {
            "http": {"address": f"127.0.0.1:{self.ports.connectors_http}"},
            "http.metrics": {"enabled": metrics},
            "iggy": {"address": f"127.0.0.1:{self.ports.iggy_tcp}", "username": USERNAME, "password": PASSWORD},
            "state": {"path": str(self.folder / "connectors-state")},
            "connectors": {"config_type": "local", "config_dir": str(self.folder / "connectors.d")},
        }
        return "\n".join(_table(name, values) for name, values in tables.items())

    def write(self, supervisor_url: str) -> None:
        """Write the settings, and what they refer to."""
        for name in ("connectors.d", "iggy-data", "connectors-state"):
            (self.folder / name).mkdir()
        (self.folder / "connectors.toml").write_text(self.connectors_toml(), encoding="utf-8")
        agent = {
            "state_dir": str(self.state_dir),
            "socket": str(self.socket),
            "shutdown_grace": self.options.shutdown_grace,
            **self.options.agent,
        }
        text = [
            _table("supervisor", {"url": supervisor_url}),
            _table("agent", agent),
            *(self._runtime(runtime) for runtime in self.runtimes),
        ]
        self.settings_file.write_text("\n".join(text), encoding="utf-8")

    def _runtime(self, name: RuntimeName) -> str:
        options = self.options
        iggy = name is RuntimeName.IGGY
        common = {
            "STANDIN_STARTS_FILE": str(self.starts_file),
            "STANDIN_FAULTS_FILE": str(self.faults_file(name)),
            **options.environment,
        }
        home = Home(
            name,
            self.folder,
            self.state_dir,
            self.programs.server if iggy else self.programs.connectors,
            common | (self._iggy_environment() if iggy else self._connectors_environment()),
        )
        times = {"start_timeout": options.start_timeout, "stop_timeout": options.stop_timeout}
        keys = {**self.habitat.settle(home), **times, "action_timeout": options.action_timeout}
        environment = keys.pop("environment", None)
        tables = [_table(f"runtimes.{name}", keys)]
        if environment is not None:
            tables.append(_table(f"runtimes.{name}.environment", environment))
        return "\n".join([*tables, self._probe(name)])

    def _probe(self, name: RuntimeName) -> str:
        options = self.options
        if name is RuntimeName.IGGY:
            keys = {"http": f"http://127.0.0.1:{self.ports.iggy_http}/ping", "expect": "pong"}
        else:
            keys = {"http": f"http://127.0.0.1:{self.ports.connectors_http}/health"}
        times = {"attempt_timeout": options.attempt_timeout, "ready_timeout": options.ready_timeout}
        return _table(f"runtimes.{name}.probe", {**keys, **times, "stable_for": options.stable_for})

    def _iggy_environment(self) -> dict[str, str]:
        ports = self.ports
        return {
            "IGGY_HTTP_ADDRESS": f"127.0.0.1:{ports.iggy_http}",
            "IGGY_TCP_ADDRESS": f"127.0.0.1:{ports.iggy_tcp}",
            "IGGY_QUIC_ADDRESS": f"127.0.0.1:{ports.iggy_quic}",
            "IGGY_WEBSOCKET_ADDRESS": f"127.0.0.1:{ports.iggy_websocket}",
            "IGGY_SYSTEM_PATH": str(self.folder / "iggy-data"),
            "IGGY_SYSTEM_MEMORY_POOL_SIZE": "512 MiB",
            "IGGY_ROOT_USERNAME": USERNAME,
            "IGGY_ROOT_PASSWORD": PASSWORD,
        }

    def _connectors_environment(self) -> dict[str, str]:
        return {"IGGY_CONNECTORS_CONFIG_PATH": str(self.folder / "connectors.toml")}


def _table(name: str, values: Mapping[str, object]) -> str:
    """Write a TOML table; its strings, lists, numbers and booleans look as in JSON."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"
