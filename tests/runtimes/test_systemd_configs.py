"""The systemd driver where the current config of its unit is damaged or cannot be read."""

import asyncio
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeName
from agent.runtimes.releases import Releases
from agent.runtimes.systemd import SystemdDriver
from tests.fakes.systemd import FakeSystemd
from tests.runtimes.configs import config
from tests.runtimes.conftest import Steps


@pytest.mark.parametrize("verb", ["start", "restart"])
@pytest.mark.parametrize("file", ["release.json", "environment"])
async def test_nothing_is_started_without_its_current_config(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, folder: Path, verb: str, file: str
) -> None:
    release = Releases(folder, RuntimeName.IGGY)
    await asyncio.to_thread(lambda: release.switch(release.stage(config()).name))
    (folder / "current" / file).unlink()
    systemd.set(EnvironmentFiles=[[str(folder / "current" / "environment"), True]])
    with pytest.raises(Rejection) as caught:
        await getattr(driver, verb)(steps)
    assert caught.value.code is ReasonCode.CONFIG_MISSING
    assert str(folder / "releases" / "42-3" / file) in caught.value.message
    assert caught.value.hint == "reconfigure with a config"
    assert (steps, systemd.acts) == ([], [])


async def test_a_damaged_config_is_no_hindrance_to_a_stop_and_to_a_unit_that_does_not_read_it(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, folder: Path
) -> None:
    (folder / "current").symlink_to("releases/1-1")
    await driver.start(steps)
    systemd.set(EnvironmentFiles=[[str(folder / "current" / "environment"), True]])
    assert (await driver.start(steps)).calls == ()
    await driver.stop(steps)
    assert steps.words() == ["start!", "stop!"]


async def test_a_folder_that_cannot_be_read_is_no_hindrance_to_a_stop(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, folder: Path
) -> None:
    systemd.run(EnvironmentFiles=[[str(folder / "current" / "environment"), True]])
    await asyncio.to_thread(folder.rmdir)
    await asyncio.to_thread(folder.write_text, "a file in the way")
    await driver.stop(steps)
    with pytest.raises(Rejection, match="cannot read the current config") as caught:
        await driver.start(steps)
    assert str(folder) in caught.value.message
    assert steps.words() == ["stop!"]
    await asyncio.to_thread(folder.unlink)
