"""Configs in the store: versions that never change, one active per kind, secrets that never come back."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from agent.protocol import MAX_CONFIG_BYTES, Config, ConfigFile, FieldIssue, config_sha256
from agent.redaction import Redactor, config_secrets, is_secret_name
from supervisor.auth import MASK, Caller, Deployment
from supervisor.clock import whole_time
from supervisor.ids import allocate_id
from supervisor.problems import Code, ProblemError
from supervisor.requests import Paging
from supervisor.schema import ConfigBody


def create_config(
    connection: sqlite3.Connection, caller: Caller, kind: str, body: ConfigBody, now: int
) -> dict[str, Any]:
    """Save a new version of a named config, with an id of its own.

    Raises:
        ProblemError: It is over 512 KiB as the agent would get it (413), or a value holds the mask (400).
    """
    secret_keys = sorted({*body.secret_keys, *(key for key in body.values if is_secret_name(key))})
    _refuse_masks(body.values)
    (latest,) = connection.execute(
        "SELECT coalesce(max(version), 0) FROM configs WHERE deployment_id = ? AND kind = ? AND name = ?",
        (caller.deployment.id, kind, body.name),
    ).fetchone()
    files = [ConfigFile(path=file.path, content=file.content) for file in body.files]
    config = Config(
        id=allocate_id(connection, now),
        kind=kind,
        name=body.name,
        version=latest + 1,
        runtime_version=body.runtime_version,
        values=body.values,
        secret_keys=secret_keys,
        files=files,
        sha256=config_sha256(
            kind=kind,
            runtime_version=body.runtime_version,
            values=body.values,
            secret_keys=secret_keys,
            files=[file.model_dump() for file in files],
        ),
    )
    content = config.model_dump_json()
    if (size := len(content.encode())) > MAX_CONFIG_BYTES:
        raise ProblemError(
            Code.CONFIG_TOO_LARGE, f"cannot save the config: it has {size} bytes, and {MAX_CONFIG_BYTES} are allowed"
        )
    secrets = sorted(config_secrets(body.values, secret_keys, {file.path: file.content for file in files}))
    connection.execute(
        "INSERT INTO configs (id, deployment_id, kind, name, version, author_id, content, secrets, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            config.id,
            caller.deployment.id,
            kind,
            config.name,
            config.version,
            caller.author_id,
            content,
            json.dumps(secrets),
            now,
        ),
    )
    if body.activate:
        return activate_config(connection, caller.deployment, kind, config.id)
    return get_config(connection, caller.deployment, kind, config.id)


def _refuse_masks(values: Mapping[str, str]) -> None:
    issues = [
        FieldIssue(code="masked_secret", reason="this holds the mask of a secret, not its value", path=f"values.{key}")
        for key, value in values.items()
        if MASK in value
    ]
    if issues:
        raise ProblemError(Code.INVALID_BODY, f"cannot save the config: {issues[0].reason}", issues=issues)


def activate_config(
    connection: sqlite3.Connection, deployment: Deployment, kind: str, config_id: int
) -> dict[str, Any]:
    """Make a config the active one of its kind. No node is touched: that is what `reconfigure` is for.

    Raises:
        ProblemError: There is no such config (404).
    """
    get_config(connection, deployment, kind, config_id)
    connection.execute(
        "UPDATE configs SET active = 0 WHERE deployment_id = ? AND kind = ? AND active = 1", (deployment.id, kind)
    )
    connection.execute("UPDATE configs SET active = 1 WHERE id = ?", (config_id,))
    return get_config(connection, deployment, kind, config_id)


def get_config(connection: sqlite3.Connection, deployment: Deployment, kind: str, config_id: int) -> dict[str, Any]:
    """Return a config as a user sees it.

    Raises:
        ProblemError: There is no such config of this kind in this deployment (404).
    """
    row = connection.execute(
        "SELECT * FROM configs WHERE id = ? AND deployment_id = ? AND kind = ?", (config_id, deployment.id, kind)
    ).fetchone()
    if row is None:
        raise ProblemError(
            Code.UNKNOWN_CONFIG, f"cannot find config {config_id}: this deployment has no {kind} config with this id"
        )
    return _config_item(row, redactor_of(connection, deployment))


def list_configs(
    connection: sqlite3.Connection, deployment: Deployment, kind: str, paging: Paging
) -> tuple[list[dict[str, Any]], int]:
    """List the newest version of each name, and the active one; newest first."""
    of_kind = "SELECT max(id) FROM configs WHERE deployment_id = ?1 AND kind = ?2 GROUP BY name"
    active = "SELECT id FROM configs WHERE deployment_id = ?1 AND kind = ?2 AND active = 1"
    return _page(connection, deployment, f"id IN ({of_kind} UNION {active})", (kind,), paging)


def list_versions(
    connection: sqlite3.Connection, deployment: Deployment, kind: str, name: str, paging: Paging
) -> tuple[list[dict[str, Any]], int]:
    """List every version of a named config, newest first.

    Raises:
        ProblemError: There is no config of this name (404).
    """
    items, total = _page(connection, deployment, "deployment_id = ?1 AND kind = ?2 AND name = ?3", (kind, name), paging)
    if not total:
        raise ProblemError(
            Code.UNKNOWN_CONFIG, f"cannot find config {name[:64]!r}: this deployment has no {kind} config of this name"
        )
    return items, total


def _page(
    connection: sqlite3.Connection, deployment: Deployment, where: str, more: tuple[str, ...], paging: Paging
) -> tuple[list[dict[str, Any]], int]:
    # `where` is one of the constants above; everything of a request travels in `values`.
    values = (deployment.id, *more)
    (total,) = connection.execute(f"SELECT count(*) FROM configs WHERE {where}", values).fetchone()  # noqa: S608 - as above
    rows = connection.execute(
        f"SELECT * FROM configs WHERE {where} ORDER BY id DESC LIMIT {paging.results} OFFSET {paging.offset}",  # noqa: S608 - as above
        values,
    )
    redactor = redactor_of(connection, deployment)
    return [_config_item(row, redactor) for row in rows], total


def config_content(connection: sqlite3.Connection, config_id: int) -> bytes:
    """Return a config's JSON as the agent gets it, secrets and all."""
    row = connection.execute("SELECT content FROM configs WHERE id = ?", (config_id,)).fetchone()
    return bytes(row["content"], "utf-8")


def redactor_of(connection: sqlite3.Connection, deployment: Deployment) -> Redactor:
    """Make what masks every secret that a config of this deployment ever had, and what looks like one.

    The agent has masked what a node says; this is the last gate before a user's eyes.
    """
    rows = connection.execute(
        "SELECT secrets FROM configs WHERE deployment_id = ? AND secrets != '[]'", (deployment.id,)
    )
    redactor = Redactor(MASK)
    redactor.add({secret for row in rows for secret in json.loads(row["secrets"])})
    return redactor


def _config_item(row: sqlite3.Row, redactor: Redactor) -> dict[str, Any]:
    config = Config.model_validate_json(row["content"])
    return {
        "id": config.id,
        "deployment_id": row["deployment_id"],
        "author_id": row["author_id"],
        "kind": config.kind,
        "name": config.name,
        "version": config.version,
        "primary": bool(row["active"]),
        "runtime_version": config.runtime_version,
        "values": {
            key: MASK if key in config.secret_keys else redactor.text(value) for key, value in config.values.items()
        },
        "secret_keys": config.secret_keys,
        "files": [{"path": file.path, "size": len(file.content.encode())} for file in config.files],
        "created_at": whole_time(row["created_at"]),
    }
