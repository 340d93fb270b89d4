"""Taking in what the Supervisor lists: each item by itself, each id once for ever.

These functions run inside one transaction of the journal's thread.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from agent.journal.rows import RowState, SweepToken, Taken, stamp
from agent.protocol import MAX_ID, Activity, ReasonCode, ReportStatus, format_time


@dataclass(frozen=True, slots=True)
class Item:
    """One listed item that can be answered: it has an id and a sequence."""

    id: int
    sequence: int
    runtime: str
    action: str
    digest: str
    activity: Activity | None
    problem: str | None


def _is_id(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_ID


def read_item(raw: Any) -> Item | None:
    """Read one raw item; None when it has no usable id and sequence, so that nothing could be answered."""
    if not isinstance(raw, dict) or not _is_id(raw.get("id")) or not _is_id(raw.get("sequence")):
        return None
    runtime, action = str(raw.get("runtime"))[:200], str(raw.get("action"))[:200]
    try:
        activity = Activity.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"cannot read the activity: {place}: {first['msg']}"
        return Item(raw["id"], raw["sequence"], runtime, action, _digest_raw(raw), None, problem)
    return Item(activity.id, activity.sequence, runtime, action, _digest(activity), activity, None)


def _hash(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _digest(activity: Activity) -> str:
    checksum = activity.config.sha256 if activity.config else None
    return _hash([activity.runtime, activity.action, checksum, format_time(activity.created_at)])


def _digest_raw(raw: dict[str, Any]) -> str:
    config = raw.get("config")
    checksum = config.get("sha256") if isinstance(config, dict) else config
    return _hash([raw.get("runtime"), raw.get("action"), checksum, raw.get("created_at")])


def take(connection: sqlite3.Connection, items: Sequence[Any], listed: set[int], token: SweepToken | None) -> Taken:
    """Journal one answer's items.

    Args:
        connection: With a transaction open.
        items: As they came, raw.
        listed: Ids that were listed since the agent started; grows.
        token: The sweep that this answer belongs to, if any; grows.
    """
    journal = connection.execute("SELECT * FROM journal").fetchone()
    uncertain_through = MAX_ID if journal["lost"] else max(journal["mark"], journal["pruned_through"])
    taken = Taken()
    cursor = journal["cursor"]
    for raw in items:
        item = read_item(raw)
        if item is None:
            taken.skipped += 1
            continue
        cursor = max(cursor, item.sequence)
        if token is not None:
            token.highest = max(token.highest, item.sequence)
        row = connection.execute("SELECT * FROM activities WHERE id = ?", (item.id,)).fetchone()
        if row is None:
            _insert(connection, item, uncertain=item.sequence <= uncertain_through)
            taken.new += 1
            taken.invalid += item.activity is None
        elif row["digest"] != item.digest:
            taken.conflicts.append(item.id)
            continue
        else:
            taken.known += 1
            uncertain = journal["lost"] or item.sequence <= journal["mark"]
            taken.again += _listed_again(connection, row, uncertain=bool(uncertain))
        listed.add(item.id)
        if token is not None:
            token.listed.add(item.id)
    connection.execute("UPDATE journal SET cursor = ?", (cursor,))
    return taken


def _insert(connection: sqlite3.Connection, item: Item, *, uncertain: bool) -> None:
    now = stamp()
    activity = item.activity
    connection.execute(
        "INSERT INTO activities (id, sequence, runtime, action, digest, body, author_id, created_at, state, uncertain,"
        " received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'received', ?, ?)",
        (
            item.id,
            item.sequence,
            item.runtime,
            item.action,
            item.digest,
            None if activity is None else activity.model_dump_json(),
            None if activity is None else activity.author_id,
            None if activity is None else format_time(activity.created_at),
            int(uncertain),
            now,
        ),
    )
    if activity is None:
        reject_received(
            connection,
            item.id,
            ReasonCode.INVALID_ACTIVITY,
            item.problem or "cannot read the activity",
            "the Supervisor and the agent disagree about the protocol; compare their versions",
        )


def _listed_again(connection: sqlite3.Connection, row: sqlite3.Row, *, uncertain: bool) -> bool:
    """Handle an item that is here already; returns whether it is to be reported again."""
    if row["state"] == RowState.RECEIVED and uncertain:
        connection.execute("UPDATE activities SET uncertain = 1 WHERE id = ?", (row["id"],))
    if row["state"] == RowState.REPORTED:
        connection.execute(
            "UPDATE activities SET state = 'finished', reported_at = NULL, outcome = NULL WHERE id = ?", (row["id"],)
        )
        return True
    return False


def reject_received(
    connection: sqlite3.Connection, activity_id: int, code: ReasonCode, message: str, hint: str | None
) -> bool:
    """Finish an activity that was not begun as rejected; returns False when it is not `received` any more."""
    return (
        connection.execute(
            "UPDATE activities SET state = 'finished', finished_at = ?, status = ?, code = ?, message = ?, hint = ?,"
            " body = NULL WHERE id = ? AND state = 'received'",
            (stamp(), ReportStatus.REJECTED, code, message, hint, activity_id),
        ).rowcount
        == 1
    )


def end_sweep(connection: sqlite3.Connection, token: SweepToken, last: int) -> list[int]:
    """Withdraw what the complete sweep did not list, and end "lost"; returns the withdrawn ids."""
    withdrawn = [
        activity_id
        for activity_id in sorted(token.received - token.listed)
        if reject_received(
            connection,
            activity_id,
            ReasonCode.WITHDRAWN,
            "cannot begin: the Supervisor does not list the activity any more",
            "dispatch it again if it is still wanted",
        )
    ]
    connection.execute("UPDATE journal SET mark = max(mark, ?), lost = 0 WHERE lost = 1", (max(last, token.highest),))
    return withdrawn
