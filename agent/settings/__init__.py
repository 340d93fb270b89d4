"""The agent's settings: the model, the sources that it is filled from, and what is said when they are wrong."""

from agent.settings.loading import InvalidSettingsError, Loaded, load, load_connection
from agent.settings.model import AgentSettings, Connection, ProbeSettings, RuntimeSettings, Settings, SupervisorSettings
from agent.settings.rules import ConnectorsRule
from agent.settings.sources import ENROLLMENT_TOKEN, Problem, read_credential

__all__ = [
    "ENROLLMENT_TOKEN",
    "AgentSettings",
    "Connection",
    "ConnectorsRule",
    "InvalidSettingsError",
    "Loaded",
    "ProbeSettings",
    "Problem",
    "RuntimeSettings",
    "Settings",
    "SupervisorSettings",
    "load",
    "load_connection",
    "read_credential",
]
