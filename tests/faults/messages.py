"""Good messages of the agent protocol, to be spoilt."""

from datetime import UTC, datetime, timedelta
from typing import Any

from agent.protocol import config_sha256

Json = Any
GHOST = "ghost"
"""A runtime that no node has: what is left good of a spoilt activity is rejected, and touches nothing."""
NEVER = frozenset({"runtime"})
"""What is never touched in an activity, so that no spoilt one acts on a runtime."""


def activity(number: int, *, runtime: str = GHOST, action: str = "restart") -> Json:
    """Make an activity; its id follows from its sequence."""
    return {
        "id": 610809900976570000 + number,
        "sequence": number,
        "runtime": runtime,
        "action": action,
        "config": None,
        "author_id": 608123456789012345,
        "created_at": "2026-03-16T12:00:00Z",
        "expires_at": None,
    }


def config(runtime: str = "iggy") -> Json:
    """Make a config as it travels in an activity."""
    content: dict[str, Any] = {
        "kind": runtime,
        "runtime_version": None,
        "values": {"IGGY_SYSTEM_SEGMENT_SIZE": "1 GB", "IGGY_ROOT_PASSWORD": "a-secret-of-this-config"},
        "secret_keys": ["IGGY_ROOT_PASSWORD"],
        "files": [{"path": "config.toml", "content": '[tcp]\naddress = "127.0.0.1:8090"\n'}],
    }
    return {"id": 42, "name": "main", "version": 3, **content, "sha256": config_sha256(**content)}


def reconfigure(number: int) -> Json:
    """Make an activity that carries a config."""
    return {**activity(number, action="reconfigure:42"), "config": config(GHOST)}


def activities(*items: Json) -> Json:
    """Make an answer to a poll."""
    return {"items": list(items), "last": max((item["sequence"] for item in items), default=0), "revision": 0}


def results(*ids: int) -> Json:
    """Make an answer to reports."""
    return {"results": [{"activity_id": activity_id, "outcome": "recorded"} for activity_id in ids]}


def pace() -> Json:
    """Make an answer to a heartbeat; with a quick pace, for one that is spoilt may still be followed."""
    return {"server_time": datetime.now(UTC).isoformat(), "heartbeat_interval": 1, "poll_wait": 2}


def rotation() -> Json:
    """Make an answer to the exchange of a token."""
    until = datetime.now(UTC) + timedelta(hours=1)
    return {"node_token": "node-token-2", "previous_valid_until": until.isoformat()}


def enrollment() -> Json:
    """Make an answer to an enrolment."""
    ids = {"tenant_id": 1, "division_id": 2, "environment_id": 3, "deployment_id": 4, "node_id": 610809900976570889}
    return {**ids, "node_token": "node-token-1"}


def problem() -> Json:
    """Make an error answer."""
    return {
        "type": "about:blank",
        "title": "Too Many Requests",
        "code": "rate_limited",
        "reason": "too many calls",
        "instance": "0123456789abcdef0123456789abcdef",
        "field_issues": [{"code": "invalid_value", "reason": "expected a number", "path": "nodes[0]"}],
        "status": 429,
        "retryable": True,
    }
