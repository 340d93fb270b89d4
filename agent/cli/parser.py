"""The commands and their arguments; `docs/cli.md` is generated from here."""

import argparse
from enum import StrEnum
from pathlib import Path
from typing import Any

WIDTH = 100
"""Columns of the help, everywhere the same, so that the generated page is too."""

EXIT_CODES = """\
exit codes:
  0   done, healthy
  1   degraded, or it could not be done
  2   wrong arguments
  3   the agent is not running (status, activities)
  69  the Supervisor cannot be reached, or refused
  70  a fault of this program
  74  the journal, the identity or supervisor.ca_file cannot be used just now, or the journal is damaged
  75  another agent holds the state folder or the socket
  77  no permission
  78  the settings or the identity are wrong"""


class OutputFormat(StrEnum):
    """How a command prints."""

    TEXT = "text"
    """For people."""
    JSON = "json"
    """For programs: one JSON object on stdout, with a `schema_version`."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH, max_help_position=28)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `iggy-agent`."""
    parser = argparse.ArgumentParser(
        prog="iggy-agent",
        description="The node agent of an Apache Iggy deployment: carries out runtime actions once, and reports the "
        "truth about them.",
        epilog=EXIT_CODES,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_run(commands)
    _add_enroll(commands)
    _add_status(commands)
    _add_activities(commands)
    _add_check_config(commands)
    _add_polkit_rule(commands)
    version = _add(commands, "version", "Show the version of the agent.", "iggy-agent version --format json")
    _add_format(version)
    return parser


Commands = Any
"""What add_subparsers returns; its type has no public name."""


def _add(commands: Commands, name: str, sentence: str, example: str, *, more: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=sentence,
        description=f"{sentence} {more}".rstrip(),
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,  # an abbreviation in somebody's script would break when an option is added
    )
    return parser


def _add_run(commands: Commands) -> None:
    parser = _add(commands, "run", "Run the agent; this is what its service calls.", "iggy-agent run --log-format text")
    _add_config(parser)
    parser.add_argument("--log-format", choices=["json", "text"], help="how a log line looks (agent.log_format)")
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help="the least important event that is logged (agent.log_level)",
    )


def _add_enroll(commands: Commands) -> None:
    parser = _add(
        commands,
        "enroll",
        "Make this machine a node, with an enrolment token.",
        "iggy-agent enroll --url https://supervisor.example.com --token-file token.txt",
        more="Once is enough: on an enrolled machine it says so and changes nothing.",
    )
    parser.add_argument("--url", help="the Supervisor (supervisor.url)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the enrolment token, - for stdin; the credential enrollment_token by default",
    )
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="the Supervisor's authority (supervisor.ca_file)")
    _add_config(parser)
    _add_format(parser)


def _add_status(commands: Commands) -> None:
    parser = _add(commands, "status", "Show how the running agent and its runtimes are.", "iggy-agent status --watch")
    parser.add_argument("--watch", action="store_true", help="show it anew every two seconds, until Ctrl-C")
    _add_socket(parser)
    _add_format(parser)


def _add_activities(commands: Commands) -> None:
    parser = _add(
        commands,
        "activities",
        "List the activities of this node, newest first; with an ID, show one step by step.",
        "iggy-agent activities 610809900976570889",
    )
    parser.add_argument("id", nargs="?", type=_id, metavar="ID", help="the activity to show")
    parser.add_argument("--limit", type=_limit, default=20, metavar="N", help="how many to list, 1 to 1000 (20)")
    _add_socket(parser)
    _add_format(parser)


def _add_check_config(commands: Commands) -> None:
    parser = _add(
        commands,
        "check-config",
        "Check the settings without running the agent; names everything that is wrong.",
        "iggy-agent check-config --config agent.toml --print",
    )
    _add_config(parser)
    parser.add_argument(
        "--print",
        action="store_true",
        help="show every setting that is in force and where it came from, secrets masked",
    )
    _add_format(parser)


def _add_polkit_rule(commands: Commands) -> None:
    parser = _add(
        commands,
        "polkit-rule",
        "Print the polkit rule that lets the agent's user manage exactly the units of the settings.",
        "iggy-agent polkit-rule > /etc/polkit-1/rules.d/60-iggy-agent.rules",
    )
    parser.add_argument("--user", metavar="NAME", help="the agent's user; this one by default, iggy-agent for root")
    _add_config(parser)
    _add_format(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings file, in place of the one that is searched; conf.d/*.toml beside it is read too",
    )


def _add_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="the agent's socket; the system's or this user's own by default"
    )


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=[str(one) for one in OutputFormat],
        default=str(OutputFormat.TEXT),
        help="text for people (the default), json for programs",
    )


def _id(text: str) -> int:
    return _bounded(text, 2**63 - 1)


def _limit(text: str) -> int:
    return _bounded(text, 1000)


def _bounded(text: str, largest: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else 0
    if not 1 <= number <= largest:
        msg = f"has to be a number from 1 to {largest}"
        raise argparse.ArgumentTypeError(msg)
    return number
