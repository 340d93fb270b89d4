"""Activities in the store: dispatch, reports, expiry, and how a user sees them."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent.protocol import (
    Action,
    ActivityStatus,
    FieldIssue,
    Reason,
    ReasonCode,
    Report,
    ReportOutcome,
    ReportStatus,
    RuntimeName,
    Verb,
)
from supervisor.auth import Deployment
from supervisor.clock import to_microseconds, whole_time
from supervisor.ids import allocate_ids, next_sequence
from supervisor.problems import Code, ProblemError
from supervisor.requests import Paging

EXPIRE_BATCH = 500
"""Activities that are given up in one transaction."""


@dataclass(frozen=True, slots=True)
class Dispatched:
    """An activity that is processing, as much of it as the agent has to be told."""

    id: int
    sequence: int
    node_id: int
    author_id: int
    runtime: str
    action: str
    config_id: int | None
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Order:
    """What a user asked for; the same for each targeted node."""

    deployment: Deployment
    author_id: int
    runtime: RuntimeName
    action: Action
    node_ids: Sequence[int]
    """Empty for all nodes of the deployment."""
    ttl: int
    """Microseconds."""


def dispatch(connection: sqlite3.Connection, order: Order, now: int) -> list[Dispatched]:
    """Make one activity per targeted node: all of them, or none.

    Raises:
        ProblemError: The config or a node is unknown, or there is no node at all.
    """
    if order.action.verb is Verb.RECONFIGURE:
        _check_config(connection, order)
    targets = _targets(connection, order)
    ids = allocate_ids(connection, len(targets), now)
    made = [
        Dispatched(
            id=activity_id,
            sequence=next_sequence(last_sequence, now),
            node_id=node_id,
            author_id=order.author_id,
            runtime=order.runtime.value,
            action=str(order.action),
            config_id=order.action.config_id,
            created_at=now,
            expires_at=now + order.ttl,
        )
        for activity_id, (node_id, last_sequence) in zip(ids, targets, strict=True)
    ]
    connection.executemany(
        "INSERT INTO activities (id, sequence, deployment_id, node_id, author_id, runtime, action, config_id, status,"
        " created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'processing', ?, ?)",
        (
            (
                activity.id,
                activity.sequence,
                order.deployment.id,
                activity.node_id,
                activity.author_id,
                activity.runtime,
                activity.action,
                activity.config_id,
                activity.created_at,
                activity.expires_at,
            )
            for activity in made
        ),
    )
    connection.executemany(
        "UPDATE nodes SET last_sequence = ? WHERE id = ?", ((activity.sequence, activity.node_id) for activity in made)
    )
    return made


def _check_config(connection: sqlite3.Connection, order: Order) -> None:
    known = connection.execute(
        "SELECT 1 FROM configs WHERE id = ? AND deployment_id = ? AND kind = ?",
        (order.action.config_id, order.deployment.id, order.runtime),
    ).fetchone()
    if known is None:
        raise ProblemError(
            Code.UNKNOWN_CONFIG,
            f"cannot dispatch {order.action}: this deployment has no {order.runtime} config {order.action.config_id}",
            field="action",
        )


def _targets(connection: sqlite3.Connection, order: Order) -> list[tuple[int, int]]:
    rows = connection.execute(
        "SELECT id, last_sequence FROM nodes WHERE deployment_id = ? AND removed_at IS NULL ORDER BY id",
        (order.deployment.id,),
    ).fetchall()
    known = {row["id"]: row["last_sequence"] for row in rows}
    if not order.node_ids:
        if not known:
            raise ProblemError(
                Code.NO_NODES, "cannot dispatch: the deployment has no nodes; enrol one with an enrolment token"
            )
        return list(known.items())
    issues = [
        FieldIssue(code=Code.UNKNOWN_NODE, reason=f"the deployment has no node {node_id}", path=f"nodes[{position}]")
        for position, node_id in enumerate(order.node_ids)
        if node_id not in known
    ]
    if issues:
        raise ProblemError(Code.UNKNOWN_NODE, f"cannot dispatch: {issues[0].reason}", issues=issues)
    # One activity per targeted node: naming a node twice targets it once.
    return [(node_id, known[node_id]) for node_id in dict.fromkeys(order.node_ids)]


def record_report(connection: sqlite3.Connection, node_id: int, report: Report, now: int) -> ReportOutcome:
    """Take a node's word on an activity: its first one stays for ever, and replaces `no_report`."""
    row = connection.execute(
        "SELECT created_at, report_sha256 FROM activities WHERE id = ? AND node_id = ?", (report.activity_id, node_id)
    ).fetchone()
    if row is None:
        return ReportOutcome.UNKNOWN
    content = json.dumps(report.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()
    if row["report_sha256"] is not None:
        return ReportOutcome.DUPLICATE if row["report_sha256"] == digest else ReportOutcome.CONFLICT
    # The node's clock is its own: what a user sees never ends before it began, nor in the future.
    finished_at = min(max(to_microseconds(report.finished_at), row["created_at"]), now)
    reason = report.reason.model_dump_json() if report.reason and report.status is ReportStatus.REJECTED else None
    connection.execute(
        "UPDATE activities SET status = ?, finished_at = ?, reason = ?, report = ?, report_sha256 = ? WHERE id = ?",
        (report.status, finished_at, reason, content, digest, report.activity_id),
    )
    return ReportOutcome.RECORDED


def expire(connection: sqlite3.Connection, before: int, now: int) -> list[tuple[int, int]]:
    """Give up a bounded number of activities that expired before a moment and have no report.

    Returns:
        Node and sequence of each.
    """
    rows = connection.execute(
        "SELECT id, node_id, sequence FROM activities WHERE status = 'processing' AND expires_at < ?"
        " ORDER BY expires_at LIMIT ?",
        (before, EXPIRE_BATCH),
    ).fetchall()
    reason = no_report("the node did not report before the activity's time was over")
    connection.executemany(
        "UPDATE activities SET status = 'rejected', finished_at = ?, reason = ? WHERE id = ?",
        ((now, reason, row["id"]) for row in rows),
    )
    return [(row["node_id"], row["sequence"]) for row in rows]


def no_report(cause: str) -> str:
    """Make the reason of an activity that nobody reported on."""
    return Reason(
        code=ReasonCode.NO_REPORT,
        message=f"cannot tell the outcome: {cause}",
        hint="look at the node: `iggy-agent status`; a report that comes later replaces this",
    ).model_dump_json()


def open_activities(connection: sqlite3.Connection) -> list[Dispatched]:
    """List everything that is processing, in the order of its sequences."""
    rows = connection.execute(
        "SELECT id, sequence, node_id, author_id, runtime, action, config_id, created_at, expires_at FROM activities"
        " WHERE status = 'processing' ORDER BY sequence"
    )
    return [Dispatched(**row) for row in rows]


def dispatched_item(deployment: Deployment, activity: Dispatched) -> dict[str, Any]:
    """Make an activity that was just dispatched as a user sees it."""
    fields = {
        name: getattr(activity, name) for name in ("id", "author_id", "runtime", "action", "node_id", "created_at")
    }
    return _item(deployment, fields | {"status": ActivityStatus.PROCESSING.value, "finished_at": None, "reason": None})


def list_activities(
    connection: sqlite3.Connection, deployment: Deployment, paging: Paging
) -> tuple[list[dict[str, Any]], int]:
    """List a page of a deployment's activities, newest first, and count all of them."""
    (total,) = connection.execute(
        "SELECT count(*) FROM activities WHERE deployment_id = ?", (deployment.id,)
    ).fetchone()
    rows = connection.execute(
        "SELECT id, author_id, runtime, action, node_id, status, created_at, finished_at, reason FROM activities"
        " WHERE deployment_id = ? ORDER BY id DESC LIMIT ? OFFSET ?",
        (deployment.id, paging.results, paging.offset),
    )
    return [_item(deployment, row) for row in rows], total


def get_activity(connection: sqlite3.Connection, deployment: Deployment, activity_id: int) -> dict[str, Any]:
    """Return an activity with what its node reported.

    Raises:
        ProblemError: There is no such activity in this deployment (404).
    """
    row = connection.execute(
        "SELECT * FROM activities WHERE id = ? AND deployment_id = ?", (activity_id, deployment.id)
    ).fetchone()
    if row is None:
        raise ProblemError(
            Code.UNKNOWN_ACTIVITY, f"cannot find activity {activity_id}: this deployment has none with this id"
        )
    report = json.loads(row["report"]) if row["report"] else {}
    return _item(deployment, row) | {
        "started_at": _started_at(row, report.get("started_at")),
        "changed": report.get("changed"),
        "recovered": report.get("recovered"),
        "evidence": report.get("evidence"),
    }


def _started_at(row: sqlite3.Row, told: str | None) -> str | None:
    """Show when it was begun, as the node told: like its end, never before it was dispatched, nor after that end."""
    if told is None:
        return None
    return whole_time(min(max(to_microseconds(datetime.fromisoformat(told)), row["created_at"]), row["finished_at"]))


def _item(deployment: Deployment, row: sqlite3.Row | dict[str, Any]) -> dict[str, Any]:
    # The order of the fields is that of the public API's own example.
    item = {
        "id": row["id"],
        "tenant_id": deployment.tenant_id,
        "division_id": deployment.division_id,
        "environment_id": deployment.environment_id,
        "deployment_id": deployment.id,
        "author_id": row["author_id"],
        "runtime": row["runtime"],
        "action": row["action"],
        "node_id": row["node_id"],
        "status": row["status"],
        "created_at": whole_time(row["created_at"]),
        "finished_at": whole_time(row["finished_at"]),
    }
    if row["reason"] is not None:
        item["reason"] = json.loads(row["reason"])
    return item
