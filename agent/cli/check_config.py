"""`check-config`: judge the settings without running anything."""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.cli.output import print_error, print_json, print_text
from agent.cli.parser import OutputFormat
from agent.local.pages import table
from agent.redaction import MARKER, Redactor
from agent.settings import InvalidSettingsError, Loaded, load


def check_config(args: argparse.Namespace) -> int:
    """Check the settings, and print those in force if asked to."""
    as_json = args.format == OutputFormat.JSON
    try:
        loaded = load(config=args.config, environ=os.environ)
    except InvalidSettingsError as error:
        print_error(error, as_json=False)
        if as_json:
            print_json({"valid": False, "problems": [asdict(problem) for problem in error.problems]})
        return error.exit_code
    shown = list(effective(loaded)) if args.print else []
    files = [str(path) for path in loaded.files]
    if as_json:
        settings = {key: {"value": value, "source": source} for key, value, source in shown}
        print_json({"valid": True, "files": files, **({"settings": settings} if args.print else {})})
        return 0
    print_text(f"the settings are valid: {', '.join(files) or 'no file, environment only'}")
    if args.print:
        rows = [(key, json.dumps(value), source) for key, value, source in shown]
        print_text("\n".join(["", *table(("KEY", "VALUE", "SOURCE"), rows)]))
    return 0


def effective(loaded: Loaded) -> Iterator[tuple[str, Any, str]]:
    """Yield each setting in force: its key, its value with secrets masked, and where it came from."""
    redactor = Redactor()
    redactor.add(loaded.settings.secret_values())
    values = dict(_flatten(loaded.settings.model_dump(), ""))
    for key, source in loaded.sources.items():
        yield key, _masked(key, values[key], redactor), source


def _masked(key: str, value: Any, redactor: Redactor) -> Any:
    name = key.rpartition(".")[2]
    if isinstance(value, Path):
        return str(value)
    return MARKER if value is not None and redactor.data({name: value})[name] == MARKER else redactor.data(value)


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
