"""Taking in what the Supervisor lists: each item by itself, each id once for ever.

These functions run inside one transaction of the journal's thread.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pydantic import ValidationError

from agent.journal.rows import RowState, SweepToken, Taken, as_text, stamp
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
    body: str | None
    """The activity as JSON."""
    problem: str | None


NO_SPACE = "cannot begin: the disk of the agent's state folder is full, so that its result might not be stored"
"""Why an activity is rejected when the disk has no room."""
NO_SPACE_HINT = "free space on that disk, then dispatch it again"
_LONGEST_PROBLEM = 500
"""Characters; a key of the item may be in it, and that may be long."""


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= MAX_ID


def read_item(raw: Any) -> Item | None:
    """Read one raw item; None when it has no usable id and sequence, so that nothing could be answered."""
    if not isinstance(raw, dict) or not _is_id(raw.get("id")) or not _is_id(raw.get("sequence")):
        return None
    runtime, action = as_text(str(raw.get("runtime")))[:200], as_text(str(raw.get("action")))[:200]
    try:
        activity = Activity.model_validate(raw)
        body = activity.model_dump_json()
    except (
        ValueError,
        OverflowError,
    ) as error:  # a lone surrogate is no ValidationError
        problem = f"cannot read the activity: {as_text(_first_problem(error))[:_LONGEST_PROBLEM]}"
        return Item(raw["id"], raw["sequence"], runtime, action, _digest_raw(raw), None, None, problem)
    return Item(activity.id, activity.sequence, runtime, action, _digest(activity), activity, body, None)


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "a text in it is not Unicode"
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _hash(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _digest(activity: Activity) -> str:
    checksum = activity.config.sha256 if activity.config else None
    return _hash([activity.runtime, activity.action, checksum, format_time(activity.created_at)])


def _digest_raw(raw: dict[str, Any]) -> str:
    config = raw.get("config")
    checksum = config.get("sha256") if isinstance(config, dict) else config
    return _hash([raw.get("runtime"), raw.get("action"), checksum, raw.get("created_at")])


@dataclass(slots=True)
class Page:
    """What one answer listed; it counts once it is journaled.

    Args:
        last: The highest sequence that was ever given, as the answer says. A higher one is answered, and believed in
            nothing else: it would hide from the polls all that comes.
    """

    last: int = MAX_ID
    listed: set[int] = field(default_factory=set)
    """Also with another content: what is processing under its id is not withdrawn."""
    waiting: dict[int, str] = field(default_factory=dict)
    """Those of them that may begin, as far as the Supervisor is concerned, each with its runtime."""
    highest: int = 0


def take(connection: sqlite3.Connection, items: Sequence[Any], page: Page, *, no_space: bool = False) -> Taken:
    """Journal one answer's items.

    Args:
        connection: With a transaction open.
        items: As they came, raw.
        page: Without items; is filled.
        no_space: What is new is rejected at once, without any effect. What may have been done before is not: it is
            journaled without its content, which is enough to look whether it is true.
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
        believed = item.sequence <= page.last
        page.highest = max(page.highest, item.sequence if believed else 0)
        page.listed.add(item.id)
        row = connection.execute(
            "SELECT id, sequence, digest, state FROM activities WHERE id = ?", (item.id,)
        ).fetchone()
        if row is None:
            uncertain = item.sequence <= uncertain_through
            _insert(connection, item, uncertain=uncertain, whole=not no_space)
            taken.new += 1
            taken.invalid += item.activity is None
            refused = no_space and not uncertain and item.activity is not None
            if refused:
                reject_received(connection, item.id, ReasonCode.NO_SPACE, NO_SPACE, NO_SPACE_HINT)
            taken.refused += refused
            waiting = item.activity is not None and not refused
        elif row["digest"] != item.digest:
            taken.conflicts.append(item.id)
            continue
        else:
            taken.known += 1
            uncertain = bool(journal["lost"] or item.sequence <= journal["mark"])
            taken.again += _listed_again(connection, row, uncertain=uncertain)
            waiting = row["state"] == RowState.RECEIVED
        # Only what is here: one bad item with a sequence far away would else hide from the polls all that comes.
        if believed:
            cursor = max(cursor, item.sequence if row is None else row["sequence"])
        if waiting:
            page.waiting[item.id] = item.runtime
    connection.execute("UPDATE journal SET cursor = ?", (cursor,))
    return taken


def _insert(connection: sqlite3.Connection, item: Item, *, uncertain: bool, whole: bool) -> None:
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
            item.body if whole else None,
            None if activity is None else _fitting(activity.author_id),
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


def _fitting(number: int | None) -> int | None:
    """Leave out what SQLite has no room for; the activity is as good without it."""
    return number if number is not None and -MAX_ID <= number <= MAX_ID else None


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
        activity_id for activity_id in sorted(token.received - token.listed) if _withdraw(connection, activity_id)
    ]
    connection.execute("UPDATE journal SET mark = max(mark, ?), lost = 0 WHERE lost != 0", (max(last, token.highest),))
    return withdrawn


def _withdraw(connection: sqlite3.Connection, activity_id: int) -> bool:
    """Finish what is not listed any more; what may have been done before is not said to be without effect."""
    uncertain = "SELECT 1 FROM activities WHERE id = ? AND uncertain = 1"
    if connection.execute(uncertain, (activity_id,)).fetchone():
        return reject_received(
            connection,
            activity_id,
            ReasonCode.OUTCOME_UNKNOWN,
            "cannot tell whether it was carried out: the journal that knew is lost, and it is not listed any more",
            "look at the runtime, and dispatch the action again if it is still wanted",
        )
    return reject_received(
        connection,
        activity_id,
        ReasonCode.WITHDRAWN,
        "cannot begin: the Supervisor does not list the activity any more",
        "dispatch it again if it is still wanted",
    )


def doubt(connection: sqlite3.Connection, revision: int, boot_id: str) -> None:
    """Make an old copy a lost journal.

    What it holds as not begun, or as begun without its decisive call, may have been done since. So may what has it from
    another boot than this one, `boot_id`: A says nothing about the runs of this one. And so may a reconfigure with it:
    one that went back since looks as if its call had had no effect. Which release was committed since, it does not know
    either.
    """
    connection.execute("UPDATE journal SET lost = 1, revision = max(revision, ?)", (revision,))
    connection.execute(
        "UPDATE activities SET uncertain = 1 WHERE state = 'received' OR (state = 'started' AND"
        " (action LIKE 'reconfigure:%' OR NOT EXISTS"
        " (SELECT 1 FROM calls WHERE activity_id = activities.id AND decisive = 1 AND boot_id = ?)))",
        (boot_id,),
    )
    connection.execute("DELETE FROM runtimes")
