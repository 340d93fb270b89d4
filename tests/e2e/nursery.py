"""Forks agents from a process that has imported everything: a start costs 20 ms of CPU instead of 700.

What comes out is an agent like any other: a process and a session of its own, with an environment and a log of its own.

As a program, `python nursery.py SOCKET DRIVER`: a connection sends one line of JSON, `{"arguments", "environment",
"folder", "log", "points", "hasty", "tls", "launch_delay", "etc"}`, is told the pid, and, when that process has ended,
its wait status. It ends with its standard input. A file `boot_id` in the folder `points` is the boot id that the agent
sees.
"""

import asyncio
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.protocol import DriverKind
from tests.e2e.process import clean_environment
from tests.e2e.waiting import until

CONTEXT = ssl.create_default_context()
"""For all agents, which use plain HTTP here: making one takes as much CPU as the rest of a start."""
NEEDED: dict[DriverKind, tuple[str, ...]] = {
    DriverKind.PROCESS: (),
    DriverKind.DOCKER: ("agent.runtimes.docker",),
    DriverKind.SYSTEMD: ("agent.runtimes.systemd",),
}
"""What an agent would import when it makes its runtimes."""
WITHOUT = "WITHOUT_PROTECTION"
"""Names the protection that the agents of a nursery lack: see tests/faults/mutations.py."""
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Manner:
    """How an agent differs from the usual one of a nursery.

    Attributes:
        hasty: Its longest delays and read timeouts in talking to the Supervisor are seconds, not minutes.
        ca_file: It verifies the Supervisor by this, as an agent outside of a nursery does.
        launch_delay: Seconds that its launchers take before they do anything.
        etc: Its files stand in the place of those of the same names in `/etc`, for this agent alone.
    """

    hasty: bool = False
    ca_file: Path | None = None
    launch_delay: float = 0.0
    etc: Path | None = None


USUAL = Manner()


class Child:
    """One process of a nursery."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self._writer = writer
        self._ended = asyncio.ensure_future(self._wait(reader))

    async def _wait(self, reader: asyncio.StreamReader) -> int:
        try:
            return os.waitstatus_to_exitcode(int(await reader.readline()))
        finally:
            self._writer.close()

    async def wait(self) -> int:
        """Wait for its end, and return its exit code, negative for a signal."""
        return await asyncio.shield(self._ended)

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as was heard."""
        return not self._ended.done()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; it is not reaped, and so keeps its pid, before `alive` can know."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send(signal.SIGKILL)


class Nursery:
    """Starts agents; all that it started end with it.

    Args:
        folder: For its socket and its log.
        driver: Of all its agents; what it needs is imported once.
    """

    def __init__(self, folder: Path, driver: DriverKind = DriverKind.PROCESS) -> None:
        self._driver = driver
        self._socket = folder / "nursery.sock"
        self._log = folder / "nursery.log"
        self._process: asyncio.subprocess.Process | None = None
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        environment = {name: value for name, value in clean_environment().items() if not name.startswith("COVERAGE")}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.e2e.nursery", str(self._socket), str(self._driver)),
                cwd=REPOSITORY,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await until(self._socket.exists, "the nursery listens")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            await child.wait()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    async def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        log: Path,
        points: Path,
        environment: Mapping[str, str] | None = None,
        manner: Manner = USUAL,
    ) -> Child:
        """Start an agent.

        Args:
            arguments: Of `iggy-agent`.
            folder: It runs there.
            log: Its output is appended there.
            points: The folder of `crashing_agent`.
            environment: More variables than the clean ones.
            manner: How it differs from the usual one.
        """
        reader, writer = await asyncio.open_unix_connection(self._socket)
        request = {
            "arguments": list(arguments),
            "environment": {**clean_environment(), **(environment or {})},
            "folder": str(folder),
            "log": str(log),
            "points": str(points),
            "hasty": manner.hasty,
            "tls": manner.ca_file is not None,
            "launch_delay": manner.launch_delay,
            "etc": manner.etc and str(manner.etc),
        }
        writer.write(json.dumps(request).encode() + b"\n")
        child = Child(int(await reader.readline()), reader, writer)
        self._children = [known for known in self._children if known.alive] + [child]
        return child


# --- the program ------------------------------------------------------------------------------------------------------


def _become_agent(request: dict[str, Any], driver: DriverKind) -> int:
    from agent import cli
    from agent.link import client
    from agent.runtimes import driver as driver_module
    from tests.e2e import crashing_agent, haste, own_etc

    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)  # the nursery's own
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["etc"]:
        own_etc.enter(Path(request["etc"]))
    if request["launch_delay"]:
        _slow_launchers_down(Path(request["points"]), request["launch_delay"])
    if request["hasty"]:
        haste.install()
    if not request["tls"]:
        setattr(client, "tls_context", lambda *_: CONTEXT)  # noqa: B010 - a name that it only imports
    boot_id = Path(request["points"]) / "boot_id"
    if boot_id.exists():
        driver_module.BOOT_ID_FILE = boot_id
    crashing_agent.install(Path(request["points"]), driver)
    return cli.main(request["arguments"])


def _slow_launchers_down(folder: Path, seconds: float) -> None:
    from agent.runtimes import spawn

    program = folder / spawn.PROGRAM.name
    program.write_text(f"import time\ntime.sleep({seconds})\n{spawn.PROGRAM.read_text()}")
    spawn.PROGRAM = program


def _fork(request: dict[str, Any], driver: DriverKind) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = _become_agent(request, driver)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, this copy of the nursery has to end here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(told: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        connection = told.pop(pid, None)
        if connection is not None:
            with suppress(BrokenPipeError):  # whoever asked is gone
                connection.sendall(f"{status}\n".encode())
            connection.close()


def serve(path: str, driver: DriverKind) -> None:
    """Fork what is asked for, until standard input ends."""
    import agent.cli.run
    import agent.daemon  # noqa: F401 - what every agent needs, imported once

    for module in NEEDED[driver]:
        importlib.import_module(module)
    if without := os.environ.get(WITHOUT):
        from tests.faults import mutations

        mutations.switch_off(without, Path(path).parent)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{path}.new")
    server.listen(64)
    Path(f"{path}.new").rename(path)
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.collect()
    gc.freeze()  # a collection would copy every page that a child shares with this process
    selector = selectors.DefaultSelector()
    for file in (server, woken, sys.stdin):
        selector.register(file, selectors.EVENT_READ)
    children: dict[int, socket.socket] = {}
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if sys.stdin in ready:  # whoever asked is gone, in whatever way
            for pid in children:  # not reaped yet, so the pids are theirs
                os.kill(pid, signal.SIGKILL)
            return
        if woken in ready:
            woken.recv(4096)
            _reap(children)
        if server in ready:
            connection, _ = server.accept()
            with connection.makefile("rb") as file:
                pid = _fork(json.loads(file.readline()), driver)
            children[pid] = connection
            connection.sendall(f"{pid}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], DriverKind(sys.argv[2]))
