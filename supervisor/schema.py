"""The messages of the public API. Bodies are parsed strictly: a misspelt `nodes` must not restart the whole fleet."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from agent.protocol import (
    MAX_ID,
    ActivityStatus,
    FieldIssue,
    Heartbeat,
    Id,
    Reason,
    RuntimeName,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEFAULT_TOKEN_SECONDS = 3600
MAX_TOKEN_SECONDS = 7 * 86_400

ConfigName = Annotated[str, Field(pattern=NAME_PATTERN)]
WholeTime = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-03-16T12:00:00Z"])]


class Body(BaseModel):
    """A request body: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Answer(BaseModel):
    """An answer: exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class DispatchBody(Body):
    """Which nodes are targeted: all of the deployment, or those listed."""

    nodes: Annotated[list[Id], Field(min_length=1, default_factory=list, examples=[[610809900976570889]])]


class ConfigFileBody(Body):
    """A file of a config."""

    path: Annotated[str, Field(min_length=1, max_length=1024)]
    content: str


class ConfigBody(Body):
    """A new version of a named config."""

    name: ConfigName
    values: dict[str, str]
    files: list[ConfigFileBody] = []
    secret_keys: list[str] = []
    """Keys of `values` that are secret; keys that look so by their name are added."""
    runtime_version: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    activate: bool = False


class EnrollmentTokenBody(Body):
    """A new enrolment token."""

    ttl: Annotated[int, Field(ge=1, le=MAX_TOKEN_SECONDS)] = DEFAULT_TOKEN_SECONDS
    """Seconds until it expires."""


class EmptyBody(Body):
    """Nothing: no body, or an empty object."""


class ActivityItem(Answer):
    """An activity: one action for one node."""

    id: Id
    tenant_id: Id
    division_id: Id
    environment_id: Id
    deployment_id: Id
    author_id: Id
    runtime: RuntimeName
    action: Annotated[str, Field(examples=["restart", "reconfigure:42"])]
    node_id: Id
    status: ActivityStatus
    created_at: WholeTime
    finished_at: WholeTime | None
    reason: Reason | None = None
    """Why it was rejected; absent otherwise."""


class ActivityDetail(ActivityItem):
    """An activity with what the node reported."""

    started_at: WholeTime | None
    changed: bool | None
    """Whether the node had to do anything; null while nothing was reported."""
    recovered: bool | None
    """Whether the agent finished it after a crash; null while nothing was reported."""
    evidence: dict[str, Any] | None


class Activities(Answer):
    """The activities that a dispatch made, one per targeted node."""

    items: list[ActivityItem]


class Page(Answer):
    """Where a list stands."""

    page: Annotated[int, Field(ge=1)]
    total_results: Annotated[int, Field(ge=0)]
    total_pages: Annotated[int, Field(ge=0)]


class ActivityPage(Page):
    """Activities, newest first."""

    items: list[ActivityItem]


class NodeItem(Answer):
    """A node with its latest heartbeat."""

    id: Id
    tenant_id: Id
    division_id: Id
    environment_id: Id
    deployment_id: Id
    hostname: str
    agent_version: str
    """As of its enrolment; the heartbeat says what runs now."""
    created_at: WholeTime
    heartbeat_at: WholeTime | None
    heartbeat_age: Annotated[float, Field(ge=0)] | None
    """Seconds since the Supervisor got it."""
    heartbeat: Heartbeat | None


class NodePage(Page):
    """Nodes, in the order in which they were enrolled."""

    items: list[NodeItem]


class ConfigFileItem(Answer):
    """A file of a config; its content, which may hold secrets, is not shown."""

    path: str
    size: Annotated[int, Field(ge=0)]
    """Bytes."""


class ConfigItem(Answer):
    """One version of a config; `reconfigure:{id}` applies exactly this one."""

    id: Id
    deployment_id: Id
    author_id: Id
    kind: RuntimeName
    name: str
    version: Annotated[int, Field(ge=1, le=MAX_ID)]
    primary: bool
    """Whether it is the active one of its kind."""
    runtime_version: str | None
    values: dict[str, str]
    """Secret values are masked."""
    secret_keys: list[str]
    files: list[ConfigFileItem]
    created_at: WholeTime


class ConfigPage(Page):
    """Configs, newest first."""

    items: list[ConfigItem]


class EnrollmentTokenItem(Answer):
    """An enrolment token; the token itself is shown this once."""

    id: Id
    deployment_id: Id
    enrollment_token: str
    created_at: WholeTime
    expires_at: WholeTime


class ProblemAnswer(Answer):
    """An error; `code` is the stable word, `reason` the sentence."""

    type: str
    title: str
    code: str
    reason: str
    instance: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """The id of the request, also in the header `ld-request`."""
    field: str | None = None
    field_issues: list[FieldIssue]
    status: int
    retryable: bool
