"""What the tests of the runtimes share: drivers that are closed again, and processes that never outlive their test."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent.protocol import RuntimeName
from agent.runtimes import proc
from agent.runtimes.driver import Observation, Step
from agent.runtimes.process import ProcessDriver
from agent.runtimes.releases import Releases
from agent.runtimes.systemd import SystemdDriver
from tests.fakes.systemd import FakeSystemd, PrivateBus
from tests.runtimes.engine_rig import RealEngine, running_engine
from tests.runtimes.systemd_rig import driver_of, fake_systemd, private_bus

BORN = "echo $$ >> births"
"""The first thing that each of these runtimes does, so that runs can be counted."""
SLEEPER = ("sh", "-c", f"{BORN}; exec sleep 60")


class MakeDriver(Protocol):
    def __call__(self, command: Sequence[str] = SLEEPER, **settings: Any) -> Awaitable[ProcessDriver]: ...


class Steps(list[Step]):
    """Records what a driver is about to do."""

    async def __call__(self, step: Step) -> None:
        self.append(step)

    def words(self) -> list[str]:
        return [f"{step.call}{'!' if step.decisive else ''}" for step in self]


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a runtime; whatever still holds its lock afterwards was started by the test, and is ended."""
    folder = tmp_path / "runtimes" / "iggy"
    folder.mkdir(parents=True)
    yield folder
    for pid in set(proc.holders_of_flock(folder / "lock")) - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def make_driver(folder: Path) -> AsyncIterator[MakeDriver]:
    drivers: list[ProcessDriver] = []

    async def make(command: Sequence[str] = SLEEPER, **settings: Any) -> ProcessDriver:
        defaults: Mapping[str, Any] = {
            "runtime": RuntimeName.IGGY,
            "releases": Releases(folder, RuntimeName.IGGY),
            "environment": {},
            "working_directory": None,
            "stop_timeout": 10.0,
        }
        driver = ProcessDriver(command=command, folder=folder, **{**defaults, **settings})
        await driver.open()
        drivers.append(driver)
        return driver

    yield make
    for driver in drivers:
        await driver.close()


async def eventually(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Poll a condition until it holds."""
    async with asyncio.timeout(within):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def seen(driver: ProcessDriver, condition: Callable[[Observation], bool], *, within: float = 10.0) -> Observation:
    """Look at a runtime until it is as wanted."""
    async with asyncio.timeout(within):
        while True:
            if condition(now := await driver.observe()):
                return now
            await asyncio.sleep(0.01)


def births(folder: Path) -> int:
    """Count how often the runtime was started."""
    path = folder / "births"
    return len(path.read_text().splitlines()) if path.exists() else 0


def python(program: str) -> tuple[str, ...]:
    """A runtime as a small Python program."""
    return (sys.executable, "-I", "-S", "-c", program)


async def said(driver: ProcessDriver, run: Observation, text: str) -> list[str]:
    """Wait until a run has written a line; return all that it wrote."""
    async with asyncio.timeout(10):
        while True:
            lines = await driver.log_tail(run.incarnation, max_bytes=10_000)
            if text in lines:
                return lines
            await asyncio.sleep(0.01)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as bus:
        yield bus


@pytest.fixture
async def systemd(bus: PrivateBus) -> AsyncIterator[FakeSystemd]:
    async with fake_systemd(bus) as systemd:
        yield systemd


@pytest.fixture
async def driver(systemd: FakeSystemd, folder: Path) -> AsyncIterator[SystemdDriver]:
    async with driver_of(systemd.address, folder) as driver:
        yield driver


@pytest.fixture(scope="session")
def engine() -> Iterator[RealEngine]:
    """A Docker Engine for all tests that do not end it."""
    with running_engine() as engine:
        yield engine
