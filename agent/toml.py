"""Reading TOML that somebody else wrote: whatever is in it, soon there is its content, or one kind of error."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

MAX_DOTS = 32
"""Of one name, such as `a.b.c`: the standard library needs their square for each key below it."""
MAX_DEPTH = 64
"""Of tables and lists in each other."""

_TOKEN = re.compile(
    r"""
    \#[^\n]*+                                            # a comment, and texts of several lines
    | \"{3} (?: \\. | (?!\"{3}) [^\\] )*+ (?:\"{3})?
    | '{3} (?: (?!'{3}) . )*+ (?:'{3})?
    | (?P<name> [\w+-]++ | " (?: \\. | [^"\\\n] )*+ "? | ' [^'\n]*+ '? | [ \t]++ )
    | (?P<dot> \. )
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
"""A text that is not closed ends with its line or with the file, so that no text is slow to search."""


class TomlError(ValueError):
    """It is not TOML, or such as nobody writes; the message says where, and shows no value."""


def read_toml(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        TomlError: It breaks a rule of TOML, has a name or a number that is absurdly long, or is nested absurdly deep.
    """
    _refuse_long_names(text)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(str(error)) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # of the conversion of an integer: sys.set_int_max_str_digits
        msg = "a number in it has too many digits"
        raise TomlError(msg) from error
    _refuse_depth(content)
    return content


def _refuse_long_names(text: str) -> None:
    dots = 0
    for token in _TOKEN.finditer(text) if text.count(".") > MAX_DOTS else ():
        match token.lastgroup:
            case "dot":
                dots += 1
            case "name":
                continue
            case _:
                dots = 0
        if dots > MAX_DOTS:
            line = text.count("\n", 0, token.start()) + 1
            msg = f"a name has more than {MAX_DOTS} dots (at line {line})"
            raise TomlError(msg)


def _refuse_depth(content: Mapping[str, Any]) -> None:
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        inner = [value.values() if isinstance(value, Mapping) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, Mapping | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> TomlError:
    return TomlError("it is nested too deeply")
