"""A systemd on a private bus that does what a test says: for the races that a real one does not show on demand."""

import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbus_fast import BusType, ErrorType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from agent.runtimes.live_unit import unit_path

MANAGER_PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon of the test's own, which can die and come back at the same address."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder / 'bus'}"
        self._config = folder / "bus.conf"
        self._config.write_text(_CONFIG.format(address=self.address))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ("dbus-daemon", "--nofork", "--nopidfile", f"--config-file={self._config}", "--print-address=1")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "dbus-daemon did not start"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


_TYPES = {
    "ActiveState": "s",
    "AssertResult": "b",
    "AssertTimestampMonotonic": "t",
    "Asserts": "a(sbbsi)",
    "CPUUsageNSec": "t",
    "ConditionResult": "b",
    "ConditionTimestampMonotonic": "t",
    "Conditions": "a(sbbsi)",
    "EnvironmentFiles": "a(sb)",
    "ExecMainCode": "i",
    "ExecMainExitTimestamp": "t",
    "ExecMainStartTimestamp": "t",
    "ExecMainStartTimestampMonotonic": "t",
    "ExecMainStatus": "i",
    "ExecStartPost": "a(sasbttttuii)",
    "ExecStartPre": "a(sasbttttuii)",
    "Id": "s",
    "InactiveEnterTimestamp": "t",
    "InactiveEnterTimestampMonotonic": "t",
    "InvocationID": "ay",
    "Job": "(uo)",
    "LoadError": "(ss)",
    "LoadState": "s",
    "MainPID": "u",
    "MemoryCurrent": "t",
    "NRestarts": "u",
    "NeedDaemonReload": "b",
    "Result": "s",
    "StateChangeTimestampMonotonic": "t",
    "SubState": "s",
    "TimeoutStopUSec": "t",
}
NO_JOB = [0, "/"]


class FakeSystemd:
    """One unit, and the manager that it is asked of.

    `on` says what a method does instead of the usual: it is given the call, and returns the reply, or None for none.
    """

    def __init__(self, address: str, unit: str = "iggy.service") -> None:
        self.address = address
        self.unit = unit
        self.on: dict[str, Callable[[Message], Message | None]] = {}
        self.calls: list[str] = []
        self.references = 0
        self.job_type = "start"
        self.jobs = 0
        self.properties: dict[str, Any] = {
            "Id": unit,
            "LoadState": "loaded",
            "LoadError": ["", ""],
            "ActiveState": "inactive",
            "SubState": "dead",
            "Result": "success",
            "InvocationID": b"",
            "Job": NO_JOB,
            "NRestarts": 0,
            "ConditionResult": True,
            "AssertResult": True,
            "MemoryCurrent": 2**64 - 1,
            "CPUUsageNSec": 2**64 - 1,
            "TimeoutStopUSec": 60_000_000,
        }
        self._usual: dict[str, Callable[[Message], Message]] = {
            "Subscribe": Message.new_method_return,
            "RefUnit": self._ref,
            "ResetFailedUnit": self._reset_failed,
            "StartUnit": self.job_is("start", "done", self.run),
            "StopUnit": self.job_is("stop", "done", lambda: self.end(code=2, status=15)),
            "RestartUnit": self.job_is("restart", "done", self.run),
            "GetAll": self.get_all,
            "Get": self._get,
        }
        self._bus: MessageBus | None = None

    # --- on the bus

    async def connect(self) -> None:
        self._bus = await MessageBus(self.address, BusType.SYSTEM).connect()
        self._bus.add_message_handler(self._handle)
        await self._bus.request_name("org.freedesktop.systemd1")

    async def disconnect(self) -> None:
        if self._bus is not None:
            bus, self._bus = self._bus, None
            if bus.connected:
                bus.disconnect()
                await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    def _handle(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        self.calls.append(f"{message.member} {message.body[1]}" if message.signature == "ss" else str(message.member))
        handler = self.on.get(str(message.member)) or self._usual.get(str(message.member))
        if handler is None:
            return None
        return handler(message) or True

    def signal(
        self, member: str, signature: str, *body: Any, path: str = MANAGER_PATH, interface: str = MANAGER
    ) -> None:
        assert self._bus is not None
        sent = self._bus.send(Message.new_signal(path, interface, member, signature, list(body)))
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def acts(self) -> list[str]:
        """What was asked for that changes something."""
        quiet = ("GetAll", "Get ", "Subscribe", "RefUnit")
        return [call for call in self.calls if not call.startswith(quiet)]

    # --- the unit

    def set(self, *, push: bool = True, **properties: Any) -> None:
        properties.setdefault("StateChangeTimestampMonotonic", time.monotonic_ns() // 1000)
        self.properties |= properties
        if push:
            self.push({})

    def push(self, changed: dict[str, Variant]) -> None:
        """Say that the unit changed; systemd says in which."""
        body = ("org.freedesktop.systemd1.Unit", changed, [] if changed else ["ActiveState"])
        self.signal("PropertiesChanged", "sa{sv}as", *body, path=unit_path(self.properties["Id"]), interface=PROPERTIES)

    def run(self, *, push: bool = True, **properties: Any) -> str:
        """Begin a run, as a start does; returns its incarnation."""
        now, mono = time.time_ns() // 1000, time.monotonic_ns() // 1000
        run = uuid.uuid4()
        begun = {"ExecMainStartTimestamp": now, "ExecMainStartTimestampMonotonic": mono}
        ended = {"ExecMainExitTimestamp": 0, "ExecMainCode": 0, "ExecMainStatus": 0, "Result": "success"}
        up = {"ActiveState": "active", "SubState": "running", "MainPID": 4242, "InvocationID": run.bytes}
        figures = {"MemoryCurrent": 1_000_000, "CPUUsageNSec": 1_500_000_000}
        self.set(push=push, **{**begun, **ended, **up, **figures, **properties})
        return run.hex

    def end(self, *, code: int = 1, status: int = 0, push: bool = True, **properties: Any) -> None:
        """End its run: `code` as waitid(2) says it."""
        down = {"ActiveState": "inactive", "SubState": "dead", "MainPID": 0}
        now, mono = time.time_ns() // 1000, time.monotonic_ns() // 1000
        how = {"ExecMainExitTimestamp": now, "ExecMainCode": code, "ExecMainStatus": status}
        entered = {"InactiveEnterTimestamp": now, "InactiveEnterTimestampMonotonic": mono}
        self.set(push=push, **{**down, **how, **entered, **properties})

    # --- jobs

    def new_job(self, job_type: str, *, pending: bool = False) -> str:
        self.jobs += 1
        self.job_type = job_type
        path = f"{MANAGER_PATH}/job/{self.jobs}"
        if pending:
            self.set(Job=[self.jobs, path])
        return path

    def finish_job(self, path: str, result: str = "done", *, say: bool = True) -> None:
        self.properties["Job"] = NO_JOB
        if say:
            self.signal("JobRemoved", "uoss", self.jobs, path, self.properties["Id"], result)

    def job_is(self, job_type: str, result: str, effect: Callable[[], object]) -> Callable[[Message], Message]:
        """Make a method that has an effect, and then says its job's result."""

        def handle(call: Message) -> Message:
            path = self.new_job(job_type)
            effect()
            self.finish_job(path, result)
            return Message.new_method_return(call, "o", [path])

        return handle

    # --- what is usual; systemd too may say the result before it answers the call

    def _ref(self, call: Message) -> Message:
        self.references += 1
        return Message.new_method_return(call)

    def _reset_failed(self, call: Message) -> Message:
        self.set(ActiveState="inactive", Result="success", NRestarts=0)
        return Message.new_method_return(call)

    def get_all(self, call: Message) -> Message:
        body = {name: Variant(_TYPES[name], value) for name, value in self.properties.items()}
        return Message.new_method_return(call, "a{sv}", [body])

    def _get(self, call: Message) -> Message:
        if self.properties["Job"] == NO_JOB:
            return Message.new_error(call, ErrorType.UNKNOWN_OBJECT, "no such job")
        return Message.new_method_return(call, "v", [Variant("s", self.job_type)])


def refuse(name: str, text: str = "no") -> Callable[[Message], Message]:
    """Make a method that is refused."""
    return lambda call: Message(
        message_type=MessageType.ERROR,
        reply_serial=call.serial,
        destination=call.sender,
        error_name=name,
        signature="s",
        body=[text],
    )
