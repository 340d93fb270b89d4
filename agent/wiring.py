"""Makes each runtime from its settings: which driver, which probe, which times.

What acts on the node does not know the settings; this translates.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import SettingsError
from agent.protocol import DriverKind, RuntimeName
from agent.redaction import Redactor
from agent.runtimes.driver import Driver
from agent.runtimes.probe import ConnectorsRule, ProbePlan
from agent.runtimes.process import ProcessDriver
from agent.runtimes.releases import Releases
from agent.runtimes.runtime import Runtime, Timeouts
from agent.settings import ProbeSettings, RuntimeSettings

if TYPE_CHECKING:
    from agent.runtimes.bus import SystemdBus


class Shared:
    """What the runtimes of one agent share, each made for the first that needs it."""

    @cached_property
    def systemd(self) -> "SystemdBus":
        """The one connection to systemd."""
        from agent.runtimes.bus import SystemdBus  # noqa: PLC0415 - its library is loaded where it is used only

        return SystemdBus()


def make_runtime(
    name: RuntimeName, settings: RuntimeSettings, folder: Path, redactor: Redactor, shared: Shared
) -> Runtime:
    """Make a runtime from its settings.

    Args:
        name: Which.
        settings: Its own.
        folder: `<state>/runtimes/<runtime>`.
        redactor: Learns its secrets.
        shared: With the other runtimes of this agent.

    Raises:
        SettingsError: They do not say what the driver is to control.
    """
    releases = Releases(folder, name)
    return Runtime(
        name,
        driver=_make_driver(name, settings, folder, releases, shared),
        releases=releases,
        plan=None if settings.probe is None else _make_plan(settings.probe),
        timeouts=Timeouts(settings.start_timeout, settings.stop_timeout, settings.action_timeout),
        redactor=redactor,
    )


def _make_driver(
    name: RuntimeName, settings: RuntimeSettings, folder: Path, releases: Releases, shared: Shared
) -> Driver:
    if settings.driver is DriverKind.SYSTEMD and settings.unit is not None:
        from agent.runtimes.systemd import SystemdDriver  # noqa: PLC0415 - as above

        return SystemdDriver(
            runtime=name,
            unit=settings.unit,
            bus=shared.systemd,
            folder=folder,
            releases=releases,
            start_timeout=settings.start_timeout,
            stop_timeout=settings.stop_timeout,
        )
    if settings.driver is DriverKind.DOCKER and settings.container is not None:
        from agent.runtimes.docker import DockerDriver  # noqa: PLC0415 - as above

        return DockerDriver(
            runtime=name,
            container=settings.container,
            folder=folder,
            releases=releases,
            start_timeout=settings.start_timeout,
            stop_timeout=settings.stop_timeout,
            address=os.environ.get("DOCKER_HOST"),
        )
    if settings.command is None:
        msg = f"cannot manage {name} through {settings.driver}: the settings do not say what it is"
        raise SettingsError(msg, hint=f"set unit, container or command of [runtimes.{name}]")
    return ProcessDriver(
        runtime=name,
        command=settings.command,
        folder=folder,
        releases=releases,
        environment=settings.environment,
        working_directory=settings.working_directory,
        stop_timeout=settings.stop_timeout,
    )


def _make_plan(settings: ProbeSettings) -> ProbePlan:
    return ProbePlan(
        http=settings.http,
        tcp=settings.tcp,
        status=settings.status,
        expect=settings.expect,
        attempt_timeout=settings.attempt_timeout,
        ready_timeout=settings.ready_timeout,
        stable_for=settings.stable_for,
        connectors=ConnectorsRule(settings.connectors),
        api_key=None if settings.api_key is None else settings.api_key.get_secret_value(),
    )
