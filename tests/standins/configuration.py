"""How both programs find their configuration: embedded defaults, a TOML file, and environment variables by path."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Table = dict[str, Any]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.IGNORECASE)
_DURATION = re.compile(r"(\d+\s*[a-z]+\s*)+", re.IGNORECASE)
_FACTORS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class CannotLoadError(Exception):
    """The configuration is not TOML, or a value has the wrong type."""


class Size(str):
    """The default of a key that holds a number of bytes with its unit."""

    __slots__ = ()


class Duration(str):
    """The default of a key that holds a time with its unit."""

    __slots__ = ()


class CountOrWord(str):
    """The default of a key that takes a number as well as a word."""

    __slots__ = ()


def size_in_bytes(value: str | int) -> int:
    """Read a size such as `512 MiB`; raise CannotLoadError where it is none."""
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        msg = f"{value!r} is not a size"
        raise CannotLoadError(msg)
    unit = match[2].lower()
    base = 1024 if "i" in unit else 1000
    return int(float(match[1]) * base ** _FACTORS[unit.rstrip("ib")])


_TYPES: dict[type, tuple[type, ...]] = {CountOrWord: (int, str)}


def load(defaults: Table, *, path: Path, prefix: str, environ: Mapping[str, str]) -> Table:
    """Load the configuration: a missing file and unknown keys are no failure, a wrong type is.

    Args:
        defaults: the embedded defaults; they also say which keys and variables exist, and their types.
        path: the TOML file.
        prefix: what the names of the variables begin with, as in `IGGY_HTTP_ADDRESS`.
        environ: the environment; an empty value counts as not set.

    Raises:
        CannotLoadError: the file is not TOML, or a value has the wrong type.
    """
    config: Table = json.loads(json.dumps(defaults))
    if path.exists():
        try:
            _merge(config, tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CannotLoadError(str(error)) from error
    for keys, default in _leaves(defaults):
        value = environ.get(prefix + "_".join(keys).upper())
        if value:
            put(config, keys, infer(value))
        _check(default, look_up(config, keys), ".".join(keys))
    return config


def infer(value: str) -> Any:
    """Read the value of a variable as a list, a bool, a number or a string, whatever it looks like."""
    if value.startswith("[") and value.endswith("]"):
        return [infer(one.strip().strip('"')) for one in value[1:-1].split(",") if one.strip()]
    if value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if "_" in value:  # Python would read 1_000 as a number
        return value
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def look_up(config: Table, keys: tuple[str, ...]) -> Any:
    """Read the value at a path of keys, or None where a table is in the way."""
    value: Any = config
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def put(config: Table, keys: tuple[str, ...], value: Any) -> None:
    """Set the value at a path of keys."""
    for key in keys[:-1]:
        config = config.setdefault(key, {})
    config[keys[-1]] = value


def dump(config: Table, keys: tuple[str, ...] = ()) -> str:
    """Write a configuration as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items() if not isinstance(value, dict)]
    if keys and lines:
        lines.insert(0, f"[{'.'.join(keys)}]")
    text = "\n".join(lines) + "\n" * bool(lines)
    tables = [dump(value, (*keys, key)) for key, value in config.items() if isinstance(value, dict)]
    return "\n".join(part for part in [text, *tables] if part)


def _leaves(config: Table, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, key))
        else:
            yield (*keys, key), value


def _merge(config: Table, more: Table) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        elif key in config:
            config[key] = value


def _check(default: Any, value: Any, name: str) -> None:
    if isinstance(default, Size):
        if str(value) != "unlimited":
            size_in_bytes(value)
    elif isinstance(default, Duration):
        if not _DURATION.fullmatch(str(value)) and str(value) not in {"0", "none", "unlimited", "disabled"}:
            msg = f"{name}: {value!r} is not a duration"
            raise CannotLoadError(msg)
    elif type(value) not in (_TYPES.get(type(default)) or (type(default),)):
        msg = f"{name}: expected {type(default).__name__}, found {value!r}"
        raise CannotLoadError(msg)
