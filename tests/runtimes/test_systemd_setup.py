"""What the systemd driver says of how a unit is set up: warnings, configs, logs."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import DriverKind, ReasonCode, RuntimeName
from agent.redaction import Redactor
from agent.runtimes import journald
from agent.runtimes.bus import SystemdBus
from agent.runtimes.driver import Incarnation
from agent.runtimes.live_unit import LiveUnit
from agent.runtimes.releases import Releases
from agent.runtimes.systemd import SystemdDriver
from agent.settings import RuntimeSettings
from agent.wiring import Shared, make_runtime
from tests.fakes.systemd import FakeSystemd
from tests.runtimes.configs import config
from tests.runtimes.conftest import eventually
from tests.runtimes.systemd_rig import driver_of


async def test_what_about_the_unit_may_surprise_is_a_warning(
    driver: SystemdDriver, systemd: FakeSystemd, folder: Path
) -> None:
    assert any("cannot be reconfigured" in warning for warning in driver.warnings())
    file = str(folder / "current" / "environment")
    systemd.set(EnvironmentFiles=[[file, True]], NeedDaemonReload=True, TimeoutStopUSec=90_000_000)
    await driver.observe()
    reload_needed, slow = driver.warnings()
    assert "daemon-reload" in reload_needed
    assert "TimeoutStopSec=" in slow
    systemd.set(NeedDaemonReload=False, TimeoutStopUSec=20_000_000)
    await driver.observe()
    assert driver.warnings() == []
    driver.check_config(config())


async def test_a_unit_that_could_not_be_looked_at_yet_has_no_warnings(tmp_path: Path, folder: Path) -> None:
    async with driver_of(f"unix:path={tmp_path}/none", folder) as driver:
        assert driver.warnings() == []
        driver.check_config(config())
        await driver.tidy(None)


async def test_a_config_is_refused_where_the_unit_would_not_read_it(driver: SystemdDriver, folder: Path) -> None:
    with pytest.raises(Rejection) as caught:
        driver.check_config(config())
    assert caught.value.code is ReasonCode.CONFIG_INVALID
    assert f"EnvironmentFile=-{folder}/current/environment" in str(caught.value.hint)


async def test_a_run_says_which_config_it_was_started_with(
    driver: SystemdDriver, systemd: FakeSystemd, folder: Path
) -> None:
    releases = Releases(folder, RuntimeName.IGGY)
    release = await asyncio.to_thread(releases.stage, config())
    await asyncio.to_thread(releases.switch, release.name)
    later = (time.time_ns() // 1000 + 2_000_000, time.monotonic_ns() // 1000 + 2_000_000)
    systemd.set(EnvironmentFiles=[[str(folder / "current" / "environment"), True]])
    systemd.run(ExecMainStartTimestamp=later[0], ExecMainStartTimestampMonotonic=later[1])
    assert (await driver.observe()).config_sha256 == release.sha256
    await asyncio.to_thread(releases.switch, None)
    assert (await driver.observe()).config_sha256 == release.sha256


async def test_without_a_run_there_is_no_log(driver: SystemdDriver) -> None:
    assert await driver.log_tail(None, max_bytes=1000) == []


async def test_the_log_of_a_run_that_the_journal_does_not_know_is_not_made_up(
    driver: SystemdDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(journald, "_ENVIRONMENT", {"PATH": str(tmp_path)})
    with pytest.raises(Rejection) as caught:
        await driver.log_tail(Incarnation("ab" * 16), max_bytes=1000)
    assert caught.value.code is ReasonCode.NOT_PERMITTED


def test_only_an_agent_with_a_systemd_runtime_loads_the_bus_library() -> None:
    program = "import sys, agent.daemon; sys.exit('dbus_fast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_a_runtime_with_the_driver_systemd_gets_this_one(folder: Path) -> None:
    settings = RuntimeSettings(driver=DriverKind.SYSTEMD, unit="iggy.service")
    shared = Shared()
    runtime = make_runtime(RuntimeName.IGGY, settings, folder, Redactor(), shared)
    other = make_runtime(RuntimeName.CONNECTORS, settings, folder, Redactor(), shared)
    assert isinstance(runtime.driver, SystemdDriver)
    assert isinstance(other.driver, SystemdDriver)
    assert runtime.driver._unit.bus is other.driver._unit.bus, "one connection for all"
    await runtime.close()
    await other.close()


async def test_units_that_share_a_connection_hear_of_themselves_alone(systemd: FakeSystemd) -> None:
    bus = SystemdBus(systemd.address)
    heard: list[str] = []
    own = LiveUnit("iggy.service", bus, on_change=lambda: heard.append("own"))
    other = LiveUnit("other.service", bus, on_change=lambda: heard.append("other"))
    await own.open()
    await other.open()
    try:
        heard.clear()
        systemd.run()
        job = systemd.new_job("restart", pending=True)
        systemd.finish_job(job)
        systemd.signal("UnitRemoved", "so", "iggy.service", "/gone")
        await eventually(lambda: own.jobs.result(job) == "done" and len(heard) >= 3)
        assert set(heard) == {"own"}
        assert other.jobs.result(job) is None
    finally:
        await bus.close()
        await bus.close()
