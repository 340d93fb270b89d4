"""What the local API shows of the journal, as JSON values."""

from collections.abc import Mapping, Sequence
from typing import Any

from agent.conditions import Condition
from agent.journal import Row
from agent.protocol import format_time


def condition(shown: Condition) -> dict[str, Any]:
    """Show one thing that is wrong."""
    return {"code": shown.code, "message": shown.message, "hint": shown.hint, "since": format_time(shown.since)}


def status_line(
    node_id: int | None, *, acting: Mapping[str, int], conditions: Sequence[Condition], stopping: bool
) -> str:
    """Say in one line how the agent is: whose node it is, what it does, what is wrong first of all.

    Args:
        node_id: None before it is enrolled.
        acting: Runtime → the activity that acts on it now.
        conditions: What is wrong, oldest first.
        stopping: Whether the agent is about to end.
    """
    parts = ["not enrolled" if node_id is None else f"node {node_id}"]
    if stopping:
        parts.append("stopping")
    parts += [f"activity {activity_id} on {runtime}" for runtime, activity_id in acting.items()]
    if conditions:
        more = f" (and {len(conditions) - 1} more)" if len(conditions) > 1 else ""
        parts.append(f"degraded: {conditions[0].message}{more}")
    return "; ".join(parts)


def summary(row: Row) -> dict[str, Any]:
    """Show one activity as a line of a table."""
    return {
        "id": row.id,
        "sequence": row.sequence,
        "runtime": row.runtime,
        "action": row.action,
        "author_id": row.author_id,
        "created_at": row.created_at,
        "state": str(row.state),
        "status": row.status and str(row.status),
        "code": row.reason and row.reason.code,
        "message": row.reason and row.reason.message,
        "hint": row.reason and row.reason.hint,
        "received_at": format_time(row.received_at),
        "started_at": row.started_at and format_time(row.started_at),
        "finished_at": row.finished_at and format_time(row.finished_at),
        "reported_at": row.reported_at and format_time(row.reported_at),
        "changed": row.changed,
        "recovered": row.recovered,
        "uncertain": row.uncertain,
        "outcome": row.outcome and str(row.outcome),
    }


def detail(row: Row) -> dict[str, Any]:
    """Show one activity whole: each call with what was seen before it, the decision to go back, the evidence."""
    calls = [
        {
            "call": call.call,
            "decisive": call.decisive,
            "going_back": call.going_back,
            "at": format_time(call.at),
            "boot_id": call.boot_id,
            "incarnation": call.incarnation,
            "running": call.running,
            "detail": dict(call.detail),
        }
        for call in row.calls
    ]
    back = row.going_back and {"superseded": row.going_back.superseded, **row.going_back.reason.model_dump()}
    return {**summary(row), "calls": calls, "going_back": back, "evidence": row.evidence}
