"""`status` and `activities`: ask the running agent. Standard library only, so that they start at once."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.cli.output import print_error, print_json, print_text
from agent.cli.parser import OutputFormat
from agent.errors import UnavailableError
from agent.local.client import ask
from agent.local.pages import activities_page, activity_page, status_page
from agent.places import find_running_socket

WATCH_INTERVAL = 2.0
"""Seconds."""

_CLEAR = "\033[H\033[2J"


def status(args: argparse.Namespace) -> int:
    """Show the status; 0 when healthy, 1 when degraded."""
    if not args.watch:
        return _show_status(args)
    code = 0
    try:
        while True:
            if sys.stdout.isatty():
                print_text(_CLEAR)
            try:
                code = _show_status(args)
            except UnavailableError as error:  # an agent that restarts is what one watches for
                print_error(error, as_json=args.format == OutputFormat.JSON)
                code = error.exit_code
            time.sleep(WATCH_INTERVAL)
    except KeyboardInterrupt:
        return code


def activities(args: argparse.Namespace) -> int:
    """List the activities, or show one."""
    if args.id is None:
        answer = ask(_socket(args), f"/v1/activities?limit={args.limit}")
        _show(args, answer, lambda: activities_page(answer.get("items") or [], now=datetime.now(UTC)))
    else:
        answer = ask(_socket(args), f"/v1/activities/{args.id}")
        _show(args, answer, lambda: activity_page(answer))
    return 0


def _show_status(args: argparse.Namespace) -> int:
    answer = ask(_socket(args), "/v1/status")
    _show(args, answer, lambda: status_page(answer, now=datetime.now(UTC)))
    return 0 if answer.get("healthy") is True else 1


def _show(args: argparse.Namespace, answer: Mapping[str, Any], page: Callable[[], str]) -> None:
    """Print an answer; what cannot be shown as a page was not made by an agent of this kind."""
    if args.format == OutputFormat.JSON:
        print_json(answer)
        return
    try:
        text = page()
    except (AttributeError, TypeError, ValueError, KeyError, RecursionError) as error:
        msg = f"cannot show the answer of the agent: it has another shape than this command knows ({error!r})"
        raise UnavailableError(msg, hint="is the agent of another version? --format json shows what it said") from error
    print_text(text)


def _socket(args: argparse.Namespace) -> Path:
    return args.socket or find_running_socket(os.environ)
