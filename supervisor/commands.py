"""The commands on the store itself: deployments, keys, enrolment tokens, nodes. They work while `serve` runs."""

import argparse
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from supervisor import nodes
from supervisor.auth import Permission, SecretKind, create_key, new_secret
from supervisor.clock import SECOND, now_microseconds, whole_time
from supervisor.database import StoreError, connect, transaction
from supervisor.ids import allocate_id

Rows = list[dict[str, Any]]


def create_deployment(options: argparse.Namespace) -> dict[str, Any]:
    """Make a deployment; it makes the store too when there is none."""
    now = now_microseconds()
    with _store(options, create=True) as connection, transaction(connection):
        # The deployment's own id is taken last: ids that the caller did not give are made up on the way.
        above = [
            given or allocate_id(connection, now)
            for given in (options.tenant_id, options.division_id, options.environment_id)
        ]
        row = (allocate_id(connection, now), *above, options.name, now)
        connection.execute("INSERT INTO deployments VALUES (?, ?, ?, ?, ?, ?)", row)
    return _deployment(*row)


def list_deployments(options: argparse.Namespace) -> Rows:
    """List all deployments."""
    with _store(options) as connection:
        rows = connection.execute("SELECT * FROM deployments ORDER BY id")
        return [_deployment(*row) for row in rows]


def _deployment(
    deployment_id: int, tenant_id: int, division_id: int, environment_id: int, name: str, created_at: int
) -> dict[str, Any]:
    return {
        "id": deployment_id,
        "tenant_id": tenant_id,
        "division_id": division_id,
        "environment_id": environment_id,
        "name": name,
        "created_at": whole_time(created_at),
    }


def create_api_key(options: argparse.Namespace) -> dict[str, Any]:
    """Make an API key; the key itself is shown this once."""
    now = now_microseconds()
    permissions = frozenset(options.permission or [Permission.MANAGE, Permission.CONFIG_MANAGE])
    with _store(options) as connection, transaction(connection):
        if options.deployment is not None:
            _check_deployment(connection, options.deployment)
        key_id, key = create_key(
            connection,
            name=options.name,
            permissions=permissions,
            deployment_id=options.deployment,
            author_id=options.author_id,
            days=options.days,
            now=now,
        )
        row = connection.execute("SELECT * FROM api_keys WHERE id = ?", (key_id,)).fetchone()
    return {"id": key_id, "api_key": key} | _key(row)


def list_keys(options: argparse.Namespace) -> Rows:
    """List all API keys, without the keys themselves, which nobody has kept."""
    with _store(options) as connection:
        return [{"id": row["id"]} | _key(row) for row in connection.execute("SELECT * FROM api_keys ORDER BY id")]


def _key(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "name": row["name"],
        "author_id": row["author_id"],
        "deployment_id": row["deployment_id"],
        "permissions": row["permissions"].split(),
        "created_at": whole_time(row["created_at"]),
        "expires_at": whole_time(row["expires_at"]),
        "revoked_at": whole_time(row["revoked_at"]),
    }


def revoke_key(options: argparse.Namespace) -> dict[str, Any]:
    """Revoke an API key; the next request with it is refused."""
    with _store(options) as connection, transaction(connection):
        revoked = connection.execute(
            "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now_microseconds(), options.id)
        ).rowcount
    if not revoked:
        msg = f"cannot revoke API key {options.id}: there is none with this id that is not revoked already"
        raise StoreError(msg, hint="`iggy-supervisor keys list` shows them")
    return {"id": options.id, "revoked": True}


def create_enrollment_token(options: argparse.Namespace) -> dict[str, Any]:
    """Make an enrolment token; the token itself is shown this once."""
    now, token = now_microseconds(), new_secret(SecretKind.ENROLLMENT_TOKEN)
    ttl = options.ttl * SECOND
    with _store(options) as connection, transaction(connection):
        _check_deployment(connection, options.deployment)
        token_id = nodes.create_enrollment_token(connection, options.deployment, token, ttl, now)
    return {
        "id": token_id,
        "deployment_id": options.deployment,
        "enrollment_token": token,
        "created_at": whole_time(now),
        "expires_at": whole_time(now + ttl),
    }


def list_nodes(options: argparse.Namespace) -> Rows:
    """List the nodes of a deployment, or of all; heartbeats are as of a few seconds ago."""
    with _store(options) as connection:
        rows = connection.execute(
            "SELECT * FROM nodes WHERE removed_at IS NULL AND deployment_id = coalesce(?, deployment_id) ORDER BY id",
            (options.deployment,),
        )
        return [_node(row) for row in rows]


def _node(row: sqlite3.Row) -> dict[str, Any]:
    beat = json.loads(row["heartbeat"]) if row["heartbeat"] else {"runtimes": []}
    age = None if row["heartbeat_at"] is None else round((now_microseconds() - row["heartbeat_at"]) / SECOND, 1)
    return {
        "id": row["id"],
        "deployment_id": row["deployment_id"],
        "hostname": row["hostname"],
        "agent_version": beat["agent"]["version"] if "agent" in beat else row["agent_version"],
        "created_at": whole_time(row["created_at"]),
        "heartbeat_age": age,
        "runtimes": {runtime["runtime"]: runtime["state"] for runtime in beat["runtimes"]},
    }


def remove_node(options: argparse.Namespace) -> dict[str, Any]:
    """Remove a node for good: its agent is told to stop asking, and touches nothing."""
    with _store(options) as connection, transaction(connection):
        removed = nodes.remove_node(connection, options.id, now_microseconds())
    if not removed:
        msg = f"cannot remove node {options.id}: there is none with this id"
        raise StoreError(msg, hint="`iggy-supervisor nodes list` shows them")
    return {"id": options.id, "removed": True}


def _check_deployment(connection: sqlite3.Connection, deployment_id: int) -> None:
    if connection.execute("SELECT 1 FROM deployments WHERE id = ?", (deployment_id,)).fetchone() is None:
        msg = f"cannot find deployment {deployment_id}: there is none with this id"
        raise StoreError(msg, hint="`iggy-supervisor deployments list` shows them")


@contextlib.contextmanager
def _store(options: argparse.Namespace, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    connection = connect(options.data, create=create)
    try:
        yield connection
    except sqlite3.Error as error:
        msg = f"cannot use the store in {options.data}: {error}"
        raise StoreError(msg, hint="try again; `serve` may be busy, or the disk full") from error
    finally:
        connection.close()
