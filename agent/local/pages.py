"""What an operator reads: the answers of the local API as plain text, with the standard library only."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Facts = Mapping[str, Any]


def status_page(answer: Facts, *, now: datetime) -> str:
    """Render `/v1/status`."""
    conditions: Sequence[Facts] = answer.get("conditions") or []
    lines = ["healthy" if answer.get("healthy") else f"degraded: {len(conditions)} condition(s)"]
    for condition in conditions:
        since = _moment(condition.get("since"), now)
        lines.append(f"  {_cell(condition.get('code'))}: {_cell(condition.get('message'))} (since {since})")
        lines += _hint(condition, indent="    ")
    for title, key in (("agent", "agent"), ("Supervisor", "link"), ("journal", "journal")):
        if facts := answer.get(key):
            lines += ["", title, *_facts(facts, now)]
    runtimes: Sequence[Facts] = answer.get("runtimes") or []
    lines += ["", *table(_RUNTIME_COLUMNS, [_runtime_row(runtime, now) for runtime in runtimes])]
    for runtime in runtimes:
        notes = [runtime.get("message"), *(runtime.get("warnings") or [])]
        lines += [f"  {_cell(runtime.get('runtime'))}: {_cell(note)}" for note in notes if note]
    return "\n".join(lines)


def activities_page(items: Sequence[Facts], *, now: datetime) -> str:
    """Render `/v1/activities`."""
    if not items:
        return "no activities yet"
    return "\n".join(table(_ACTIVITY_COLUMNS, [_activity_row(item, now) for item in items]))


def activity_page(activity: Facts) -> str:
    """Render `/v1/activities/{id}`: what was asked, what was done and when, and how it ended."""
    title = f"activity {_cell(activity.get('id'))}: {_cell(activity.get('action'))} {_cell(activity.get('runtime'))}"
    word = activity.get("status") or activity.get("state")
    flags = [name for name in ("changed", "recovered", "uncertain") if activity.get(name)]
    lines = [f"{title}: {_cell(word)}{' (' + ', '.join(flags) + ')' if flags else ''}"]
    if activity.get("code"):
        lines.append(f"  {_cell(activity['code'])}: {_cell(activity.get('message'))}")
        lines += _hint(activity, indent="  ")
    lines += ["", *table(("AT", "WHAT", "DETAIL"), list(_timeline(activity)))]
    if evidence := activity.get("evidence"):
        lines += ["", "evidence", *(f"  {line}" for line in json.dumps(evidence, indent=2).splitlines())]
    return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Align rows under their columns; the last column is as long as it likes."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def age(moment: datetime, *, now: datetime) -> str:
    """Say how long ago something was, in its largest unit."""
    seconds = (now - moment).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


_RUN_WIDTH = 12
"""Characters shown of a run's identity: its end, for the beginning may be the same for all runs of a boot."""
_RUNTIME_COLUMNS = ("RUNTIME", "DRIVER", "STATE", "READY", "RUN", "CONFIG", "RESTARTS", "SINCE", "ACTIVITY")


def _runtime_row(runtime: Facts, now: datetime) -> tuple[object, ...]:
    config = runtime.get("config_id")
    config = None if config is None else f"{config}-{runtime.get('config_version')}"
    return (
        runtime.get("runtime"),
        runtime.get("driver"),
        runtime.get("state") or "unknown",
        runtime.get("ready"),
        (runtime.get("incarnation") or "-")[-_RUN_WIDTH:],
        f"{config or 'none'}{' (drifted)' if runtime.get('drifted') else ''}",
        runtime.get("restarts"),
        _moment(runtime.get("started_at"), now),
        runtime.get("activity_id"),
    )


_ACTIVITY_COLUMNS = ("ID", "RUNTIME", "ACTION", "STATE", "STATUS", "CODE", "RECEIVED", "SECONDS")


def _activity_row(item: Facts, now: datetime) -> tuple[object, ...]:
    started, finished = _parse(item.get("started_at")), _parse(item.get("finished_at"))
    seconds = f"{(finished - started).total_seconds():.1f}" if started and finished else None
    return (
        *(item.get(key) for key in ("id", "runtime", "action", "state", "status", "code")),
        _moment(item.get("received_at"), now),
        seconds,
    )


_DECISIVE_FACTS = (("A", "incarnation"), ("running", "running"), ("boot", "boot_id"))


def _timeline(activity: Facts) -> Iterator[tuple[object, ...]]:
    yield activity.get("received_at"), "received", f"sequence {_cell(activity.get('sequence'))}"
    if activity.get("started_at"):
        yield activity["started_at"], "started", ""
    for call in activity.get("calls") or []:
        marks = [mark.replace("_", " ") for mark in ("decisive", "going_back") if call.get(mark)]
        facts = {key: call.get(name) for key, name in _DECISIVE_FACTS} if call.get("decisive") else {}
        detail = ", ".join(f"{key} {_cell(value)}" for key, value in {**facts, **(call.get("detail") or {})}.items())
        yield call.get("at"), f"call {_cell(call.get('call'))}{' (' + ', '.join(marks) + ')' if marks else ''}", detail
    if activity.get("finished_at"):
        yield activity["finished_at"], "finished", activity.get("status")
    if activity.get("reported_at"):
        yield activity["reported_at"], "reported", activity.get("outcome")


def _facts(facts: Facts, now: datetime) -> list[str]:
    width = max(len(key) for key in facts)
    return [f"  {_words(key).ljust(width)}  {_fact(value, now)}" for key, value in facts.items()]


def _fact(value: object, now: datetime) -> str:
    if not isinstance(value, Mapping):
        return _moment(value, now)
    return ", ".join(f"{_words(key)} {_moment(inner, now)}" for key, inner in value.items() if inner is not None)


def _words(key: str) -> str:
    return _cell(key).replace("_", " ")


def _hint(facts: Facts, *, indent: str) -> list[str]:
    return [f"{indent}hint: {_cell(facts['hint'])}"] if facts.get("hint") else []


def _moment(value: object, now: datetime) -> str:
    """Show a time with its age, and anything else as it is."""
    moment = _parse(value)
    return _cell(value) if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z ({age(moment, now=now)})"


def _parse(value: object) -> datetime | None:
    if not isinstance(value, str) or "T" not in value:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _cell(value: object) -> str:
    """Write a value so that it stays on its line: what a runtime logged must not move the reader's cursor."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict() | list():
            return json.dumps(value)
        case _:
            text = str(value)
            return "".join(
                character.encode("unicode_escape").decode() if unicodedata.category(character)[0] == "C" else character
                for character in text
            )
