"""The words and messages that the agent and the Supervisor exchange: agent protocol, version 1.

Parsing is lenient (an unknown field is ignored, so an old agent understands a newer Supervisor), producing is strict.
Nothing here does any I/O, and nothing here imports the rest of the project. `docs/protocol.md` tells the story of a
conversation.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

MAX_ID = 2**63 - 1
MAX_REVISION = 2**53
"""More than a node can begin; a journal that took over a higher one could not count on from it."""
MAX_BODY_BYTES = 1024 * 1024
"""The agent refuses a longer body, and sends none."""
MAX_CONFIG_BYTES = 512 * 1024
"""The Supervisor refuses a longer config, as JSON."""
MAX_ANSWER_BYTES = 768 * 1024
"""The Supervisor cuts a list of activities here; one item always goes."""
MAX_POLL_WAIT = 55
"""Seconds that a long poll is held at most; many proxies cut at 60."""

INSTANCE_HEADER = "Agent-Instance"
REVISION_HEADER = "Journal-Revision"


class RuntimeName(StrEnum):
    """A program that the agent manages."""

    IGGY = "iggy"
    """The streaming server, `iggy-server`."""
    CONNECTORS = "connectors"
    """The connectors runtime, `iggy-connectors`."""


class Verb(StrEnum):
    """What an activity does to its runtime."""

    START = "start"
    """Bring it up; already up and ready is a success."""
    STOP = "stop"
    """Bring it down gracefully; already down is a success."""
    RESTART = "restart"
    """Bring it up in a new incarnation, once."""
    RECONFIGURE = "reconfigure"
    """Give it another config, and go back if it does not get ready with it."""


class ActivityStatus(StrEnum):
    """Where an activity stands, as a user sees it."""

    PROCESSING = "processing"
    """Dispatched; the node has not reported yet."""
    COMPLETED = "completed"
    """The node saw the aim reached."""
    REJECTED = "rejected"
    """The node failed or refused; the reason says why."""


class ReportStatus(StrEnum):
    """The agent's final word on an activity."""

    COMPLETED = "completed"
    """The aim was seen reached."""
    REJECTED = "rejected"
    """It was not, or it was refused."""


class ReportOutcome(StrEnum):
    """What the Supervisor did with one report; each is final for the agent."""

    RECORDED = "recorded"
    """It is the node's word now."""
    DUPLICATE = "duplicate"
    """The same report was there already."""
    CONFLICT = "conflict"
    """Another report of this node was there already, and stays."""
    UNKNOWN = "unknown"
    """The Supervisor has no such activity for this node."""


class DriverKind(StrEnum):
    """How a runtime is controlled."""

    SYSTEMD = "systemd"
    """A systemd unit, over D-Bus."""
    DOCKER = "docker"
    """A container, over the Engine API."""
    PROCESS = "process"
    """A process that the agent starts itself."""


class RuntimeState(StrEnum):
    """A runtime's state at one moment."""

    RUNNING = "running"
    """Its process is up; says nothing about readiness."""
    STOPPED = "stopped"
    """Not running, and nothing is about to start it."""
    STARTING = "starting"
    """On its way up, or about to be revived (auto-restart)."""
    STOPPING = "stopping"
    """On its way down."""
    FAILED = "failed"
    """Not running, and its last run ended badly."""
    MISSING = "missing"
    """There is no such unit, container or command."""


class ReconfigureOutcome(StrEnum):
    """What became of a config."""

    APPLIED = "applied"
    """It is the current one (and was seen ready, unless the runtime was stopped)."""
    NOT_APPLIED = "not_applied"
    """It was refused or superseded; nothing was changed for good."""
    ROLLED_BACK = "rolled_back"
    """It did not get ready; the last committed one runs again."""
    ROLLBACK_FAILED = "rollback_failed"
    """It did not get ready, and neither did the last committed one."""


class ReasonCode(StrEnum):
    """Why an activity was rejected; stable, for programs."""

    UNKNOWN_RUNTIME = "unknown_runtime"
    """This node does not manage such a runtime."""
    UNKNOWN_ACTION = "unknown_action"
    """The agent knows no such action."""
    INVALID_ACTIVITY = "invalid_activity"
    """The activity could not be parsed."""
    NOT_PERMITTED = "not_permitted"
    """The node does not allow it."""
    NOT_FOUND = "not_found"
    """There is no such unit, container or command."""
    EXPIRED = "expired"
    """Its time was over before it could begin."""
    SUPERSEDED = "superseded"
    """A later action ended its wait for readiness."""
    BUSY = "busy"
    """Somebody else is acting on the runtime."""
    START_FAILED = "start_failed"
    """It ended while starting."""
    STOP_FAILED = "stop_failed"
    """It could not be stopped."""
    NOT_READY = "not_ready"
    """It runs, and its probe never succeeded in time."""
    UNSTABLE = "unstable"
    """It was ready, then died or restarted by itself."""
    TIMEOUT = "timeout"
    """The action's time was over."""
    CONFIG_MISSING = "config_missing"
    """A reconfigure without its config."""
    CONFIG_INVALID = "config_invalid"
    """The config breaks a rule; nothing was touched."""
    CONFIG_CHECKSUM = "config_checksum"
    """The config is not what its checksum says."""
    ROLLED_BACK = "rolled_back"
    """The new config did not get ready; the last committed one runs again."""
    ROLLBACK_FAILED = "rollback_failed"
    """Neither the new config nor the last committed one got ready."""
    DRIVER_UNAVAILABLE = "driver_unavailable"
    """The bus or the engine does not answer."""
    NO_SPACE = "no_space"
    """The disk is full."""
    OUTCOME_UNKNOWN = "outcome_unknown"
    """It may or may not have been done; it is not done again."""
    WITHDRAWN = "withdrawn"
    """No longer wanted when the agent could begin."""
    NO_REPORT = "no_report"
    """The Supervisor's own: the node never reported."""
    INTERNAL = "internal"
    """A fault of the agent itself."""


def format_time(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC, with microseconds only where there are any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        msg = "a time needs its zone (RFC 3339)"
        raise ValueError(msg)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:  # year 1 or 9999, and a zone: pydantic lets only ValueError become its own
        msg = "a time must be one that UTC has, too"
        raise ValueError(msg) from error


def _rfc3339(value: object) -> datetime:
    """Read a time, and refuse what a lenient reader would make one of, such as seconds since 1970."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        return datetime.fromisoformat(value.upper())
    msg = "a time is a text such as 2026-03-16T12:00:00Z, with its zone (RFC 3339)"
    raise ValueError(msg)


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)

Id = Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]
Time = Annotated[
    datetime,
    BeforeValidator(_rfc3339),
    AfterValidator(_utc),
    PlainSerializer(format_time, return_type=str, when_used="json"),
]


class Message(BaseModel):
    """A message: unknown fields are ignored, and nothing changes it after it was made."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Action:
    """An action as the path of the public API spells it: `restart`, `reconfigure:42`."""

    verb: Verb
    config_id: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an action.

        Raises:
            ValueError: It is not one of `start`, `stop`, `restart`, `reconfigure:{config_id}`; the message says so.
        """
        if match := re.fullmatch(r"reconfigure:([1-9][0-9]{0,18})", text):
            config_id = int(match[1])
            if config_id <= MAX_ID:
                return cls(Verb.RECONFIGURE, config_id)
        if text in {Verb.START, Verb.STOP, Verb.RESTART}:
            return cls(Verb(text))
        msg = f"unknown action {text[:80]!r}: expected start, stop, restart or reconfigure:{{config_id}}"
        raise ValueError(msg)

    def __str__(self) -> str:
        return self.verb if self.config_id is None else f"{self.verb}:{self.config_id}"


class ConfigFile(Message):
    """One file of a config; `path` is relative to the runtime's config folder."""

    path: str
    content: str


class Config(Message):
    """A named, versioned set of values and files for a runtime; travels inside its reconfigure activity."""

    id: Id
    kind: str
    name: str
    version: Annotated[int, Field(ge=1, le=MAX_ID)]
    runtime_version: str | None = None
    values: dict[str, str]
    secret_keys: list[str] = []
    files: list[ConfigFile] = []
    sha256: str

    def compute_sha256(self) -> str:
        """Compute the checksum that `sha256` has to have."""
        return config_sha256(
            kind=self.kind,
            runtime_version=self.runtime_version,
            values=self.values,
            secret_keys=self.secret_keys,
            files=[file.model_dump() for file in self.files],
        )


def config_sha256(
    *,
    kind: str,
    runtime_version: str | None,
    values: Mapping[str, str],
    secret_keys: Sequence[str],
    files: Sequence[Mapping[str, str]],
) -> str:
    """Hash a config's content: SHA-256 of its JSON with sorted keys, no spaces, and UTF-8 as it is."""
    content = {
        "kind": kind,
        "runtime_version": runtime_version,
        "values": dict(values),
        "secret_keys": list(secret_keys),
        "files": [{"path": file["path"], "content": file["content"]} for file in files],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Activity(Message):
    """One dispatched action for this node. `runtime` and `action` are text: an unknown one is answered, not dropped."""

    id: Id
    sequence: Id
    runtime: str
    action: str
    config: Config | None = None
    author_id: int | None = None
    created_at: Time
    expires_at: Time | None = None


class ActivityList(Message):
    """The answer to `GET activities`; items are kept raw, so that one bad item does not hide the good ones."""

    items: list[Any]
    last: Annotated[int, Field(ge=0, le=MAX_ID)] | None = None
    """The highest sequence that this node was ever given; None when the answer does not say."""
    revision: Annotated[int, Field(ge=0, le=MAX_REVISION)] = 0
    """The highest Journal-Revision that this node ever sent."""


class Reason(Message):
    """Why an activity was rejected: a code for programs, a sentence for people, the next step."""

    code: str
    message: str
    hint: str | None = None


class Report(Message):
    """The agent's final word on one activity."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"status": {"const": ReportStatus.REJECTED.value}}, "required": ["status"]},
            "then": {"properties": {"reason": {"$ref": "#/components/schemas/Reason"}}, "required": ["reason"]},
        }
    )

    activity_id: Id
    status: ReportStatus
    started_at: Time | None = None
    finished_at: Time
    changed: bool = False
    recovered: bool = False
    reason: Reason | None = None
    evidence: dict[str, Any] = {}


class ReportBatch(Message):
    """The body of `POST reports`."""

    reports: Annotated[list[Report], Field(min_length=1, max_length=100)]


class ReportResult(Message):
    """What became of one report."""

    activity_id: Id
    outcome: ReportOutcome


class ReportResults(Message):
    """The answer to `POST reports`."""

    results: list[ReportResult]


class EnrollRequest(Message):
    """The body of `POST enroll`, the one call without a node token."""

    enrollment_token: str
    hostname: Annotated[str, Field(max_length=255)]
    machine_id: Annotated[str, Field(min_length=1, max_length=128)]
    agent_version: Annotated[str, Field(max_length=64)]


class Enrollment(Message):
    """The answer to `POST enroll`: who this node is, and the token that proves it."""

    tenant_id: Id
    division_id: Id
    environment_id: Id
    deployment_id: Id
    node_id: Id
    node_token: str


class TokenRotation(Message):
    """The answer to `POST token`: the new token, and until when the previous one still works."""

    node_token: str
    previous_valid_until: Time


class JournalStatus(Message):
    """How much is on its way: activities not finished yet, and reports not confirmed yet."""

    waiting: int
    unreported: int


class AgentStatus(Message):
    """The agent itself, in a heartbeat."""

    version: str
    started_at: Time
    journal: JournalStatus
    conditions: list[str] = []
    """Codes of what is degraded, such as `journal_lost`; empty when all is well."""


class NodeStatus(Message):
    """The machine, in a heartbeat. Bytes, seconds and percent; a figure that could not be read is null."""

    hostname: str
    cpu_count: int | None = None
    cpu_percent: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    disk_total_bytes: int | None = None
    disk_used_bytes: int | None = None
    load: list[float] | None = None
    uptime_seconds: float | None = None


class RuntimeStatus(Message):
    """One runtime, in a heartbeat and in `iggy-agent status`."""

    runtime: RuntimeName
    driver: DriverKind
    state: RuntimeState | None
    """Null when the driver could not be asked; `message` says why."""
    ready: bool | None = None
    incarnation: str | None = None
    pid: int | None = None
    started_at: Time | None = None
    restarts: int | None = None
    exit_code: int | None = None
    version: str | None = None
    config_id: int | None = None
    config_version: int | None = None
    drifted: bool | None = None
    """True when the running incarnation was started with another config than the current one."""
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    activity_id: int | None = None
    """The activity that is acting on it now."""
    message: str | None = None
    warnings: list[str] = []


class Heartbeat(Message):
    """The body of `POST heartbeats`."""

    sent_at: Time
    agent: AgentStatus
    node: NodeStatus
    runtimes: list[RuntimeStatus]


class HeartbeatAnswer(Message):
    """The answer to `POST heartbeats`: the Supervisor sets the pace of its fleet. Seconds."""

    server_time: Time
    heartbeat_interval: Annotated[float, Field(gt=0, le=3600)]
    poll_wait: Annotated[float, Field(ge=0, le=MAX_POLL_WAIT)]


class FieldIssue(Message):
    """One field of a request that broke a rule."""

    code: str
    reason: str
    path: str


class Problem(Message):
    """An error answer, `application/problem+json`; `code` is the stable word, `reason` the sentence."""

    type: str = "about:blank"
    title: str
    code: str
    reason: str
    instance: str | None = None
    field: str | None = None
    field_issues: list[FieldIssue] = []
    status: int | None = None
    retryable: bool = False
