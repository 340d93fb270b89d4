"""What the tests of the systemd driver share: a private bus, a systemd that does what a test says, and a driver."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeName
from agent.runtimes.bus import SystemdBus
from agent.runtimes.driver import Observation
from agent.runtimes.releases import Releases
from agent.runtimes.systemd import SystemdDriver
from tests.fakes.systemd import FakeSystemd, PrivateBus

UNIT = "iggy.service"


@contextmanager
def private_bus(folder: Path) -> Iterator[PrivateBus]:
    if shutil.which("dbus-daemon") is None and "CI" not in os.environ:
        pytest.skip("dbus-daemon is not installed (Debian: dbus)")
    bus = PrivateBus(folder)
    bus.start()
    try:
        yield bus
    finally:
        bus.kill()


@asynccontextmanager
async def fake_systemd(bus: PrivateBus) -> AsyncIterator[FakeSystemd]:
    systemd = FakeSystemd(bus.address)
    await systemd.connect()
    try:
        yield systemd
    finally:
        await systemd.disconnect()


@asynccontextmanager
async def driver_of(address: str, folder: Path, **settings: Any) -> AsyncIterator[SystemdDriver]:
    defaults: dict[str, Any] = {
        "runtime": RuntimeName.IGGY,
        "unit": UNIT,
        "folder": folder,
        "releases": Releases(folder, RuntimeName.IGGY),
        "start_timeout": 20.0,
        "stop_timeout": 20.0,
        "settle_pause": 0.02,
    }
    driver = SystemdDriver(**{**defaults, "bus": SystemdBus(address), **settings})
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def settled_as(driver: SystemdDriver, *states: str, within: float = 10.0) -> Observation:
    """Look until it is as wanted, woken by changes alone."""
    async with asyncio.timeout(within):
        while True:
            if (seen := await driver.observe()).state in states:
                return seen
            await driver.wait_for_change()


async def settled_as_soon_as_it_can_be_asked(driver: SystemdDriver, state: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                if (await driver.observe()).state == state:
                    return
            except Rejection as rejection:
                assert rejection.code is ReasonCode.DRIVER_UNAVAILABLE  # noqa: PT017 - anything else is a failure
            await driver.wait_for_change()


async def looked(systemd: FakeSystemd, times: int) -> None:
    wanted = systemd.calls.count("GetAll") + times
    async with asyncio.timeout(10):
        while systemd.calls.count("GetAll") < wanted:  # noqa: ASYNC110 - what it waits for is outside of this loop
            await asyncio.sleep(0.005)
