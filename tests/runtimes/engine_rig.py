"""A Docker Engine of the tests' own: its own socket and folders, no bridge, nothing pulled; taken down by its pid.

Where it cannot be had, the tests that need it are skipped, saying what is missing; in CI they fail. What is no test
opens it by `own_engine`, and hears of that as an error.
"""

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from agent.protocol import RuntimeName
from agent.runtimes.docker import DockerDriver
from agent.runtimes.driver import Observation
from agent.runtimes.releases import Releases

BUSYBOX = ("busybox", "/bin/busybox", "/usr/bin/busybox")
APPLETS = ("sh", "sleep", "cat", "true", "false", "echo", "env", "dd", "head", "kill", "nc", "tail")
IMAGE = "runtime:1"
RICH_IMAGE = "runtime:rich"
"""One with defaults of its own: environment, labels, entry point, folder, a volume, a port, a health check."""
TASKS = "exec/containerd/daemon/io.containerd.runtime.v2.task/moby"
"""Where containerd has a folder for each container that runs, below that of its dockerd."""
RUNS = "exec/runtime-runc/moby"
"""Where runc has one."""
NEVER = "0001-01-01T00:00:00Z"
"""When one was started that never was."""
SLEEPER = ("/bin/sh", "-c", "trap 'exit 0' TERM; echo up; sleep 1000 & wait")
"""Ends at once on SIGTERM."""
DEAF = ("/bin/sh", "-c", "trap '' TERM; echo up; sleep 1000 & wait; sleep 1000")
"""Has to be killed."""


class EngineMissingError(Exception):
    """An Engine cannot be had here, or did not come up; says why."""


def missing() -> list[str]:
    """Say what a Docker Engine lacks here."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root")
    lacks += [
        f"{program} (Debian: docker.io)" for program in ("dockerd", "ctr", "runc") if shutil.which(program) is None
    ]
    if static_busybox() is None:
        lacks.append("a static busybox (Debian: busybox-static)")
    return lacks


def static_busybox() -> str | None:
    """Find a busybox that needs no libraries."""
    for name in BUSYBOX:
        path = shutil.which(name)
        if path and b"/ld-linux" not in Path(path).read_bytes():
            return path
    return None


@dataclass
class RealEngine:
    """One `dockerd`, with images made here."""

    folder: Path
    process: "subprocess.Popen[bytes] | None" = None
    api: docker.APIClient = field(init=False)

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def start(self) -> None:
        command = ["dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
        command += ["-H", self.address, "--pidfile", f"{self.folder}/pid"]
        command += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--log-level=warn"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock, suppress(OSError):
                knock.connect(f"{self.folder}/docker.sock")
                break
            if time.monotonic() > deadline or self.process.poll() is not None:
                msg = f"dockerd did not come up: {self.tail()}"
                raise EngineMissingError(msg)
            time.sleep(0.05)
        self.api = docker.APIClient(self.address, version="auto", timeout=60)
        self.api.trust_env = False

    def stop(self) -> None:
        """End it as an operator does; its containers end with it."""
        if self.process is not None:
            self.api.close()
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def crash(self) -> None:
        """Kill it, and with it its containerd; its containers go on until the next one comes up, which ends them."""
        if self.process is None:
            return
        left = self.folder / "exec" / "containerd" / "containerd.pid"
        containerd = int(left.read_text())
        self.api.close()
        self.process.kill()
        self.process.wait(10)
        self.process = None
        deadline = time.monotonic() + 10
        while _runs(containerd):
            if time.monotonic() > deadline:
                msg = f"containerd, process {containerd}, outlives its dockerd"
                raise EngineMissingError(msg)
            time.sleep(0.01)
        left.unlink()  # until it is reaped by whoever has to, the next dockerd would wait for it

    def recorded_starts(self, name: str) -> set[str]:
        """Return when containers of a name, or of what a recreation calls them, were last started, by its own files.

        It reads them when it comes up: a start that is not there it knows nothing of.
        """
        found = set()
        for file in (self.folder / "data" / "containers").glob("*/config.v2.json"):
            record = json.loads(file.read_bytes())
            known = record["Name"].removeprefix("/")
            if known == name or known.startswith(f"{name}."):
                found.add((record["ID"], record["State"]["StartedAt"]))
        return {f"{container} {started_at}" for container, started_at in found if started_at != NEVER}

    def mend(self) -> None:
        """Remove from containerd and runc what a dockerd that was killed in the middle of a start has left there.

        Until 20.10 at least, a dockerd does not know of it, and refuses each later start: `… already exists`.

        Raises:
            EngineMissingError: It cannot be removed.
        """
        deadline = time.monotonic() + 30
        while found := self._half_started():
            time.sleep(0.3)  # what was about to end, or to start, has another time or is gone by then
            for container, _ in found & self._half_started():
                self._clear_away(container)
            if time.monotonic() > deadline:
                msg = f"containerd still has what dockerd does not know of: {found}"
                raise EngineMissingError(msg)

    def _half_started(self) -> set[tuple[str, str]]:
        """List what containerd or runc has and what does not run, or is gone, with the time of its last start."""
        there = set(self._shims())
        for folder in (self.folder / TASKS, self.folder / RUNS):
            there |= {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        found = set()
        for container in there:
            try:
                state = self.inspect(container)["State"]  # waits for a start that is under way
            except docker.errors.NotFound:
                state = {"Running": False, "StartedAt": ""}
            if not state["Running"]:
                found.add((container, str(state["StartedAt"])))
        return found

    def _clear_away(self, container: str) -> None:
        """End what a start has left: containerd forgets a shim when that is gone."""
        for pid in self._shims().get(container, []):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        address = str(self.folder / "exec" / "containerd" / "containerd.sock")
        for command in (
            ["runc", "--root", str(self.folder / RUNS), "delete", "--force", container],
            ["ctr", "--address", address, "--namespace", "moby", "tasks", "delete", "--force", container],
            ["ctr", "--address", address, "--namespace", "moby", "containers", "delete", container],
        ):
            subprocess.run(command, check=False, capture_output=True, timeout=30)  # it may be gone by then
        for folder in (TASKS, RUNS):
            shutil.rmtree(self.folder / folder / container, ignore_errors=True)

    def _shims(self) -> dict[str, list[int]]:
        """Find what keeps the containers of this Engine, by their ids: `containerd-shim-… -id ID -address SOCKET`."""
        found: dict[str, list[int]] = {}
        address = str(self.folder / "exec" / "containerd" / "containerd.sock")
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):
                words = entry.read_text(errors="replace").split("\0")
                if address in words and "-id" in words:
                    found.setdefault(words[words.index("-id") + 1], []).append(int(entry.parent.name))
        return found

    def tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def make_images(self) -> None:
        busybox = static_busybox()
        assert busybox is not None
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(busybox, "bin/busybox")
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
            for name in ("tmp", "data", "proc", "sys", "dev"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
        data = buffer.getvalue()
        self.api.import_image_from_data(data, repository="runtime", tag="1")
        changes = ["ENV FROM_IMAGE=yes", "LABEL made-by=tests", 'ENTRYPOINT ["/bin/sh", "-c"]', 'CMD ["sleep 1000"]']
        changes += ["WORKDIR /tmp", "VOLUME /data", "EXPOSE 8080/tcp"]
        changes += ["HEALTHCHECK --interval=1s CMD true"]
        self.api.import_image_from_data(data, repository="runtime", tag="rich", changes=changes)

    def create(self, name: str, command: Any = SLEEPER, **body: Any) -> str:
        """Make a container, on the host's network; returns its id."""
        host = {"NetworkMode": "host", **body.pop("HostConfig", {})}
        made = self.api.create_container_from_config(  # type: ignore[no-untyped-call]  # the stub has no types for it
            {"Image": IMAGE, "Cmd": list(command), "HostConfig": host, **body}, name
        )
        return str(made["Id"])

    def inspect(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.api.inspect_container(name)
        return found

    def names(self, prefix: str) -> set[str]:
        """Name the containers that begin so."""
        names = {name[1:] for found in self.api.containers(all=True) for name in found["Names"]}
        return {name for name in names if name.startswith(prefix)}

    def clear(self, prefix: str) -> None:
        """Remove what a test made."""
        for name in self.names(prefix):
            with suppress(docker.errors.APIError):
                self.api.remove_container(name, force=True, v=True)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running_engine() -> Iterator[RealEngine]:
    """Start an Engine for a test, and take it down again; where there can be none, it is skipped, or fails in CI."""
    if lacks := missing():
        message = f"a Docker Engine cannot be had here; missing: {', '.join(lacks)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with own_engine() as engine:
        yield engine


@contextmanager
def own_engine() -> Iterator[RealEngine]:
    """Start an Engine, and take it down again.

    Raises:
        EngineMissingError: It cannot be had here, or it did not come up.
    """
    if lacks := missing():
        msg = f"cannot start a Docker Engine; missing: {', '.join(lacks)}"
        raise EngineMissingError(msg)
    folder = Path(tempfile.mkdtemp(prefix="engine-"))  # short: a socket's path has 107 bytes
    engine = RealEngine(folder)
    try:
        engine.start()
        engine.make_images()
        yield engine
        for container in engine.api.containers(all=True):
            engine.api.remove_container(container["Id"], force=True, v=True)
        engine.mend()
    finally:
        engine.stop()
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def unmount_below(folder: Path) -> None:
    """Take away what dockerd leaves mounted: the namespace of the host's network, and more after a kill."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if Path(mount).is_relative_to(folder)]):
        subprocess.run(["umount", "--lazy", mount], check=False)


def a_name() -> str:
    """A name that no other test uses."""
    return f"iggy-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def driver_of(address: str, container: str, folder: Path, **settings: Any) -> AsyncIterator[DockerDriver]:
    defaults: dict[str, Any] = {
        "runtime": RuntimeName.IGGY,
        "container": container,
        "folder": folder,
        "releases": Releases(folder, RuntimeName.IGGY),
        "start_timeout": 20.0,
        "stop_timeout": 5.0,
        "settle_pause": 0.05,
    }
    driver = DockerDriver(**{**defaults, "address": address, **settings})
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def settled_as(driver: DockerDriver, *states: str, within: float = 15.0) -> Observation:
    """Look until it is as wanted, woken by the Engine's events alone."""
    async with asyncio.timeout(within):
        while True:
            if (seen := await driver.observe()).state in states:
                return seen
            await driver.wait_for_change()
