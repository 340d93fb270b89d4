"""Runs of the two programs, stand-in or real, as the tests see them: argv, environment, ports, output, exit code."""

import http.client
import json
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

PATIENCE = 20.0
"""Seconds within which everything that is waited for has to happen; the programs need a fraction of one."""

USERNAME, PASSWORD = "iggy", "a-password"
TRANSPORTS = ("http", "tcp", "quic", "websocket")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Programs:
    """The two programs under test.

    Attributes:
        server: the argv prefix of iggy-server.
        connectors: the argv prefix of iggy-connectors.
        environment: what both need in their environment.
        legacy: whether the server is of 0.8, the generation before the rewrite.
        settling: for how many seconds a server has to answer before it is used: real ones answer before all of their
            shards are up, and 0.8 can then end with 1 when it is stopped.
    """

    server: list[str]
    connectors: list[str]
    environment: Mapping[str, str]
    legacy: bool
    settling: float = 0


class Answer(NamedTuple):
    """What an HTTP request was answered with."""

    status: int
    content_type: str | None
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


def until(condition: Callable[[], T], what: str) -> T:
    """Poll a condition until it is true and return what it gave; fail after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain: {what}"
        time.sleep(0.005)
    return result


def free_port() -> int:
    """Find a port that is free for TCP and UDP, below the range that the kernel hands out by itself."""
    for _ in range(200):
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    msg = "cannot find a free port: 200 of 12000 are taken"
    raise AssertionError(msg)


def is_open(port: int) -> bool:
    """Tell whether somebody accepts on a TCP port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def taken(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    """Hold a port, as another program that has it would."""
    with socket.socket(type=kind) as other:
        other.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        yield


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Answer:
    """Send one HTTP request; a body goes as JSON, the timeout is in seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        content = None if body is None else json.dumps(body)
        kind = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, content, {**kind, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.getheader("content-type"), response.read().decode())
    finally:
        connection.close()


class Run:
    """One process of a program, with a clean environment and its output in files.

    Args:
        argv: the program and its arguments.
        environment: all of its environment.
        folder: its working directory; the output goes there too.
    """

    def __init__(self, argv: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._stdout = folder / f"stdout-{secrets.token_hex(4)}"
        self._stderr = self._stdout.with_name(self._stdout.name.replace("out", "err"))
        with self._stdout.open("w") as out, self._stderr.open("w") as err:
            self.process = subprocess.Popen(
                argv, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def coloured(self) -> str:
        """What it wrote on stdout."""
        return self._stdout.read_text()

    @property
    def log(self) -> str:
        """What it wrote on stdout, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.coloured)

    @property
    def errors(self) -> str:
        """What it wrote on stderr."""
        return self._stderr.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for its end and return the exit code, negative for a signal."""
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def end(self) -> None:
        """Make sure that it has ended."""
        self.process.kill()
        self.process.wait()


class Server:
    """A server with ports and a data folder of its own, to be started any number of times."""

    def __init__(self, programs: Programs, folder: Path, runs: list[Run]) -> None:
        folder.mkdir()
        self.programs = programs
        self.folder = folder
        self.data = folder / "data"
        self.ports = {transport: free_port() for transport in TRANSPORTS}
        self._runs = runs

    @property
    def http(self) -> int:
        return self.ports["http"]

    @property
    def current_config(self) -> Path:
        return self.data / "runtime" / "current_config.toml"

    def start(
        self,
        *arguments: str,
        without: tuple[str, ...] = (),
        changes: Mapping[str, str] = MappingProxyType({}),
        **environment: str,
    ) -> Run:
        """Start it, with changes to its environment, and do not wait."""
        addresses = {f"IGGY_{name.upper()}_ADDRESS": f"127.0.0.1:{port}" for name, port in self.ports.items()}
        environment = {
            **self.programs.environment,
            **addresses,
            "IGGY_SYSTEM_PATH": str(self.data),
            "IGGY_SYSTEM_MEMORY_POOL_SIZE": "512 MiB",
            "IGGY_ROOT_USERNAME": USERNAME,
            "IGGY_ROOT_PASSWORD": PASSWORD,
            **changes,
            **environment,
        }
        chosen = {name: value for name, value in environment.items() if name not in without}
        self._last = run = Run([*self.programs.server, *arguments], chosen, self.folder)
        self._runs.append(run)
        return run

    def answers(self) -> bool:
        """Tell whether `/ping` is answered with `pong`."""
        try:
            answer = ask(self.http, "/ping")
        except OSError:
            return False
        return (answer.status, answer.body) == (200, "pong")

    def ready(self, run: Run) -> Run:
        """Wait until a run answers, and has for a while."""
        until(lambda: self.answers() or not run.alive, f"a pong from {run.log} {run.errors}")
        since = time.monotonic()
        while time.monotonic() - since < self.programs.settling:
            assert self.answers()
        assert run.alive, f"ended while starting: {run.log} {run.errors}"
        return run

    def started(self, *arguments: str, without: tuple[str, ...] = (), **environment: str) -> Run:
        """Start it and wait until it is ready."""
        return self.ready(self.start(*arguments, without=without, changes=environment))

    def restarted(self) -> Run:
        """Stop its last run, start it and wait until it is ready."""
        self._last.stop()
        return self.started()

    def sign_in(self) -> dict[str, str]:
        """Sign the root user in and return the header that proves it."""
        answer = ask(self.http, "/users/login", method="POST", body={"username": USERNAME, "password": PASSWORD})
        assert answer.status == 200, answer
        return {"authorization": f"Bearer {answer.json()['access_token']['token']}"}


class Connectors:
    """A connectors runtime with a port and folders of its own, to be started any number of times."""

    def __init__(self, programs: Programs, folder: Path, iggy_port: int, runs: list[Run]) -> None:
        self.programs = programs
        self.folder = folder
        self.files = folder / "connectors"
        self.files.mkdir(parents=True)
        self.port = free_port()
        self._iggy_port = iggy_port
        self._runs = runs

    def start(self, *arguments: str, **environment: str) -> Run:
        """Start it, with changes to its environment, and do not wait."""
        chosen = {
            **self.programs.environment,
            "IGGY_CONNECTORS_HTTP_ADDRESS": f"127.0.0.1:{self.port}",
            "IGGY_CONNECTORS_IGGY_ADDRESS": f"127.0.0.1:{self._iggy_port}",
            "IGGY_CONNECTORS_IGGY_USERNAME": USERNAME,
            "IGGY_CONNECTORS_IGGY_PASSWORD": PASSWORD,
            "IGGY_CONNECTORS_STATE_PATH": str(self.folder / "state"),
            "IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": str(self.files),
            **environment,
        }
        run = Run([*self.programs.connectors, *arguments], chosen, self.folder)
        self._runs.append(run)
        return run

    def healthy(self) -> bool:
        """Tell whether `/health` is answered with 200."""
        try:
            return ask(self.port, "/health").status == 200
        except OSError:
            return False

    def ready(self, run: Run) -> Run:
        """Wait until a run is healthy."""
        until(lambda: self.healthy() or not run.alive, f"health of {run.log} {run.errors}")
        assert run.alive, f"ended while starting: {run.log} {run.errors}"
        return run

    def started(self, **environment: str) -> Run:
        """Start it and wait until it is healthy."""
        return self.ready(self.start(**environment))

    def stats(self) -> Any:
        """Read `/stats`."""
        return ask(self.port, "/stats").json()
