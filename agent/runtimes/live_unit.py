"""One unit on the bus: reading it, queueing jobs for it, and hearing of its changes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from dbus_fast import Variant

from agent.runtimes.bus import MANAGER, MANAGER_PATH, PROPERTIES, BusError, RefusedError, SystemdBus, signal_rule
from agent.runtimes.jobs import Jobs
from agent.runtimes.units import Unit

log = structlog.get_logger(__name__)

UNIT = "org.freedesktop.systemd1.Unit"
"""What of a unit changes is told for its own interface and for this one, at the same moment; once is enough."""
_JOB = "org.freedesktop.systemd1.Job"
_READ = frozenset(
    {
        "Id",
        "LoadState",
        "LoadError",
        "ActiveState",
        "SubState",
        "Result",
        "InvocationID",
        "Job",
        "NeedDaemonReload",
        "StateChangeTimestampMonotonic",
        "InactiveEnterTimestamp",
        "InactiveEnterTimestampMonotonic",
        "MainPID",
        "ExecMainCode",
        "ExecMainStatus",
        "ExecMainStartTimestamp",
        "ExecMainStartTimestampMonotonic",
        "ExecMainExitTimestamp",
        "NRestarts",
        "MemoryCurrent",
        "CPUUsageNSec",
        "Conditions",
        "ConditionResult",
        "ConditionTimestampMonotonic",
        "Asserts",
        "AssertResult",
        "AssertTimestampMonotonic",
        "ExecStartPre",
        "ExecStartPost",
        "TimeoutStopUSec",
        "EnvironmentFiles",
    }
)
"""The properties that are kept, of about 400."""


_NEWS = frozenset({"ActiveState", "SubState", "InvocationID", "Job"})


def unit_path(name: str) -> str:
    """Return the object path of a unit; reading it loads the unit, and finds it by an alias too."""
    escaped = "".join(
        character if character.isascii() and character.isalnum() and not (at == 0 and character.isdigit()) else code
        for at, character, code in ((at, character, f"_{ord(character):02x}") for at, character in enumerate(name))
    )
    return f"{MANAGER_PATH}/unit/{escaped}"


class LiveUnit:
    """A unit of this machine's systemd.

    Args:
        name: Of the unit.
        bus: Asked and listened to; others may use it too.
        on_change: Called when the unit changed, or may have; also when systemd came within reach or went out of it.
    """

    def __init__(self, name: str, bus: SystemdBus, *, on_change: Callable[[], None]) -> None:
        self.bus = bus
        self.jobs = Jobs()
        self._name = name
        self._on_change = on_change
        self._paths = {name: unit_path(name)}
        """Where it is found, by each of its names that is known."""
        self._held_in = 0
        self._told: dict[str, Any] = {}
        bus.listen(self._on_signal, on_change)

    async def open(self) -> None:
        """Begin to hear of it."""
        for rule in _rules(self._name):
            await self.bus.watch(rule)
        await self.bus.open()

    async def read(self) -> Unit:
        """Read it now, all of one moment.

        Raises:
            BusError: It could not be read.
        """
        while True:
            # The empty interface stands for all of them, which no two calls could read at one moment.
            (answer,) = await self.bus.call("GetAll", "s", "", path=unit_path(self._name), interface=PROPERTIES)
            unit = Unit({name: answer[name].value for name in _READ & answer.keys()})
            await self._know(unit)
            if unit.job is None:
                return unit
            if job_type := await self._job_type(unit.job):
                return replace(unit, job_type=job_type)

    async def queue(self, member: str, mode: str) -> str:
        """Queue a job, and return its path.

        Args:
            member: StartUnit, StopUnit or RestartUnit.
            mode: `fail` leaves other jobs alone, `replace` takes their place.

        Raises:
            BusError: It was not queued; or, when it is an uncertain `AwayError`, it may have been.
        """
        (path,) = await self.bus.call(member, "ss", self._name, mode)
        return str(path)

    async def reset_failed(self) -> None:
        """Have systemd forget how often it was started; without the permission to, the start tells what happens."""
        try:
            await self.bus.call("ResetFailedUnit", "s", self._name)
        except RefusedError as error:
            log.warning("systemd.not_reset", unit=self._name, error=error.name, cause=str(error))

    async def system_is_stopping(self) -> bool:
        """Whether the machine is being shut down, which cancels every job: systemctl(1), is-system-running."""
        try:
            (answer,) = await self.bus.call("Get", "ss", MANAGER, "SystemState", interface=PROPERTIES)
        except BusError:
            return False
        return bool(answer.value == "stopping")

    async def _job_type(self, path: str) -> str | None:
        """Return what a job does; None when it has just ended, so that the unit is another one now."""
        try:
            (answer,) = await self.bus.call("Get", "ss", _JOB, "JobType", path=path, interface=PROPERTIES)
        except RefusedError:
            return None
        return str(answer.value)

    async def _know(self, unit: Unit) -> None:
        """Hear of it by its primary name too, and have systemd keep it: what it unloads, it forgets the last run of."""
        if unit.id and unit.id not in self._paths:
            self._paths[unit.id] = unit_path(unit.id)
            for rule in _rules(unit.id):
                await self.bus.watch(rule)
        session = self.bus.session
        if self._held_in == session or unit.text("LoadState") != "loaded":
            return
        self._held_in = session
        try:
            await self.bus.call("RefUnit", "s", self._name)
        except BusError as error:
            # Where polkit does not allow the verb `ref`, a unit that stopped may lose the evidence of its last run.
            log.info("systemd.unit_not_held", unit=self._name, cause=str(error))

    def _on_signal(self, path: str, member: str, body: list[Any]) -> None:
        if member == "PropertiesChanged" and not (path in self._paths.values() and self._is_news(body[1])):
            return
        if member == "JobRemoved":
            _, job, name, result = body
            if name not in self._paths:
                return
            self.jobs.removed(str(job), str(result))
        if member == "UnitRemoved" and body[0] not in self._paths:
            return
        self._on_change()

    def _is_news(self, changed: Mapping[str, Variant]) -> bool:
        """Tell whether the unit is another one now: systemd tells it about nine times in a restart."""
        told = {name: changed[name].value for name in _NEWS & changed.keys()}
        if told and told == self._told:
            return False
        self._told = told
        return True


def _rules(name: str) -> list[str]:
    return [
        signal_rule(interface=MANAGER, member="JobRemoved", arg2=name),
        signal_rule(interface=MANAGER, member="UnitRemoved", arg0=name),
        signal_rule(interface=PROPERTIES, member="PropertiesChanged", path=unit_path(name), arg0=UNIT),
    ]
