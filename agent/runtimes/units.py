"""A systemd unit as its properties say it is, and what that means in the driver's words.

Names and meanings are those of org.freedesktop.systemd1(5); what they do in each case was tried on systemd 252.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent.protocol import RuntimeState
from agent.runtimes.driver import Incarnation, Observation

NOT_SET = 2**64 - 1
"""What systemd says for a number that it does not have."""
NO_JOB = "/"

_UP = {"active", "reloading", "refreshing", "maintenance"}
_DOWN = {"inactive", "failed"}
_STARTING_JOBS = {"start", "restart", "try-restart", "reload-or-start"}
_SETUP_FAILURES = {
    200: "CHDIR",
    203: "EXEC",
    204: "MEMORY",
    216: "GROUP",
    217: "USER",
    226: "NAMESPACE",
    228: "SECCOMP",
}
"""Exit codes by which systemd says what it could not set up: systemd.exec(5)."""
_RESULTS: Mapping[str, str] = {
    "oom-kill": "the kernel ended it because memory ran out",
    "start-limit-hit": "it was started too often in a short time, so systemd starts it no more",
    "watchdog": "it did not feed its watchdog",
    "resources": "systemd could not get what it needs for it",
    "protocol": "it did not do what the Type= of its unit promises",
    "exec-condition": "its ExecCondition= was not met",
}
_OF_A_PROCESS = {"exit-code", "signal", "core-dump", "timeout"}
_JOB_RESULTS: Mapping[str, str] = {
    "dependency": "a unit that it needs did not come up",
    "timeout": "its job took longer than JobTimeoutSec= of its unit",
    "canceled": "another job took the place of its start",
    "assert": "an assertion of its unit was not met",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One reading of a unit, all of one moment.

    Args:
        properties: Of all its interfaces, as GetAll of the empty interface answers.
        job_type: Of its pending job; None when none is pending.
        job_result: Of the last job that the agent queued, if that ended without the unit being up.
    """

    properties: Mapping[str, Any]
    job_type: str | None = None
    job_result: str | None = None

    def text(self, name: str) -> str:
        """Return a property that is a string; empty when the unit does not have it."""
        return str(self.properties.get(name, ""))

    def number(self, name: str) -> int:
        """Return a property that is a number; 0 when the unit does not have it."""
        return int(self.properties.get(name, 0))

    @property
    def id(self) -> str:
        """Its primary name."""
        return self.text("Id")

    @property
    def active(self) -> str:
        """Its ActiveState."""
        return self.text("ActiveState")

    @property
    def job(self) -> str | None:
        """The path of its pending job."""
        path = str(self.properties.get("Job", (0, NO_JOB))[1])
        return None if path == NO_JOB else path

    @property
    def incarnation(self) -> Incarnation | None:
        """Its InvocationID; None when it never ran, or systemd has forgotten."""
        raw = bytes(self.properties.get("InvocationID", b""))
        return Incarnation(raw.hex()) if any(raw) else None

    @property
    def state(self) -> RuntimeState:
        """What its ActiveState means; a start that waits for another unit is `starting`."""
        if self.active in _UP:
            return RuntimeState.RUNNING
        if self.active == "deactivating":
            return RuntimeState.STOPPING
        if self.active not in _DOWN or self.job_type in _STARTING_JOBS:
            return RuntimeState.STARTING
        if self.text("LoadState") == "not-found":
            return RuntimeState.MISSING
        return RuntimeState.FAILED if self.active == "failed" else RuntimeState.STOPPED

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: no job is pending, and it is up or down."""
        return self.job is None and self.state not in {RuntimeState.STARTING, RuntimeState.STOPPING}

    def exit_code(self) -> int | None:
        """Return how its last main process ended: 128 + signal when a signal ended it."""
        if not self.number("ExecMainExitTimestamp") or self.incarnation is None or self._failed_helper("ExecStartPre"):
            return None
        status = self.number("ExecMainStatus")
        match self.number("ExecMainCode"):  # as waitid(2) says it
            case os.CLD_EXITED:
                return status
            case os.CLD_KILLED | os.CLD_DUMPED:
                return 128 + status
            case _:
                return None

    def was_killed(self) -> bool:
        """Tell whether SIGKILL was needed to end its last run."""
        by_kill = self.number("ExecMainCode") == os.CLD_KILLED and self.number("ExecMainStatus") == signal.SIGKILL
        return by_kill or self.text("Result") == "timeout"

    def unusable(self) -> str | None:
        """Say why it cannot be started, if that can be seen without trying."""
        load = self.text("LoadState")
        if load == "masked":
            return "its unit is masked"
        if load in {"bad-setting", "error"}:
            return f"its unit is badly written: {self._load_error() or load}"
        return None

    def cause(self) -> str | None:
        """Say why it is down, as far as systemd knows."""
        if self.state not in {RuntimeState.STOPPED, RuntimeState.FAILED}:
            return None
        if known := self.unusable() or self._unmet():
            return known
        return self._how_it_failed() if self.active == "failed" else _JOB_RESULTS.get(self.job_result or "")

    def observation(self, config_sha256: str | None) -> Observation:
        """Say it in the driver's words.

        Args:
            config_sha256: Of the release that its run was started with, if that is known.
        """
        running = self.state is RuntimeState.RUNNING
        pid = self.number("MainPID") or None
        return Observation(
            self.state,
            incarnation=self.incarnation,
            incarnation_known=self.incarnation is not None,
            pid=pid,
            started_at=_time(self.number("ExecMainStartTimestamp")) if pid else None,
            exit_code=None if running or pid else self.exit_code(),
            restarts=self.number("NRestarts"),
            memory_bytes=self._figure("MemoryCurrent") if running else None,
            cpu_seconds=self._cpu_seconds() if running else None,
            config_sha256=config_sha256 if running else None,
            detail=self._detail(),
        )

    def environment_files(self) -> list[str]:
        """List the files of its EnvironmentFile=."""
        return [str(path) for path, _ in self.properties.get("EnvironmentFiles", ())]

    def _detail(self) -> dict[str, Any]:
        facts = {
            "unit": self.id,
            "active_state": self.active,
            "sub_state": self.text("SubState"),
            "result": _unless("success", self.text("Result")),
            "load_state": _unless("loaded", self.text("LoadState")),
            "job": self.job_type,
            "job_result": self.job_result,
            "cause": self.cause(),
        }
        return {name: value for name, value in facts.items() if value}

    def _how_it_failed(self) -> str:
        status, result = self.number("ExecMainStatus"), self.text("Result")
        for word in ("ExecStartPre", "ExecStartPost"):
            if program := self._failed_helper(word):
                return f"{program} of its {word}= failed"
        match result:
            case "exit-code" if status in _SETUP_FAILURES:
                what = _SETUP_FAILURES[status]
                return f"systemd could not set its process up ({status}/{what}, see systemd.exec(5))"
            case "exit-code":
                return f"it ended by itself with exit code {status}"
            case "signal" | "core-dump":
                return f"{_signal_name(status)} ended it"
            case "timeout":
                return "it took longer to come up, or to go down, than its unit allows"
            case _:
                return _RESULTS.get(result, f"systemd says {result}")

    def _failed_helper(self, word: str) -> str | None:
        """Name the command of an ExecStartPre= or ExecStartPost= that failed when it was to be started last."""
        if self.active != "failed" or self.text("Result") not in _OF_A_PROCESS:
            return None
        for path, _, may_fail, *_, exit_at, _, _, code, status in self.properties.get(word, ()):
            if exit_at and not may_fail and (code != os.CLD_EXITED or status != 0):
                return str(path)
        return None

    def _unmet(self) -> str | None:
        """Name the condition or assertion that was not met when it was to be started last."""
        for what, kind in (("a condition", "Condition"), ("an assertion", "Assert")):
            tried = self.number(f"{kind}TimestampMonotonic")
            if self.properties.get(f"{kind}Result", True) or tried <= self.number("InactiveEnterTimestampMonotonic"):
                continue
            failed = [_condition(entry) for entry in self.properties.get(f"{kind}s", ()) if int(entry[4]) < 0]
            names = f" ({', '.join(failed)})" if failed else ""
            return f"{what} of its unit was not met{names}"
        return None

    def _load_error(self) -> str:
        name, text = self.properties.get("LoadError", ("", ""))
        return str(text or name)

    def _cpu_seconds(self) -> float | None:
        used = self._figure("CPUUsageNSec")
        return None if used is None else used / 1e9

    def _figure(self, name: str) -> int | None:
        value = int(self.properties.get(name, NOT_SET))
        return None if value == NOT_SET else value


def _condition(entry: Sequence[Any]) -> str:
    name, trigger, negate, parameter, _ = entry
    return f"{name}={'|' if trigger else ''}{'!' if negate else ''}{parameter}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _time(microseconds: int) -> datetime | None:
    return datetime.fromtimestamp(microseconds / 1e6, UTC) if microseconds else None


def _unless(usual: str, word: str) -> str | None:
    return None if word == usual else word
