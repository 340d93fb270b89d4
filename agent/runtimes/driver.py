"""The driver protocol: what every way of controlling a runtime offers, in the words that recovery is written in.

A driver acts and observes; it never decides whether an action is right. It journals without knowing the journal: each
verb is given a `record` callable and awaits it *before* every call that it makes, so that a crash at any moment leaves
in the journal what may have been done. The one *decisive* call of an action (systemd: StartUnit, StopUnit, RestartUnit;
for docker and process, where a restart is stop then start, the start) is recorded with the boot id and with **A**, the
observation read just before it.
"""

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NewType, Protocol

from agent.protocol import Config, DriverKind, RuntimeState, format_time

Incarnation = NewType("Incarnation", str)
"""Opaque identity of one run of a runtime; equal means the same run, also after the agent or the machine restarted."""

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def read_boot_id() -> str:
    """Return the identity of this boot of the machine: random(4).

    Read once: it stays the same for as long as this process lives, and is then known also when nothing can be opened.
    """
    return _read_once(BOOT_ID_FILE)


@functools.cache
def _read_once(file: Path) -> str:
    return file.read_text().strip()


class Call(StrEnum):
    """Something that a driver, or a reconfigure, does to the node; journaled before it is done."""

    START = "start"
    """Bring the runtime up."""
    STOP = "stop"
    """Bring the runtime down."""
    RESTART = "restart"
    """Both in one call (systemd)."""
    RECREATE = "recreate"
    """Make the container anew with another environment (docker)."""
    SWITCH = "switch"
    """Point `current` at another release."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A runtime at one moment, as its driver sees it.

    `incarnation` is the running run, or the last one when it does not run; None when there never was one. When the
    driver cannot tell which run was the last (systemd without an InvocationID), `incarnation_known` is False.
    """

    state: RuntimeState
    incarnation: Incarnation | None = None
    incarnation_known: bool = True
    pid: int | None = None
    started_at: datetime | None = None
    exit_code: int | None = None
    """Of the last run, when it does not run; 128 + signal when a signal ended it; None when it cannot be known."""
    restarts: int | None = None
    """How often something revived it by itself, where the driver counts that."""
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    config_sha256: str | None = None
    """Checksum of the release that the running run was started with; None when none, or not known."""
    hindrance: str | None = None
    """Why it cannot be ready although it runs (a paused container); completes "not ready: …"."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What else this driver can say (result, sub-state, OOM); goes into the evidence."""

    @property
    def running(self) -> bool:
        """Whether its process is up."""
        return self.state is RuntimeState.RUNNING

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way: running, or down with nothing about to revive it."""
        return self.state not in {RuntimeState.STARTING, RuntimeState.STOPPING}

    def as_evidence(self) -> dict[str, Any]:
        """Return what a report says of it."""
        facts: dict[str, Any] = {
            "state": str(self.state),
            "incarnation": self.incarnation,
            "pid": self.pid,
            "started_at": format_time(self.started_at) if self.started_at else None,
            "exit_code": self.exit_code,
            "restarts": self.restarts,
            **self.detail,
        }
        return {key: value for key, value in facts.items() if value is not None}


def counted_as_running(seen: Observation) -> Observation:
    """Say of a run on its way up that it runs: as A of a call it is not to be taken for what the call begins."""
    if seen.state is RuntimeState.STARTING and seen.incarnation is not None:
        return replace(seen, state=RuntimeState.RUNNING)
    return seen


@dataclass(frozen=True, slots=True)
class Step:
    """One call that is about to be made.

    Args:
        call: Which.
        decisive: Whether it is the action's decisive call; then `before` and `boot_id` are set.
        before: A, the observation read just before.
        boot_id: The machine's boot at that moment.
        detail: What helps an operator to read the journal.
    """

    call: Call
    decisive: bool = False
    before: Observation | None = None
    boot_id: str | None = None
    detail: Mapping[str, str] = field(default_factory=dict)


Recorder = Callable[[Step], Awaitable[None]]
"""Writes a step durably; when it raises, the call must not be made."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a driver's verb did.

    Args:
        before: The observation that it decided by.
        calls: The calls that it made; empty when the aim was already reached.
        exit_code: Of the run that it stopped; None when nothing was stopped or it cannot be known (an adopted process).
        killed: Whether SIGKILL was needed; None when nothing was stopped.
        detail: What else belongs into the evidence (the job's result, seconds).
    """

    before: Observation
    calls: tuple[Call, ...] = ()
    exit_code: int | None = None
    killed: bool | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def replaced(self) -> Incarnation | None:
        """The run that was up, or on its way up, and that is not the one which a restart begins."""
        before = counted_as_running(self.before)
        return before.incarnation if before.running else None


class Driver(Protocol):
    """One way of controlling one runtime. All methods are called from the event loop and never block it.

    Every method may raise `Rejection` with `driver_unavailable` (no bus, no engine), and every verb with the codes of
    `ReasonCode`. Cancelling a verb leaves the runtime as it is at that moment; what was called is in the journal.
    """

    kind: DriverKind

    async def open(self) -> None:
        """Connect, adopt what runs, and watch it; never starts or stops anything.

        A driver that cannot connect yet stays open and tries again by itself.
        """

    async def close(self) -> None:
        """Stop watching; the runtime is left as it is."""

    async def observe(self) -> Observation:
        """Look at the runtime now."""

    async def settle(self) -> Observation:
        """Look at it once nothing is under way: readable, no job pending, not between two runs.

        With systemd and docker, two looks 2 s apart must agree, because a dead agent's call may still be on its way.
        Waits as long as it takes; the caller bounds it.
        """

    async def start(self, record: Recorder) -> Outcome:
        """Bring it up; running already makes no call. Does not wait for readiness."""

    async def stop(self, record: Recorder) -> Outcome:
        """Bring it down, as a decisive call; down already makes no call.

        A signal goes only to the run that was read as A.
        """

    async def restart(self, record: Recorder) -> Outcome:
        """Bring it up in a new incarnation: stop (where it is a call of its own, not decisive), then start."""

    async def wait_for_change(self) -> None:
        """Return when the runtime changed since the last `observe`, or may have (a push, not a poll)."""

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        """Return the last log lines of one run, oldest first, at most `max_bytes` in all, not yet redacted.

        Raises:
            Rejection: They cannot be read; the caller says so in the evidence instead.
        """

    def check_config(self, config: Config) -> None:
        """Refuse a config that this driver cannot apply.

        Raises:
            Rejection: `config_invalid`, saying what to change.
        """

    async def tidy(self, committed: str | None) -> None:
        """Let go of what an action left behind, once its verdict is journaled; never touches what runs.

        Called after each activity, and when the agent starts after all that was under way was finished.

        Args:
            committed: Checksum of the committed release; None when there is none.
        """

    def warnings(self) -> list[str]:
        """Say what an operator should know about how the runtime is set up (a restart policy that fights the agent)."""
