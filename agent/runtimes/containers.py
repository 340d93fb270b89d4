"""A container as the Engine says it is, and what that means in the driver's words.

    running, also paused                running
    restarting                          starting: something revives it
    removing                            stopping
    created, exited                     stopped; failed with an exit code that nobody asked for
    dead                                failed

An incarnation is the container's id and the time at which it was started; one that was never started has none. Which
config a container was made with, and what it replaced, is written on it as labels: a crash leaves no doubt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent.protocol import RuntimeState
from agent.runtimes.driver import Incarnation, Observation

_OURS = "com.laserdata.iggy-agent."
CONFIG_LABEL = _OURS + "config-sha256"
"""Checksum of the release whose values its environment has; none without a release."""
VARIABLES_LABEL = _OURS + "variables"
"""JSON: each variable that the agent set, and the value it had before (null: none), so that it can be taken back."""
REPLACES_LABEL = _OURS + "replaces"
"""Id of the container that is kept until this one was seen ready."""
POLICY_LABEL = _OURS + "replaced-restart-policy"
"""JSON: the restart policy that the kept one gets back."""
OUR_LABELS = frozenset({CONFIG_LABEL, VARIABLES_LABEL, REPLACES_LABEL, POLICY_LABEL})

NO_POLICY: Mapping[str, Any] = {"Name": "no", "MaximumRetryCount": 0}
ASKED_TO_END = frozenset({0, 130, 143})
"""Exit codes of a program that was asked to end: by itself, by SIGINT, by SIGTERM."""
SIGKILLED = 137
LOG_EARLIER = 0.1
"""Seconds: the Engine writes down when a run began up to some milliseconds after its first lines came."""
_SHORT = 12
"""Characters of an id, as `docker ps` shows it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used up to a moment."""

    incarnation: Incarnation | None
    memory_bytes: int | None
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class Container:
    """One reading of a container, all of one moment.

    Args:
        data: As GET /containers/{id}/json answers.
    """

    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its full id."""
        return str(self.data["Id"])

    @property
    def short_id(self) -> str:
        """Its id, as people see it."""
        return self.id[:_SHORT]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.data.get("Name", "")).removeprefix("/")

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self._part("Config").get("Labels") or {}

    @property
    def config_sha256(self) -> str | None:
        """Checksum of the release that it was made with."""
        return self.labels.get(CONFIG_LABEL)

    @property
    def replaces(self) -> str | None:
        """Id of the container that it took the place of, until it is committed."""
        return self.labels.get(REPLACES_LABEL)

    @property
    def variables(self) -> Mapping[str, str | None]:
        """The variables that the agent set, with the values they had before."""
        return _json(self.labels.get(VARIABLES_LABEL))

    @property
    def replaced_policy(self) -> Mapping[str, Any]:
        """The restart policy of the container that it replaces."""
        return _json(self.labels.get(POLICY_LABEL)) or NO_POLICY

    @property
    def policy(self) -> Mapping[str, Any]:
        """Its restart policy."""
        found: Mapping[str, Any] = self._part("HostConfig").get("RestartPolicy") or NO_POLICY
        return found if found.get("Name") else NO_POLICY

    @property
    def auto_remove(self) -> bool:
        """Whether it vanishes when it stops."""
        return bool(self._part("HostConfig").get("AutoRemove"))

    @property
    def state(self) -> Mapping[str, Any]:
        """The Engine's word on how it is."""
        return self._part("State")

    @property
    def paused(self) -> bool:
        """Whether it is frozen; it does not even take signals then."""
        return bool(self.state.get("Paused"))

    @property
    def is_up(self) -> bool:
        """Whether there is something to stop: a process, or one that is about to be revived."""
        return bool(self.state.get("Running") or self.state.get("Restarting") or self.state.get("Paused"))

    @property
    def started_at(self) -> datetime | None:
        """When it was last started; None when it never was."""
        return parse_time(self.state.get("StartedAt"))

    @property
    def ended_at(self) -> datetime | None:
        """When its last run that ended did; while it runs, that of the run before."""
        return parse_time(self.state.get("FinishedAt"))

    @property
    def incarnation(self) -> Incarnation | None:
        """Its run, or the last one."""
        if self.started_at is None:
            return None
        return Incarnation(f"{self.short_id}@{self.state['StartedAt']}")

    def observation(self, *, stopped_by_us: Incarnation | None, usage: Usage | None) -> Observation:
        """Say it in the words of the driver protocol.

        Args:
            stopped_by_us: The run that this agent stopped last.
            usage: What was read of it last.
        """
        state = self._runtime_state(stopped_by_us)
        run = self.incarnation
        up = state is RuntimeState.RUNNING
        fresh = usage if usage is not None and usage.incarnation == run and up else None
        return Observation(
            state,
            incarnation=run,
            pid=self.state.get("Pid") or None,
            started_at=self.started_at,
            exit_code=None if up or (run is None and not self.state.get("ExitCode")) else self.state.get("ExitCode"),
            restarts=self.data.get("RestartCount"),
            memory_bytes=fresh.memory_bytes if fresh else None,
            cpu_seconds=fresh.cpu_seconds if fresh else None,
            config_sha256=self.config_sha256,
            hindrance="its container is paused" if self.paused else None,
            detail=self._detail(up=up),
        )

    def _detail(self, *, up: bool) -> dict[str, Any]:
        detail: dict[str, Any] = {"container": self.short_id, "container_state": self.state.get("Status")}
        if health := (self.state.get("Health") or {}).get("Status"):
            detail["health"] = health
        if self.paused:
            detail["paused"] = True
        if up:
            return detail
        if self.state.get("OOMKilled"):
            detail["oom_killed"] = True
            detail["cause"] = "the kernel ended it because its container ran out of memory"
        if error := self.state.get("Error"):
            detail["error"] = str(error)[:500]
            detail.setdefault("cause", f"the Engine could not start it: {str(error)[:300]}")
        return detail

    def _runtime_state(self, stopped_by_us: Incarnation | None) -> RuntimeState:
        match self.state.get("Status"):
            case "running" | "paused":
                return RuntimeState.RUNNING
            case "restarting":
                return RuntimeState.STARTING
            case "removing":
                return RuntimeState.STOPPING
            case "dead":
                return RuntimeState.FAILED
            case _:
                return RuntimeState.STOPPED if self._ended_well(stopped_by_us) else RuntimeState.FAILED

    def _ended_well(self, stopped_by_us: Incarnation | None) -> bool:
        if self.state.get("OOMKilled") or self.state.get("Error"):
            return False
        asked = self.incarnation is not None and self.incarnation == stopped_by_us
        return asked or self.state.get("ExitCode", 0) in ASKED_TO_END

    def _part(self, name: str) -> Mapping[str, Any]:
        return self.data.get(name) or {}


def container_of(incarnation: Incarnation) -> tuple[str, datetime | None]:
    """Take an incarnation apart: the container's short id, and when it was started."""
    container, _, started_at = incarnation.partition("@")
    return container, parse_time(started_at)


def log_window(container: Container, incarnation: Incarnation) -> tuple[float, float | None]:
    """Say between which times a run of a container wrote its log, in seconds since the epoch."""
    _, began = container_of(incarnation)
    since = 0.0 if began is None else began.timestamp() - LOG_EARLIER
    if container.incarnation == incarnation:
        # Of the run before, unless this one ended: then it may even be a moment before the Engine noted the start.
        runs = container.state.get("Running") and not container.state.get("Restarting")
        before = container.ended_at if runs else None
        earlier = before is not None and began is not None and before <= began
        return max(since, before.timestamp() if before is not None and earlier else 0.0), None
    later = container.started_at
    return since, later.timestamp() - LOG_EARLIER if later else None


def parse_time(text: object) -> datetime | None:
    """Read a time of the Engine, which has nanoseconds, and year 1 for never."""
    if not isinstance(text, str) or not text or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def read_usage(run: Incarnation | None, stats: Mapping[str, Any]) -> Usage:
    """Read the answer of GET /containers/{id}/stats; memory without the file cache, as `docker stats` shows it."""
    memory = stats.get("memory_stats") or {}
    detail = memory.get("stats") or {}
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    used = memory.get("usage")
    cpu = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    return Usage(
        run,
        memory_bytes=max(0, used - cache) if isinstance(used, int) and isinstance(cache, int) else None,
        cpu_seconds=cpu / 1e9 if isinstance(cpu, int) else None,
    )


def _json(text: str | None) -> Mapping[str, Any]:
    """Read a label of ours; one that somebody spoilt says nothing."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
