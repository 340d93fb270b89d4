"""Loading: all sources together, judged once, with every problem named at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.errors import SettingsError
from agent.protocol import RuntimeName
from agent.settings.model import AgentSettings, Connection, ProbeSettings, RuntimeSettings, Settings, SupervisorSettings
from agent.settings.sources import DEFAULT, Key, Layers, Problem, gather, spell, suggest

Model = TypeVar("Model", bound=Connection)


class InvalidSettingsError(SettingsError):
    """The settings are wrong: every problem, one a line, each with its source, its key and the next step."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        lines = [f"{problem}\n  hint: {problem.hint}" if problem.hint else str(problem) for problem in problems]
        super().__init__("\n".join(lines))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that can be used, and where each of their values came from."""

    settings: Settings
    sources: dict[str, str]
    """Dotted key of each value → a file, `credential …`, `environment …`, `flag …` or `default`."""
    files: tuple[Path, ...]


def load(*, config: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Loaded:
    """Load the settings from all their sources.

    Args:
        config: The main settings file, in place of the one that is searched; its `conf.d` is read too.
        environ: The environment.
        flags: Dotted key → value, from the command line.

    Raises:
        InvalidSettingsError: They are wrong; says everything that is.
    """
    layers = gather(config=config, environ=environ, flags=flags or {})
    settings = _judge(Settings, layers, layers.values)
    sources = {".".join(key): layers.origins.get(key, DEFAULT) for key in _keys(settings.model_dump(), ())}
    return Loaded(settings, sources, tuple(layers.files))


def load_connection(
    *, config: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Connection:
    """Load what is needed to enrol: the settings without the runtimes, which need not be there yet.

    Raises:
        InvalidSettingsError: They are wrong; says everything that is.
    """
    layers = gather(config=config, environ=environ, flags=flags or {})
    return _judge(Connection, layers, {name: table for name, table in layers.values.items() if name != "runtimes"})


def _judge(model: type[Model], layers: Layers, values: Mapping[str, Any]) -> Model:
    problems = list(layers.problems)
    # Asked here, for the model takes names such as _env_file for instructions to itself.
    unknown = [name for name in values if name not in model.model_fields]
    problems += [_unknown((name,), layers) for name in unknown]
    known = {name: value for name, value in values.items() if name not in unknown}
    try:
        made = model(**({"supervisor": {}} | known))
    except ValidationError as error:
        # What seems missing may be in a source that could not be read.
        found = [
            detail for detail in error.errors(include_url=False, include_input=False) if not _hidden(detail, problems)
        ]
        problems += [problem for detail in found for problem in _explain(detail, layers)]
    else:
        if not problems:
            return made
    raise InvalidSettingsError(tuple(problems))


def _hidden(detail: ErrorDetails, problems: list[Problem]) -> bool:
    return bool(problems) and detail["type"] == "missing"


def _explain(detail: ErrorDetails, layers: Layers) -> Iterator[Problem]:
    """Say one finding of pydantic's in our words, with the source of the value; the value itself is never shown."""
    key: Key = tuple(str(part) for part in detail["loc"] if part != "[key]")
    field = _field(key)
    about = getattr(field, "description", None)
    cause = getattr(detail.get("ctx", {}).get("error"), "unfit", None)
    if cause is not None:
        for unfit in cause:
            whole = (*key, *unfit.key.split(".")) if unfit.key else key
            yield Problem(layers.origin(whole), spell(whole), unfit.message, unfit.hint)
    elif detail["type"] == "missing":
        yield Problem(layers.origin(key), spell(key), "cannot be missing: it has no default", about)
    elif detail["type"] == "extra_forbidden":
        yield _unknown(key, layers)
    elif detail["loc"][-1:] == ("[key]",):
        hint = suggest(key[-1], list(RuntimeName)) or f"known: {', '.join(RuntimeName)}"
        yield Problem(layers.origin(key), spell(key), "cannot manage it: no such runtime", hint)
    else:
        text = detail["msg"].removeprefix("Value error, ")
        yield Problem(layers.origin(key), spell(key), f"cannot use its value: {text[:1].lower()}{text[1:]}", about)


def _unknown(key: Key, layers: Layers) -> Problem:
    names = _names(key[:-1])
    hint = suggest(key[-1], names) or f"known here: {', '.join(names)}"
    return Problem(layers.origin(key), spell(key), "cannot use it: no such setting", hint)


_TABLES: dict[Key, type[BaseModel]] = {
    (): Settings,
    ("supervisor",): SupervisorSettings,
    ("agent",): AgentSettings,
    **{("runtimes", runtime): RuntimeSettings for runtime in RuntimeName},
    **{("runtimes", runtime, "probe"): ProbeSettings for runtime in RuntimeName},
}
"""Every table of the settings, by its key."""


def _names(table: Key) -> list[str]:
    return list(_TABLES[table].model_fields) if table in _TABLES else []


def _field(key: Key) -> object:
    table = _TABLES.get(key[:-1])
    return table.model_fields.get(key[-1]) if table and key else None


def _keys(values: Mapping[str, Any], path: Key) -> Iterator[Key]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _keys(value, (*path, str(name)))
        else:
            yield (*path, str(name))
