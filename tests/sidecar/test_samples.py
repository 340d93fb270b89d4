"""The sample settings of a container that holds the agent and the runtimes."""

from agent.protocol import DriverKind, RuntimeName
from agent.settings import load
from tests.sidecar.images import ROOT

TIME_OF_THE_LAST_REPORTS = 5.0
STOP_TIMEOUT = 90
"""Seconds that docs/docker.md gives to the container."""


def test_the_sample_is_accepted_and_fits_into_the_time_that_the_container_has_to_stop() -> None:
    settings = load(config=ROOT / "config" / "agent.sidecar.toml", environ={"HOME": "/"}).settings
    iggy = settings.runtimes[RuntimeName.IGGY]
    assert (iggy.driver, iggy.owned) == (DriverKind.PROCESS, True)
    assert f"--stop-timeout {STOP_TIMEOUT}" in (ROOT / "docs" / "docker.md").read_text()
    assert settings.agent.shutdown_grace + iggy.stop_timeout + TIME_OF_THE_LAST_REPORTS <= STOP_TIMEOUT
