"""Makes each runtime from its settings: which driver, which probe, which times.

What acts on the node does not know the settings; this translates.
"""

import os
from pathlib import Path

from agent.errors import SettingsError
from agent.protocol import DriverKind, RuntimeName
from agent.redaction import Redactor
from agent.runtimes.driver import Driver
from agent.runtimes.probe import ConnectorsRule, ProbePlan
from agent.runtimes.process import ProcessDriver
from agent.runtimes.releases import Releases
from agent.runtimes.runtime import Runtime, Timeouts
from agent.settings import ProbeSettings, RuntimeSettings


def make_runtime(name: RuntimeName, settings: RuntimeSettings, folder: Path, redactor: Redactor) -> Runtime:
    """Make a runtime from its settings.

    Raises:
        SettingsError: They do not say what the driver is to control.
    """
    releases = Releases(folder, name)
    return Runtime(
        name,
        driver=_make_driver(name, settings, folder, releases),
        releases=releases,
        plan=None if settings.probe is None else _make_plan(settings.probe),
        timeouts=Timeouts(settings.start_timeout, settings.stop_timeout, settings.action_timeout),
        redactor=redactor,
    )


def _make_driver(name: RuntimeName, settings: RuntimeSettings, folder: Path, releases: Releases) -> Driver:
    if settings.driver is DriverKind.SYSTEMD and settings.unit is not None:
        from agent.runtimes.systemd import SystemdDriver  # noqa: PLC0415 - its library is loaded where it is used only

        return SystemdDriver(
            runtime=name,
            unit=settings.unit,
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
