"""`enroll`: make this machine a node."""

import argparse
import asyncio
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path

from agent import logs
from agent.cli.output import print_json, print_text
from agent.cli.parser import OutputFormat
from agent.errors import CaFileUnavailableError, IdentityError, SettingsError
from agent.link import enrolment, identity
from agent.link.identity import Identity
from agent.redaction import Redactor
from agent.settings import ENROLLMENT_TOKEN, load_connection, read_credential

MAX_TOKEN_CHARACTERS = 4096


def enroll(args: argparse.Namespace) -> int:
    """Enrol, unless that was done already."""
    flags = {"supervisor.url": args.url, "supervisor.ca_file": args.ca_file and str(args.ca_file.absolute())}
    given = {key: value for key, value in flags.items() if value is not None}
    connection = load_connection(config=args.config, environ=os.environ, flags=given)
    state_dir = connection.agent.state_dir
    refuse_to_leave_files_of_root(state_dir, user_id=os.geteuid())
    if known := identity.load(state_dir):
        _say(known, state_dir, already=True, as_json=args.format == OutputFormat.JSON)
        return 0
    token = read_token(args.token_file, os.environ)
    redactor = Redactor()
    redactor.add([token])
    logs.configure(
        format=logs.LogFormat.AUTO,
        level=logs.LogLevel.WARNING,
        redactor=redactor,
        output=sys.stderr.fileno(),
    )
    try:
        made = asyncio.run(
            enrolment.enroll(
                url=connection.supervisor.url,
                ca_file=connection.supervisor.ca_file,
                enrollment_token=token,
                state_dir=state_dir,
            )
        )
    except CaFileUnavailableError as error:  # it was named just now, and nobody starts this again
        raise SettingsError(error.message, hint=error.hint) from error
    finally:
        logs.close()
    _say(made, state_dir, already=False, as_json=args.format == OutputFormat.JSON)
    return 0


def read_token(file: str | None, environ: Mapping[str, str]) -> str:
    """Read the enrolment token from a file, from stdin (-), or from the credential; never from an argument.

    Raises:
        SettingsError: There is none, or it cannot be read.
    """
    hint = "create one with the Supervisor, and give it with --token-file FILE (- for stdin)"
    source = "stdin" if file == "-" else file or f"credential {ENROLLMENT_TOKEN}"
    try:
        if file == "-":
            token = sys.stdin.read(MAX_TOKEN_CHARACTERS + 1).strip()
        elif file is not None:
            token = Path(file).read_text(encoding="utf-8").strip()
        else:
            token = read_credential(ENROLLMENT_TOKEN, environ) or ""
            source = source if token else "nowhere"
    except (OSError, UnicodeDecodeError) as error:
        cause = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not UTF-8"
        msg = f"cannot read the enrolment token from {source}: {cause}"
        raise SettingsError(msg, hint=hint) from error
    if source == "nowhere":
        msg = "cannot enrol: there is no enrolment token"
        raise SettingsError(msg, hint=hint)
    if not token or len(token) > MAX_TOKEN_CHARACTERS or any(character.isspace() for character in token):
        msg = f"cannot use the enrolment token from {source}: it has to be one word"
        raise SettingsError(msg, hint=hint)
    return token


def refuse_to_leave_files_of_root(state_dir: Path, *, user_id: int) -> None:
    """Refuse to enrol as root for an agent of another user: it could not read its own identity afterwards.

    Raises:
        IdentityError: The state folder is somebody else's.
    """
    try:
        owner = state_dir.stat().st_uid
    except OSError:  # not there yet, or not to be seen: making it says why
        return
    if user_id != 0 or owner == 0:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    msg = f"cannot enrol as root: {state_dir} belongs to {name}, who could not read what root leaves there"
    raise IdentityError(msg, hint=f"sudo -u {name} iggy-agent enroll …")


def _say(node: Identity, state_dir: Path, *, already: bool, as_json: bool) -> None:
    if as_json:
        print_json({"node_id": node.node_id, "deployment_id": node.deployment_id, "already_enrolled": already})
    elif already:
        print_text(f"already enrolled as node {node.node_id}; nothing was changed ({state_dir / identity.FILE_NAME})")
    else:
        print_text(f"enrolled as node {node.node_id} of deployment {node.deployment_id}")
