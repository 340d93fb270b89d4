"""Configs for the tests."""

from typing import Any

from agent.protocol import Config, ConfigFile


def config(**changes: Any) -> Config:
    """A valid config with a right checksum; `files` is {path: content}."""
    files = changes.pop("files", {})
    facts: dict[str, Any] = {
        "id": 42,
        "kind": "iggy",
        "name": "main",
        "version": 3,
        "runtime_version": "0.8.0",
        "values": {"IGGY_HTTP_ADDRESS": "127.0.0.1:3000"},
        "secret_keys": [],
        "files": [ConfigFile(path=path, content=content) for path, content in files.items()],
        "sha256": "",
        **changes,
    }
    draft = Config(**facts)
    return draft if draft.sha256 else draft.model_copy(update={"sha256": draft.compute_sha256()})


def connectors_config(**changes: Any) -> Config:
    return config(**{"kind": "connectors", "values": {"IGGY_CONNECTORS_HTTP_ADDRESS": "127.0.0.1:8081"}, **changes})
