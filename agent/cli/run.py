"""`run`: the agent itself."""

import argparse
import os

from agent import logs
from agent.redaction import Redactor
from agent.settings import load


def run(args: argparse.Namespace) -> int:
    """Load the settings, set up the logs, and run until a signal."""
    flags = {"agent.log_format": args.log_format, "agent.log_level": args.log_level}
    given = {key: value for key, value in flags.items() if value is not None}
    settings = load(config=args.config, environ=os.environ, flags=given).settings
    redactor = Redactor()
    redactor.add(settings.secret_values())
    logs.configure(format=settings.agent.log_format, level=settings.agent.log_level, redactor=redactor)
    try:
        from agent.daemon import run as run_daemon  # noqa: PLC0415 - wrong settings are to be said at once

        return run_daemon(settings, redactor)
    finally:
        logs.close()
