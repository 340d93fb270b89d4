"""Nodes in the store: enrolment, their tokens, which agent instance speaks for one, heartbeats, removal."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.protocol import INSTANCE_HEADER, EnrollRequest
from supervisor.activities import no_report
from supervisor.auth import DAY, Deployment, SecretKind, hash_secret, new_secret
from supervisor.clock import SECOND, whole_time
from supervisor.ids import allocate_id
from supervisor.problems import Code, ProblemError
from supervisor.requests import Paging

TOKEN_LIFE = 365 * DAY
"""A node token's life; agents rotate theirs long before."""
TOKEN_OVERLAP = 600 * SECOND
"""How long the previous token still works once the new one was made and used."""
MAX_FORMER_INSTANCES = 1000
"""Former instances that are remembered of each node; each is one start of its agent."""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as the server keeps it in memory."""

    id: int
    deployment_id: int
    instance: str | None
    revision: int
    last_sequence: int
    removed: bool


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A node token as the server keeps it in memory."""

    hash: str
    node_id: int
    expires_at: int
    used: bool


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A machine that is a node now."""

    deployment: Deployment
    node: NodeRow
    node_token: str
    tokens: list[TokenRow]
    """All valid tokens of the node."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A call of an agent that has something new in its headers: an instance, a revision, or a token's first use."""

    node_id: int
    token_hash: str
    instance: str
    revision: int
    first_use: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call that was accepted, and what is known of its node since."""

    node_id: int
    instance: str
    revision: int
    tokens: list[TokenRow] | None
    """All tokens of the node; nothing when they are as they were."""


def create_enrollment_token(connection: sqlite3.Connection, deployment_id: int, token: str, ttl: int, now: int) -> int:
    """Make an enrolment token that serves one machine until `ttl` microseconds from now, and return its id."""
    token_id = allocate_id(connection, now)
    connection.execute(
        "INSERT INTO enrollment_tokens (id, hash, deployment_id, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        (token_id, hash_secret(token), deployment_id, now, now + ttl),
    )
    return token_id


def enroll(connection: sqlite3.Connection, request: EnrollRequest, now: int) -> Enrolled:
    """Make a machine a node; asked again by the same machine, return the same node with a fresh token.

    Raises:
        ProblemError: The enrolment token is unknown or expired (401), served another machine (409), or its node was
            removed (410).
    """
    row = connection.execute(
        "SELECT * FROM enrollment_tokens WHERE hash = ?", (hash_secret(request.enrollment_token),)
    ).fetchone()
    if row is None:
        raise ProblemError(Code.ENROLLMENT_TOKEN_INVALID, "cannot enrol: the enrolment token is unknown")
    if row["expires_at"] <= now:
        raise ProblemError(Code.ENROLLMENT_TOKEN_EXPIRED, "cannot enrol: the enrolment token has expired")
    if row["machine_id"] is not None and row["machine_id"] != request.machine_id:
        raise ProblemError(
            Code.ENROLLMENT_TOKEN_USED,
            "cannot enrol: the enrolment token already served another machine; make one for each machine",
        )
    node_id = row["node_id"] or _create_node(connection, row["id"], row["deployment_id"], request, now)
    node = get_node(connection, node_id)
    if node.removed:
        raise decommissioned(node_id)
    deployment = connection.execute(
        "SELECT id, tenant_id, division_id, environment_id FROM deployments WHERE id = ?", (node.deployment_id,)
    ).fetchone()
    token = add_token(connection, node_id, now)
    return Enrolled(Deployment(**deployment), node, token, tokens_of(connection, node_id))


def _create_node(
    connection: sqlite3.Connection, token_id: int, deployment_id: int, request: EnrollRequest, now: int
) -> int:
    node_id = allocate_id(connection, now)
    connection.execute(
        "INSERT INTO nodes (id, deployment_id, hostname, machine_id, agent_version, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (node_id, deployment_id, request.hostname, request.machine_id, request.agent_version, now),
    )
    connection.execute(
        "UPDATE enrollment_tokens SET machine_id = ?, node_id = ? WHERE id = ?", (request.machine_id, node_id, token_id)
    )
    return node_id


def decommissioned(node_id: int) -> ProblemError:
    """Make the answer to every call of a node that was removed."""
    return ProblemError(Code.DECOMMISSIONED, f"cannot serve node {node_id}: it was removed")


def add_token(connection: sqlite3.Connection, node_id: int, now: int) -> str:
    """Make a fresh token for a node.

    Older ones go on working until the fresh one is used (`admit`): an answer that is lost strands nobody. Only one that
    was never used is dropped, for its answer was lost.
    """
    token = new_secret(SecretKind.NODE_TOKEN)
    connection.execute("DELETE FROM node_tokens WHERE node_id = ? AND (used = 0 OR expires_at <= ?)", (node_id, now))
    connection.execute(
        "INSERT INTO node_tokens (hash, node_id, created_at, expires_at) VALUES (?, ?, ?, ?)",
        (hash_secret(token), node_id, now, now + TOKEN_LIFE),
    )
    return token


def admit(connection: sqlite3.Connection, admission: Admission, now: int) -> Admitted:
    """Accept a call for its node: the newest first-seen instance wins, and the revision only grows.

    Raises:
        ProblemError: The node was removed (410), or a newer instance has its identity (409).
    """
    # Almost always only the revision has grown: one statement, for a whole fleet does this at once after a dispatch.
    if (revision := _grow_revision(connection, admission)) is None:
        node = get_node(connection, admission.node_id)
        if node.removed:
            raise decommissioned(node.id)
        _replace_instance(connection, node, admission.instance, now)
        revision = _grow_revision(connection, admission) or 0
    tokens = None
    if admission.first_use:
        _note_first_use(connection, admission, now)
        tokens = tokens_of(connection, admission.node_id)
    return Admitted(admission.node_id, admission.instance, revision, tokens)


def _grow_revision(connection: sqlite3.Connection, admission: Admission) -> int | None:
    row = connection.execute(
        "UPDATE nodes SET revision = max(revision, ?) WHERE id = ? AND instance = ? AND removed_at IS NULL"
        " RETURNING revision",
        (admission.revision, admission.node_id, admission.instance),
    ).fetchone()
    return None if row is None else int(row["revision"])


def _note_first_use(connection: sqlite3.Connection, admission: Admission, now: int) -> None:
    used = connection.execute(
        "UPDATE node_tokens SET used = 1 WHERE hash = ? AND used = 0", (admission.token_hash,)
    ).rowcount
    if used:
        connection.execute(
            "UPDATE node_tokens SET expires_at = min(expires_at, ?) WHERE node_id = ? AND hash != ?",
            (now + TOKEN_OVERLAP, admission.node_id, admission.token_hash),
        )


def _replace_instance(connection: sqlite3.Connection, node: NodeRow, instance: str, now: int) -> None:
    former = connection.execute(
        "SELECT 1 FROM former_instances WHERE node_id = ? AND instance = ?", (node.id, instance)
    ).fetchone()
    if former is not None:
        raise identity_in_use(node.id, node.instance)
    if node.instance is not None:
        connection.execute("INSERT INTO former_instances VALUES (?, ?, ?)", (node.id, node.instance, now))
        connection.execute(
            "DELETE FROM former_instances WHERE node_id = ?1 AND instance NOT IN (SELECT instance FROM former_instances"
            " WHERE node_id = ?1 ORDER BY replaced_at DESC LIMIT ?2)",
            (node.id, MAX_FORMER_INSTANCES),
        )
    connection.execute("UPDATE nodes SET instance = ? WHERE id = ?", (instance, node.id))


def identity_in_use(node_id: int, newest: str | None) -> ProblemError:
    """Make the answer to every call of an agent that a newer one has replaced; it names that one."""
    return ProblemError(
        Code.IDENTITY_IN_USE,
        f"cannot serve this agent as node {node_id}: a newer agent has its identity; stop one of the two and enrol it",
        headers={} if newest is None else {INSTANCE_HEADER: newest},
    )


def get_node(connection: sqlite3.Connection, node_id: int) -> NodeRow:
    """Return a node that exists."""
    return _node_row(connection.execute("SELECT * FROM nodes WHERE id = ?", (node_id,)).fetchone())


def _node_row(row: sqlite3.Row) -> NodeRow:
    return NodeRow(
        id=row["id"],
        deployment_id=row["deployment_id"],
        instance=row["instance"],
        revision=row["revision"],
        last_sequence=row["last_sequence"],
        removed=row["removed_at"] is not None,
    )


def all_nodes(connection: sqlite3.Connection) -> list[NodeRow]:
    """List every node, also those that were removed."""
    rows = connection.execute("SELECT id, deployment_id, instance, revision, last_sequence, removed_at FROM nodes")
    return [_node_row(row) for row in rows]


def tokens_of(connection: sqlite3.Connection, node_id: int) -> list[TokenRow]:
    """List the tokens of a node."""
    rows = connection.execute("SELECT * FROM node_tokens WHERE node_id = ?", (node_id,))
    return [_token_row(row) for row in rows]


def all_tokens(connection: sqlite3.Connection) -> list[TokenRow]:
    """List the tokens of all nodes."""
    return [_token_row(row) for row in connection.execute("SELECT * FROM node_tokens")]


def _token_row(row: sqlite3.Row) -> TokenRow:
    return TokenRow(hash=row["hash"], node_id=row["node_id"], expires_at=row["expires_at"], used=bool(row["used"]))


def removed_nodes(connection: sqlite3.Connection) -> list[int]:
    """List the nodes that were removed."""
    return [row["id"] for row in connection.execute("SELECT id FROM nodes WHERE removed_at IS NOT NULL")]


def remove_node(connection: sqlite3.Connection, node_id: int, now: int) -> bool:
    """Remove a node: it is no target any more, and its agent is told to stop. Its history stays.

    Returns:
        Whether there was such a node.
    """
    removed = connection.execute(
        "UPDATE nodes SET removed_at = ? WHERE id = ? AND removed_at IS NULL", (now, node_id)
    ).rowcount
    if removed:
        connection.execute(
            "UPDATE activities SET status = 'rejected', finished_at = ?, reason = ?"
            " WHERE node_id = ? AND status = 'processing'",
            (now, no_report("the node was removed before it reported"), node_id),
        )
    return bool(removed)


def save_heartbeats(connection: sqlite3.Connection, heartbeats: Sequence[tuple[int, str, int]]) -> None:
    """Keep the latest heartbeat of some nodes: node, JSON, when it came."""
    connection.executemany(
        "UPDATE nodes SET heartbeat = ?2, heartbeat_at = ?3 WHERE id = ?1 AND coalesce(heartbeat_at, 0) <= ?3",
        heartbeats,
    )


def list_nodes(
    connection: sqlite3.Connection, deployment: Deployment, paging: Paging
) -> tuple[list[dict[str, Any]], int]:
    """List a page of a deployment's nodes, and count all of them; `heartbeat_at` is as it is stored."""
    (total,) = connection.execute(
        "SELECT count(*) FROM nodes WHERE deployment_id = ? AND removed_at IS NULL", (deployment.id,)
    ).fetchone()
    rows = connection.execute(
        "SELECT id, hostname, agent_version, created_at, heartbeat, heartbeat_at FROM nodes"
        " WHERE deployment_id = ? AND removed_at IS NULL ORDER BY id LIMIT ? OFFSET ?",
        (deployment.id, paging.results, paging.offset),
    )
    return [_node_item(deployment, row) for row in rows], total


def _node_item(deployment: Deployment, row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "tenant_id": deployment.tenant_id,
        "division_id": deployment.division_id,
        "environment_id": deployment.environment_id,
        "deployment_id": deployment.id,
        "hostname": row["hostname"],
        "agent_version": row["agent_version"],
        "created_at": whole_time(row["created_at"]),
        "heartbeat_at": row["heartbeat_at"],
        "heartbeat": json.loads(row["heartbeat"]) if row["heartbeat"] else None,
    }
