"""From arguments to an exit code."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from agent.cli.output import print_aside, print_error
from agent.cli.parser import OutputFormat, build_parser
from agent.errors import AgentError
from agent.pid_one import stay_behind

USAGE = 2
INTERNAL = 70
INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `iggy-agent`; never raises but for argparse's own exit.

    Args:
        arguments: Without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    if args.command == "run" and (code := stay_behind()) is not None:
        return code
    try:
        return _find(args.command)(args)
    except AgentError as error:
        print_error(error, as_json=getattr(args, "format", None) == OutputFormat.JSON)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`| head`); stdout is closed for good, so that the interpreter does not try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - the last line of defence: a fault of ours has an exit code of its own
        traceback.print_exc()
        print_aside("iggy-agent: this is a fault of the program; please report it with the lines above")
        return INTERNAL


def _find(name: str) -> Callable[[argparse.Namespace], int]:
    """Import one command's module, and nothing of the others: `status` starts in a third of the time of `run`."""
    # ruff: noqa: PLC0415, PLR0911 - that is what this function is for: a late import and a return for each command
    match name:
        case "run":
            from agent.cli.run import run

            return run
        case "enroll":
            from agent.cli.enroll import enroll

            return enroll
        case "status":
            from agent.cli.ask import status

            return status
        case "activities":
            from agent.cli.ask import activities

            return activities
        case "check-config":
            from agent.cli.check_config import check_config

            return check_config
        case "polkit-rule":
            from agent.cli.polkit_rule import polkit_rule

            return polkit_rule
        case _:
            from agent.cli.version import version

            return version
