"""How commands print: answers on stdout, what went wrong on stderr; with JSON, stdout holds nothing else."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from agent.errors import AgentError

SCHEMA_VERSION = 1
"""Of everything that is printed as JSON; grows when a field changes its meaning or goes away."""


def print_json(answer: Mapping[str, Any]) -> None:
    """Print an answer for programs."""
    print_text(json.dumps({"schema_version": SCHEMA_VERSION, **answer}))


def print_text(text: str) -> None:
    """Print an answer for people."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_aside(text: str) -> None:
    """Print what is not the answer."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_error(error: AgentError, *, as_json: bool) -> None:
    """Say on stderr what could not be done and the next step; programs get it as JSON on stdout besides."""
    print_aside(f"iggy-agent: {error.message}")
    if error.hint:
        print_aside(f"hint: {error.hint}")
    if as_json:
        print_json({"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}})
