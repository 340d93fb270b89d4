"""The settings, as a model: every key, its unit, its default and what it means.

`config/agent.toml` and `docs/configuration.md` are generated from here. A rule that spans several keys is in `rules`.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent.logs import LogFormat, LogLevel
from agent.protocol import DriverKind, RuntimeName
from agent.redaction import is_secret_name
from agent.settings import rules
from agent.settings.rules import ConnectorsRule


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        msg = "a number is needed, not true or false"
        raise ValueError(msg)  # noqa: TRY004 - pydantic reports a ValueError beside the other problems
    return value


Seconds = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=1_000_000)]
AbsolutePath = Annotated[Path, AfterValidator(rules.absolute)]
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(rules.printable)]


class Section(BaseModel):
    """One table of the settings: a typo is an error, nothing changes later, and no error shows a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SupervisorSettings(Section):
    """The control plane that this node asks for its work."""

    url: Annotated[str, AfterValidator(rules.supervisor_url)] = Field(
        description="Where the Supervisor answers. HTTPS; plain HTTP is accepted for this machine (loopback) only.",
        examples=["https://supervisor.example.com"],
    )
    ca_file: AbsolutePath | None = Field(
        default=None,
        description="PEM file of the authority that signed the Supervisor's certificate; the system's own by default.",
        examples=["/etc/iggy-agent/ca.pem"],
    )


class AgentSettings(Section):
    """The agent itself."""

    state_dir: AbsolutePath = Field(
        description="Folder of the journal (5 MiB at least), the identity and the staged configs; on a local disk.",
        examples=["/var/lib/iggy-agent"],
    )
    socket: Annotated[AbsolutePath, AfterValidator(rules.socket_path)] = Field(
        description="Unix socket that `iggy-agent status` asks.", examples=["/run/iggy-agent/agent.sock"]
    )
    shutdown_grace: Seconds = Field(
        default=20,
        description="How long a running action may go on after SIGTERM; less than TimeoutStopSec of the agent's unit.",
    )
    retention_days: Count = Field(default=30, description="Days that a reported activity is kept in the journal.")
    retention_count: Count = Field(default=10_000, description="How many reported activities are kept at most.")
    log_format: LogFormat = Field(
        default=LogFormat.AUTO, description="How a log line looks; auto is text on a terminal, json otherwise."
    )
    log_level: LogLevel = Field(default=LogLevel.INFO, description="The least important event that is logged.")


class ProbeSettings(Section):
    """How to tell that a runtime is ready. Without this table, ready means running."""

    http: Annotated[str, AfterValidator(rules.probe_url)] | None = Field(
        default=None, description="URL to get; ready when it answers as below.", examples=["http://127.0.0.1:3000/ping"]
    )
    tcp: Annotated[str, AfterValidator(rules.host_and_port)] | None = Field(
        default=None, description="HOST:PORT to connect to, instead of `http`.", examples=["127.0.0.1:8090"]
    )
    status: Annotated[int, BeforeValidator(_no_boolean), Field(ge=100, le=599)] = Field(
        default=200, description="The HTTP status that means ready."
    )
    expect: Text | None = Field(
        default=None, description="The HTTP body that means ready; any by default.", examples=["pong"]
    )
    attempt_timeout: Seconds = Field(default=2, description="How long one attempt may take; less than `ready_timeout`.")
    ready_timeout: Seconds = Field(default=60, description="How long it may take to get ready after it was started.")
    stable_for: Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=1, description="Seconds that it has to stay up in the same run after it was ready."
    )
    connectors: ConnectorsRule = Field(
        default=ConnectorsRule.WARN,
        description="Runtime `connectors` only: an enabled connector that does not run, read from /stats, is a "
        "warning, means not ready (require), or is ignored.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Runtime `connectors` only: the API key for /stats. Secret: better given as a credential.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        rules.check(rules.probe_problems(self, self.model_fields_set))
        return self


class RuntimeSettings(Section):
    """One managed program: how it is controlled, and how long that may take."""

    driver: DriverKind = Field(description="How it is controlled.", examples=["systemd"])
    unit: Annotated[Text, AfterValidator(rules.unit_name)] | None = Field(
        default=None, description="Driver `systemd`: the unit.", examples=["iggy.service"]
    )
    container: Annotated[Text, AfterValidator(rules.container_name)] | None = Field(
        default=None, description="Driver `docker`: the container's name.", examples=["iggy"]
    )
    command: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="Driver `process`: the program and its arguments.", examples=[["iggy-server"]]
    )
    environment: Annotated[dict[str, str], AfterValidator(rules.environment)] = Field(
        default_factory=dict,
        repr=False,
        description="Driver `process`: environment of the program; a config's values win.",
        examples=[{"RUST_LOG": "info"}],
    )
    working_directory: AbsolutePath | None = Field(
        default=None, description="Driver `process`: the folder that it is started in.", examples=["/var/lib/iggy"]
    )
    owned: bool = Field(
        default=False,
        description="Driver `process`: it starts and ends with the agent (for a container that holds both).",
    )
    start_timeout: Seconds = Field(default=90, description="How long it may stay on its way up.")
    stop_timeout: Seconds = Field(default=60, description="How long a graceful stop may take; Iggy drains for 40 s.")
    action_timeout: Seconds = Field(default=300, description="How long a whole action may take; longer than its parts.")
    probe: ProbeSettings | None = Field(default=None, description="How to tell that it is ready.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        rules.check([*rules.driver_problems(self, self.model_fields_set), *rules.timeout_problems(self)])
        return self


class Connection(BaseSettings):
    """What is needed to reach the Supervisor: the settings without the runtimes.

    Only given values are read here; where they come from is decided in `sources`.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    supervisor: SupervisorSettings
    agent: AgentSettings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings' own
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the given values only."""
        return (init_settings,)


class Settings(Connection):
    """All settings of the agent."""

    runtimes: Annotated[dict[RuntimeName, RuntimeSettings], AfterValidator(rules.whole_node)] = Field(
        default_factory=dict, validate_default=True, description="The programs that this node has."
    )

    def secret_values(self) -> list[str]:
        """List the values that must never be printed."""
        secrets = [
            value
            for runtime in self.runtimes.values()
            for name, value in runtime.environment.items()
            if is_secret_name(name)
        ]
        keys = [runtime.probe.api_key for runtime in self.runtimes.values() if runtime.probe and runtime.probe.api_key]
        return secrets + [key.get_secret_value() for key in keys]
