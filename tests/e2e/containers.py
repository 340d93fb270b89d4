"""Runtimes as containers of an Engine of the tests' own: stand-ins that see this machine's files, network and pids.

A container has a volume of its own that nothing names, as images of databases have: it must never be lost.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors

from agent.protocol import DriverKind
from agent.runtimes.containers import REPLACES_LABEL
from agent.runtimes.recreation import KEPT
from tests import standins
from tests.e2e.births import Birth
from tests.e2e.habitats import Home, unique_name
from tests.faults.tally import LostError
from tests.runtimes.engine_rig import IMAGE, NEVER, RealEngine, own_engine

NAMED = "HABITAT_CONTAINER"
"""The variable by which a run is known to be one of a node's containers."""
QUIET = 0.3
"""Seconds in which nothing may come up before a node counts as dark: a dead agent's call may be on its way still."""
PATIENCE = 20.0
"""Seconds until what has to be so is so; the Engine is busy with many containers at a time."""
LIBRARIES = (Path("/usr"), Path("/lib"), Path("/lib64"))
"""What programs of this machine are linked with."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A node's container, as it was made."""

    name: str
    volume: str


class Containers:
    """The Docker driver's.

    Args:
        engine: Has them all.
        policy: Their restart policy.
        nodes: How many nodes share a stage; a recovery waits for seconds.
    """

    driver = DriverKind.DOCKER
    ready_within = 12.0

    def __init__(self, engine: RealEngine, policy: str = "no", *, nodes: int = 16) -> None:
        self.nodes = nodes
        self._engine = engine
        self._policy = policy
        self._version = engine.api.api_version
        self._settled: dict[Path, Settled] = {}

    def settle(self, home: Home) -> dict[str, Any]:
        """Make the container."""
        name = unique_name(home)
        host = {
            "NetworkMode": "host",
            "PidMode": "host",
            "RestartPolicy": {"Name": self._policy},
            "Binds": [*_seen(), f"{home.folder}:{home.folder}"],
        }
        made = {
            "Image": IMAGE,
            "Entrypoint": list(home.command),
            "Env": [f"{key}={value}" for key, value in {**home.environment, NAMED: name}.items()],
            "Volumes": {"/data": {}},
            "HostConfig": host,
        }
        with self._client() as api:
            api.create_container_from_config(made, name)  # type: ignore[no-untyped-call]  # the stub has no types for it
            self._settled[home.state_dir] = Settled(name, _volume(api.inspect_container(name)))
        return {"driver": str(self.driver), "container": name}

    def leave(self, state_dir: Path, starts_file: Path) -> None:
        """Remove the container, what a recreation left, and their volumes."""
        settled = self._settled.pop(state_dir, None)
        if settled is None:
            return
        self._quiet(settled.name, self._remove)

    def black_out(self, state_dir: Path, starts_file: Path, *, boots: bool) -> None:
        """Kill what runs, and what the Engine is about to start."""
        self._quiet(self._settled[state_dir].name, self._kill)

    def incarnation(self, birth: Birth, boot_id: str) -> str:
        """Return the container's short id, and when the Engine started it.

        Empty when the Engine does not know when: one that was killed in the middle of its first start takes it over.

        Raises:
            AssertionError: The Engine does not know of it.
        """
        with self._client() as api:
            found = api.inspect_container(birth.environment[NAMED])
        if found["State"]["Pid"] != birth.pid:
            msg = f"{birth} is not what the Engine says that runs: {found['State']}"
            raise AssertionError(msg)
        started_at = found["State"]["StartedAt"]
        return "" if started_at == NEVER else f"{found['Id'][:12]}@{started_at}"

    def check(self, state_dir: Path, *, proven: bool) -> None:
        """Check that there is the one container, with its volume and restart policy; and the way back, if need be."""
        settled = self._settled[state_dir]
        deadline = time.monotonic() + PATIENCE
        with self._client() as api:
            while (names := _names(api, settled.name)) not in self._allowed(api, settled, proven=proven):
                if time.monotonic() >= deadline:  # it may go on until what was found is durable
                    msg = f"there is not {settled.name} alone, but {names}"
                    raise LostError(msg)
                time.sleep(0.05)
            for found in [api.inspect_container(name) for name in names]:
                if _volume(found) != settled.volume:
                    msg = f"{found['Name']} has volume {_volume(found)}, and had {settled.volume}"
                    raise LostError(msg)
            policy = api.inspect_container(settled.name)["HostConfig"]["RestartPolicy"]["Name"]
        if policy != self._policy:
            msg = f"{settled.name} has restart policy {policy}, and had {self._policy}"
            raise LostError(msg)

    def _allowed(self, api: docker.APIClient, settled: Settled, *, proven: bool) -> list[set[str]]:
        """Say which containers there may be: the one before, which is down, until the one in use was seen ready."""
        alone = {settled.name}
        if proven:
            return [alone]
        try:
            in_use, kept = [api.inspect_container(name) for name in (settled.name, settled.name + KEPT)]
        except docker.errors.NotFound:
            return [alone]
        is_way_back = (in_use["Config"]["Labels"] or {}).get(REPLACES_LABEL) == kept["Id"] and not kept["State"][
            "Running"
        ]
        return [alone, {settled.name, settled.name + KEPT}] if is_way_back else [alone]

    def agent_environment(self) -> Mapping[str, str]:
        """Return the address of the Engine."""
        return {"DOCKER_HOST": self._engine.address}

    def end_middleman(self, *, hard: bool, gone: Callable[[], None]) -> None:
        """End the Engine by SIGKILL, or as an operator does, and start it again; all containers end with that."""
        if hard:
            self._engine.crash()
        else:
            self._engine.stop()
        gone()
        self._engine.start()
        self.mend()

    def recorded(self, state_dir: Path) -> set[str]:
        """Return when a node's containers were started, as the Engine has written it down."""
        return self._engine.recorded_starts(self._settled[state_dir].name)

    def mend(self) -> None:
        """Put right what an Engine that was killed cannot put right by itself."""
        self._engine.mend()

    # --- what is done to all of a node's, until there is nothing to do for a moment

    def _quiet(self, name: str, act: Callable[[docker.APIClient, str], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        quiet_since = time.monotonic()
        with self._client() as api:
            while time.monotonic() - quiet_since < QUIET:
                if any([act(api, found) for found in _names(api, name)]):  # noqa: C419 - all of them, each time
                    quiet_since = time.monotonic()
                if time.monotonic() >= deadline:
                    msg = f"cannot come to an end with {name}: {_names(api, name)} are there"
                    raise TimeoutError(msg)
                time.sleep(0.03)

    def _remove(self, api: docker.APIClient, name: str) -> bool:
        with suppress(docker.errors.APIError):  # it is being removed, or has another name by now: looked at again
            api.remove_container(name, force=True, v=True)
        return True

    def _kill(self, api: docker.APIClient, name: str) -> bool:
        """Kill it if it is up; while the Engine starts it, the look waits for that."""
        try:
            if not api.inspect_container(name)["State"]["Running"]:
                return False
            api.kill(name, "SIGKILL")
        except docker.errors.APIError:  # it ended meanwhile, or has another name by now: looked at again
            return True
        return True

    @contextmanager
    def _client(self) -> Iterator[docker.APIClient]:
        """Open a client of its own for each thread: a session is not made for sharing."""
        api = docker.APIClient(self._engine.address, version=self._version, timeout=60)
        api.trust_env = False
        try:
            yield api
        finally:
            api.close()


def _names(api: docker.APIClient, prefix: str) -> set[str]:
    names = {name[1:] for found in api.containers(all=True) for name in found["Names"]}
    return {name for name in names if name == prefix or name.startswith(f"{prefix}.")}


def _volume(found: Mapping[str, Any]) -> str:
    (volume,) = [str(mount["Name"]) for mount in found["Mounts"] if mount["Type"] == "volume"]
    return volume


def _seen() -> list[str]:
    """List what a stand-in needs of this machine, read-only: its Python, libraries, and its own code."""
    wanted = {*LIBRARIES, Path(standins.__file__).parent, Path(sys.prefix), Path(sys.base_prefix)}
    there = {path for path in wanted if path.is_dir()}
    return [f"{path}:{path}:ro" for path in sorted(there) if there.isdisjoint(path.parents)]


@contextmanager
def containers(policy: str = "no") -> Iterator[Containers]:
    """Start an Engine for them, and take it down.

    Raises:
        EngineMissingError: There can be none here.
    """
    with own_engine() as engine:
        yield Containers(engine, policy)
