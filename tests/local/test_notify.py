import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.conditions import Condition
from agent.local.notify import ServiceManager
from agent.local.views import status_line
from tests.cli.conftest import clean_environment
from tests.e2e.waiting import until


class Socket:
    """Stands in for PID 1: what was said to it, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address.replace("@", "\0", 1))
        self.lines: list[str] = []

    def heard(self) -> list[str]:
        while True:
            try:
                self.lines += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Socket]:
    with tempfile.TemporaryDirectory(prefix="notify-") as folder:
        path = f"{folder}/socket"
        heard = Socket(path if request.param == "path" else f"@{path}")
        yield heard
        heard.close()


def environment(manager: Socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.address, "OTHER": "stays", **more}


async def nothing_stuck() -> list[str]:
    return []


async def test_ready_and_stopping_are_said_once_and_a_status_only_when_it_is_new(manager: Socket) -> None:
    environ = environment(manager)
    told, status = ServiceManager(environ), ["starting"]
    async with told.telling(lambda: status[0], nothing_stuck):
        await until(lambda: "STATUS=starting" in manager.heard(), "the first status is told")
        told.ready()
        told.ready()
        told.wake()
        await asyncio.sleep(0)
        status[0] = "node 1;\n  degraded"
        told.stopping()
        await until(lambda: "STATUS=node 1; degraded" in manager.heard(), "the new status is told")
    assert manager.heard() == ["STATUS=starting", "READY=1", "STOPPING=1", "STATUS=node 1; degraded"]
    assert environ == {"OTHER": "stays"}, "a child could speak in the agent's name"


async def test_the_watchdog_is_fed_only_while_everything_moves(manager: Socket) -> None:
    stuck: list[str] = []
    asked = 0

    async def look() -> list[str]:
        nonlocal asked
        asked += 1
        return list(stuck)

    told = ServiceManager(environment(manager, WATCHDOG_USEC="30000", WATCHDOG_PID=str(os.getpid())))
    assert told.watchdog == 0.03
    async with told.telling(lambda: "", look):
        await until(lambda: manager.heard().count("WATCHDOG=1") >= 3, "the watchdog is fed")
        stuck.append("receiver")
        before = asked
        await until(lambda: asked >= before + 2, "it was looked at twice")
        fed = manager.heard().count("WATCHDOG=1")
        await until(lambda: asked >= before + 6, "it was looked at four times more")
        assert manager.heard().count("WATCHDOG=1") == fed
        stuck.clear()
        await until(lambda: manager.heard().count("WATCHDOG=1") > fed, "the watchdog is fed again")


@pytest.mark.parametrize("wrong", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "never"}, {"WATCHDOG_USEC": ""}])
def test_a_watchdog_that_is_not_for_this_process_is_left_alone(manager: Socket, wrong: dict[str, str]) -> None:
    environ = environment(manager, **({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())} | wrong))
    assert ServiceManager(environ).watchdog is None
    assert environ == {"OTHER": "stays"}


async def test_without_a_service_manager_nothing_is_done() -> None:
    told = ServiceManager({})

    def never() -> str:
        raise AssertionError

    async with told.telling(never, nothing_stuck):
        told.ready()
        told.stopping()
        await asyncio.sleep(0)
    assert told.watchdog is None


async def test_what_could_not_be_said_is_said_when_the_manager_is_back() -> None:
    with tempfile.TemporaryDirectory(prefix="notify-") as folder:
        told = ServiceManager({"NOTIFY_SOCKET": f"{folder}/socket"})
        told.ready()
        manager = Socket(f"{folder}/socket")
        try:
            async with told.telling(lambda: "up", nothing_stuck):
                await until(lambda: len(manager.heard()) == 2, "both are told")
            assert manager.heard() == ["READY=1", "STATUS=up"]
        finally:
            manager.close()


StartAgent = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start_agent(tmp_path: Path) -> AsyncIterator[StartAgent]:
    settings = tmp_path / "agent.toml"
    settings.write_text('[supervisor]\nurl = "http://127.0.0.1:9"\n[runtimes.iggy]\ndriver="process"\ncommand=["x"]\n')
    started: list[asyncio.subprocess.Process] = []

    async def start(**environ: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "run", "--config", str(settings)),
            env=clean_environment(STATE_DIRECTORY=str(tmp_path / "state"), RUNTIME_DIRECTORY=str(tmp_path), **environ),
            stdout=asyncio.subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_an_agent_that_is_not_enrolled_is_ready_says_so_and_feeds_the_watchdog(
    start_agent: StartAgent,
) -> None:
    with tempfile.TemporaryDirectory(prefix="notify-") as folder:
        manager = Socket(f"{folder}/socket")
        try:
            process = await start_agent(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="300000")
            await until(lambda: "READY=1" in manager.heard() and "WATCHDOG=1" in manager.heard(), "it is ready")
            wanted = "STATUS=not enrolled; degraded: this machine is not a node of any deployment yet"
            await until(lambda: wanted in manager.heard(), "it says what is wrong")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert "STOPPING=1" in manager.heard()
        finally:
            manager.close()


def test_the_status_line_says_what_matters_first() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    wrong = [Condition("a", "the Supervisor is away", None, since), Condition("b", "more", None, since)]
    assert status_line(7, acting={}, conditions=[], stopping=False) == "node 7"
    assert (
        status_line(7, acting={"iggy": 12}, conditions=wrong, stopping=True)
        == "node 7; stopping; activity 12 on iggy; degraded: the Supervisor is away (and 1 more)"
    )
