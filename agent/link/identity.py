"""Who this node is: `identity.json`, written whole or not at all, and never deleted by the agent."""

import re
import uuid
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, ValidationError

from agent.errors import IdentityError, IdentityUnavailableError
from agent.files import FULL, LASTING, write_atomic
from agent.protocol import Id, Message, Time

FILE_NAME = "identity.json"
MACHINE_ID_FILE = Path("/etc/machine-id")
OWN_MACHINE_ID_FILE_NAME = "machine-id"


def _sendable(token: SecretStr) -> SecretStr:
    """Refuse what could not stand in a header (RFC 6750, 2.1)."""
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{1,4096}", token.get_secret_value()):
        msg = "a token has other characters than a bearer token may have"
        raise ValueError(msg)
    return token


Token = Annotated[
    SecretStr, AfterValidator(_sendable), PlainSerializer(SecretStr.get_secret_value, return_type=str, when_used="json")
]


class PreviousToken(Message):
    """The token before the last rotation, for as long as the Supervisor takes it."""

    token: Token
    valid_until: Time


class Identity(Message):
    """The content of `identity.json`; the tokens are masked wherever it is printed."""

    schema_version: Literal[1] = 1
    supervisor_url: str
    tenant_id: Id
    division_id: Id
    environment_id: Id
    deployment_id: Id
    node_id: Id
    node_token: Token
    token_issued_at: Time
    previous_token: PreviousToken | None = None
    machine_id: Annotated[str, Field(min_length=1, max_length=128)]
    """The machine that it was made for."""
    journal_id: Annotated[str, Field(min_length=1)]
    """The journal that belongs to it; another one, or none, counts as lost."""
    enrolled_at: Time

    def secrets(self) -> list[str]:
        """Return what must never be shown."""
        previous = [self.previous_token.token] if self.previous_token else []
        return [token.get_secret_value() for token in (self.node_token, *previous)]


def machine_id(state_dir: Path, *, file: Path = MACHINE_ID_FILE) -> str:
    """Return this machine's identity: machine-id(5), or, where there is none, a random one kept in the state folder.

    Blocking. The random one is durable when this returns.

    Raises:
        IdentityError: It can neither be read nor kept; IdentityUnavailableError where that may pass by itself.
    """
    try:
        if found := _read_machine_id(file):
            return found
        own = state_dir / OWN_MACHINE_ID_FILE_NAME
        if found := _read_machine_id(own):
            return found
        made = uuid.uuid4().hex
        write_atomic(own, f"{made}\n".encode())
    except OSError as error:
        msg = f"cannot tell which machine this is: {error}"
        raise unusable(
            msg, error, hint=f"make {file} readable, or {state_dir} writable for the agent's user"
        ) from error
    return made


def _read_machine_id(file: Path) -> str | None:
    """Read a machine-id; None when there is none, or `uninitialized`, as in an image that never booted."""
    try:
        text = file.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else None


def load(state_dir: Path, *, machine_id_file: Path = MACHINE_ID_FILE) -> Identity | None:
    """Load the identity; None when this state folder was never enrolled. Blocking.

    Raises:
        IdentityError: It is damaged, cannot be read, or was made for another machine; IdentityUnavailableError where
            that may pass by itself.
    """
    path = state_dir / FILE_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise unusable(msg, error, hint="it has to belong to the agent's user, with mode 0600") from error
    try:
        identity = Identity.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        msg = f"cannot use {path}: it is damaged ({': '.join(part for part in (place, first['msg']) if part)})"
        raise IdentityError(
            msg, hint="put it back from a copy, or move it away and enrol this node anew; the journal can stay"
        ) from error
    here = machine_id(state_dir, file=machine_id_file)
    if identity.machine_id != here:
        msg = (
            f"cannot act as node {identity.node_id}: its identity is for machine {identity.machine_id}, this is {here}"
        )
        raise IdentityError(
            msg,
            hint=f"a clone has to become a node of its own: move {path} and the journal beside it away, then enrol",
        )
    return identity


def save(state_dir: Path, identity: Identity) -> None:
    """Write the identity; durable, with mode 0600, when this returns. Blocking.

    Raises:
        IdentityError: It cannot be written; the one before is as it was. IdentityUnavailableError where that may pass
            by itself.
    """
    try:
        write_atomic(state_dir / FILE_NAME, identity.model_dump_json(indent=2).encode() + b"\n", mode=0o600)
    except OSError as error:
        msg = f"cannot write {state_dir / FILE_NAME}: {error.strerror}"
        raise unusable(msg, error, hint="the state folder has to be writable for the agent's user") from error


def unusable(message: str, error: OSError, *, hint: str) -> IdentityError:
    """Make the error of a file or folder that cannot be used: one that keeps the agent down, or one that may pass.

    Args:
        message: "cannot X: cause".
        error: What the system said.
        hint: The next step, if a person has to change how the files lie and who may use them.
    """
    if error.errno in LASTING:
        return IdentityError(message, hint=hint)
    if error.errno in FULL:
        return IdentityUnavailableError(message, hint="free space on the disk of the state folder")
    return IdentityUnavailableError(message, hint="look at that disk, and at the kernel's log; it may pass by itself")
