"""`version`: what this is."""

import argparse
import platform
from importlib.metadata import version as installed_version

from agent.cli.output import print_json, print_text
from agent.cli.parser import OutputFormat

DISTRIBUTION = "iggy-node-agent"


def version(args: argparse.Namespace) -> int:
    """Show the version of the agent and of Python."""
    agent, python = installed_version(DISTRIBUTION), platform.python_version()
    if args.format == OutputFormat.JSON:
        print_json({"version": agent, "python": python})
    else:
        print_text(f"iggy-agent {agent} (Python {python})")
    return 0
