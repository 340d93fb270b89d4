"""`iggy-supervisor`: arguments in, one answer out, exit code.

Exit codes: 0 done, 1 not done, 2 wrong usage, 78 a folder, file or option that cannot be used.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agent.protocol import MAX_ID, MAX_POLL_WAIT
from supervisor import commands
from supervisor.app import Options
from supervisor.auth import MAX_KEY_DAYS, Permission
from supervisor.database import StoreError
from supervisor.schema import DEFAULT_TOKEN_SECONDS, MAX_TOKEN_SECONDS
from supervisor.serve import Address, serve

EXAMPLES = """\
examples:
  iggy-supervisor deployments create --data ./supervisor --name demo
  iggy-supervisor keys create --data ./supervisor --deployment ID
  iggy-supervisor enrollment-tokens create --data ./supervisor --deployment ID
  iggy-supervisor serve --data ./supervisor --listen 127.0.0.1:8700
  iggy-supervisor nodes list --data ./supervisor --format json

Every command but `serve` also works while `serve` runs. Keys and tokens are shown once, and stored hashed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        answer = options.run(options)
        if answer is not None:
            _print(answer, options.format)
    except StoreError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code
    except BrokenPipeError:
        # Whoever reads has seen enough (`| head`).
        sys.stderr.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iggy-supervisor",
        description="Dispatches runtime actions to Iggy node agents, and shows what became of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"iggy-supervisor {version('iggy-node-agent')}")
    groups = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(groups)
    _add_deployments(_group(groups, "deployments", "make and list deployments"))
    _add_keys(_group(groups, "keys", "make, list and revoke API keys"))
    _add_tokens(_group(groups, "enrollment-tokens", "make tokens that turn a machine into a node"))
    _add_nodes(_group(groups, "nodes", "list and remove nodes"))
    return parser


Commands = Any  # argparse's own type of what add_subparsers returns is private


def _group(groups: Commands, name: str, text: str) -> Commands:
    parser = groups.add_parser(name, help=text, description=f"{text.capitalize()}.")
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _command(
    group: Commands, name: str, run: Callable[[argparse.Namespace], Any], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  iggy-supervisor {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.set_defaults(run=run)
    if run is not _serve:
        parser.add_argument("--format", choices=("text", "json"), default="text", help="how the answer is printed")
    return parser


def _add_serve(groups: Commands) -> None:
    example = "serve --data ./supervisor --listen 0.0.0.0:8700 --tls-cert cert.pem --tls-key key.pem"
    parser = _command(groups, "serve", _serve, "serve the public API and the agents", example)
    parser.add_argument(
        "--listen", default="127.0.0.1:8700", metavar="HOST:PORT", help="default %(default)s; port 0: any free one"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM; needed for anything but loopback")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    _add_seconds(parser, "--activity-ttl", 3600.0, "until an activity expires; default 3600")
    _add_seconds(parser, "--report-grace", 900.0, argparse.SUPPRESS)
    _add_seconds(parser, "--heartbeat-interval", 10.0, "pace of the agents; default 10")
    _add_seconds(parser, "--poll-wait", 50.0, f"a long poll is held so long; default 50, at most {MAX_POLL_WAIT}")


def _add_seconds(parser: argparse.ArgumentParser, name: str, default: float, text: str) -> None:
    parser.add_argument(name, type=_seconds, default=default, metavar="SECONDS", help=text)


def _add_deployments(group: Commands) -> None:
    parser = _command(
        group,
        "create",
        commands.create_deployment,
        "make a deployment (and the store, when there is none)",
        "deployments create --data ./supervisor --name demo",
    )
    parser.add_argument("--name", default="default", help="default: %(default)s")
    for level in ("tenant", "division", "environment"):
        parser.add_argument(f"--{level}-id", type=_id, metavar="ID", help=f"the {level} it is in; default: a new one")
    _command(group, "list", commands.list_deployments, "list all deployments", "deployments list --data ./supervisor")


def _add_keys(group: Commands) -> None:
    example = "keys create --data ./supervisor --deployment ID --permission deployment:read --days 30"
    parser = _command(group, "create", commands.create_api_key, "make an API key; it is shown once", example)
    parser.add_argument("--deployment", type=_id, metavar="ID", help="the only one it sees; default: all of this store")
    parser.add_argument(
        "--permission",
        action="append",
        type=Permission,
        metavar="PERMISSION",
        help=f"one of {', '.join(Permission)}; may be repeated; default: both that manage (they imply to read)",
    )
    parser.add_argument("--name", default="", help="what it is for")
    parser.add_argument("--author-id", type=_id, metavar="ID", help="who its activities are by; default: the key's id")
    parser.add_argument(
        "--days",
        type=_between(1, MAX_KEY_DAYS),
        default=90,
        help=f"until it expires; default 90, at most {MAX_KEY_DAYS}",
    )
    _command(group, "list", commands.list_keys, "list all API keys", "keys list --data ./supervisor")
    parser = _command(
        group, "revoke", commands.revoke_key, "revoke an API key at once", "keys revoke --data ./supervisor ID"
    )
    parser.add_argument("id", type=_id, metavar="ID")


def _add_tokens(group: Commands) -> None:
    example = "enrollment-tokens create --data ./supervisor --deployment ID --ttl 600"
    parser = _command(
        group, "create", commands.create_enrollment_token, "make an enrolment token; it is shown once", example
    )
    parser.add_argument("--deployment", type=_id, required=True, metavar="ID", help="the machine becomes a node of it")
    parser.add_argument(
        "--ttl",
        type=_between(1, MAX_TOKEN_SECONDS),
        default=DEFAULT_TOKEN_SECONDS,
        metavar="SECONDS",
        help="until it expires; default %(default)s",
    )


def _add_nodes(group: Commands) -> None:
    parser = _command(
        group, "list", commands.list_nodes, "list nodes", "nodes list --data ./supervisor --deployment ID --format json"
    )
    parser.add_argument("--deployment", type=_id, metavar="ID", help="only its nodes")
    parser = _command(
        group,
        "remove",
        commands.remove_node,
        "remove a node for good; its agent stops asking and touches nothing",
        "nodes remove --data ./supervisor ID",
    )
    parser.add_argument("id", type=_id, metavar="ID")


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text[:20]) <= high):
            msg = f"expected a whole number from {low} to {high}, got {text[:40]!r}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return parse


_id = _between(1, MAX_ID)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 10**9:
        msg = f"expected seconds above 0, got {text[:40]!r}"
        raise argparse.ArgumentTypeError(msg)
    return seconds


def _serve(options: argparse.Namespace) -> None:
    if (options.tls_cert is None) != (options.tls_key is None):
        msg = "cannot use TLS: --tls-cert and --tls-key need each other"
        raise StoreError(msg, exit_code=2)
    try:
        address = Address.parse(options.listen)
    except ValueError as error:
        msg = f"cannot use --listen: {error}"
        raise StoreError(msg, exit_code=2) from error
    running = Options(
        data=options.data,
        activity_ttl=options.activity_ttl,
        report_grace=options.report_grace,
        heartbeat_interval=min(options.heartbeat_interval, 3600.0),
        poll_wait=min(options.poll_wait, float(MAX_POLL_WAIT)),
    )
    serve(running, address, options.tls_cert, options.tls_key)


def _print(answer: dict[str, Any] | list[dict[str, Any]], form: str) -> None:
    if form == "json":
        text = json.dumps({"items": answer} if isinstance(answer, list) else answer, indent=2)
    elif isinstance(answer, dict):
        text = "\n".join(f"{key}: {_text(value)}" for key, value in answer.items())
    else:
        text = _table(answer) if answer else "none"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [[key.upper() for key in rows[0]], *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _text(value: Any) -> str:
    match value:
        case None | "":
            return "-"
        case list():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{key}={_text(part)}" for key, part in value.items()) or "-"
        case _:
            return str(value)
