"""Bad input, made from good: Hypothesis strategies that change a message in a few places, and the bytes it becomes.

A message is a JSON value of Python. What Python's own values cannot say (NaN, a key twice, a nest of thousands) is said
by `Raw` and `Twice`, which only `write` understands.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Json = Any
Place = tuple[Any, Any]
"""A list or an object of a message, and the index or the key in it."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that stands in the JSON as it is."""

    text: str


class Twice(str):
    """A key that an object has already."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def write(value: Json) -> str:
    """Write a message as JSON, or as what is nearly JSON."""
    match value:
        case Raw():
            return value.text
        case dict():
            return "{" + ", ".join(f"{json.dumps(str(key))}: {write(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(write, value)) + "]"
        case _:
            return json.dumps(value)


def _nest(depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth)


NUMBERS = (0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**63, 10**64, 10**400)
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "iggy\0",
        "\n",
        "\x1b[31m",
        "\x7f",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\udfff x",
        "🦆",
        "'",
        '"',
        "\\",
    ),
    *("null", "NaN", "-1", "9223372036854775808", "restart", "reconfigure:0", "reconfigure:9223372036854775808"),
    *("../../etc/passwd", "/dev/null", "%00", "%n", "{}", "$(reboot)", "'; DROP TABLE activities; --"),
    *("2026-03-16T12:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z"),
    *("x" * 5_000, "ä" * 70_000),
)
WORDS = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e308",
        "1e309",
        "-0.0",
        "1.5",
        "1E400",
        "5e-324",
        "9" * 64,
        "9" * 65,
        "9" * 5_000,
    ),
    '{"a": 1, "a": 2}',
)
"""What JSON, or nearly JSON, can say, and Python's values cannot."""

scalars: st.SearchStrategy[Json] = st.one_of(
    st.sampled_from([None, True, False, [], {}, [None], {"": None}]).map(copy.deepcopy),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(WORDS).map(Raw),
    st.sampled_from([1, 50, 400]).map(_nest),
    st.floats(),
    st.text(max_size=20),
)
"""What a field may hold instead of what it should."""


def places(message: Json) -> list[Place]:
    """List everything that a message holds, at any depth."""
    found: list[Place] = []
    waiting = [message]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        found += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys]
    return found


def _replace(draw: st.DrawFn, inside: Any, key: Any, values: st.SearchStrategy[Json]) -> None:
    inside[key] = draw(values)


def _leave_out(_draw: st.DrawFn, inside: Any, key: Any, _values: st.SearchStrategy[Json]) -> None:
    del inside[key]


def _wrap(_draw: st.DrawFn, inside: Any, key: Any, _values: st.SearchStrategy[Json]) -> None:
    inside[key] = [inside[key]]


def _say_as_text(_draw: st.DrawFn, inside: Any, key: Any, _values: st.SearchStrategy[Json]) -> None:
    inside[key] = write(inside[key])


def _add(draw: st.DrawFn, inside: Any, key: Any, values: st.SearchStrategy[Json]) -> None:
    if isinstance(inside, dict):
        inside[Twice(key) if draw(st.booleans()) else draw(st.sampled_from(TEXTS))] = draw(values)
    else:
        inside.insert(key, draw(values))


Change = Callable[[st.DrawFn, Any, Any, st.SearchStrategy[Json]], None]
CHANGES: tuple[Change, ...] = (_replace, _replace, _leave_out, _wrap, _say_as_text, _add)


@st.composite
def spoilt(
    draw: st.DrawFn,
    message: Json,
    *,
    kept: frozenset[str] = frozenset(),
    values: st.SearchStrategy[Json] = scalars,
    most: int = 3,
) -> Json:
    """Change a message in one to `most` places.

    Args:
        draw: Hypothesis' own.
        message: Stays as it is; a copy is changed.
        kept: Keys whose values are not touched.
        values: What stands there instead.
        most: Changes.
    """
    changed = copy.deepcopy(message)
    for _ in range(draw(st.integers(1, most))):
        free = [place for place in places(changed) if place[1] not in kept]
        if not free:
            return changed
        inside, key = draw(st.sampled_from(free))
        draw(st.sampled_from(CHANGES))(draw, inside, key, values)
    return changed


ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp500")


@st.composite
def bodies(draw: st.DrawFn, message: st.SearchStrategy[Json]) -> bytes:
    """Write a message as the body of an answer, and damage that too now and then."""
    text = write(draw(message))
    match draw(st.sampled_from(["whole"] * 6 + ["cut", "longer", "encoded", "flipped", "none"])):
        case "cut":
            return text.encode()[: draw(st.integers(0, len(text)))]
        case "longer":
            return text.encode() + draw(st.sampled_from([b"\0", b"}", b"{}", b"\xff", b" " * 4096, text.encode()]))
        case "encoded":
            return text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
        case "flipped":
            damaged = bytearray(text.encode())
            damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
            return bytes(damaged)
        case "none":
            return draw(
                st.sampled_from([b"", b" ", b"null", b"0", b'"', b"[]", b"{}", b"\xef\xbb\xbf", b"<html></html>"])
            )
        case _:
            return text.encode()
