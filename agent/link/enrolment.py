"""How a machine becomes a node: an enrolment token is exchanged for an identity."""

import socket
import ssl
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import structlog
from pydantic import SecretStr, ValidationError

from agent.errors import IdentityError, SupervisorError
from agent.journal import Journal
from agent.link import identity as identities
from agent.link.address import tls_context
from agent.link.blocking import in_thread
from agent.link.clock import SENSIBLE_YEARS
from agent.link.dates import http_date
from agent.link.failures import Failure
from agent.link.identity import Identity
from agent.link.transport import Transport
from agent.protocol import Enrollment, EnrollRequest

log = structlog.get_logger(__name__)

READ_TIMEOUT = 30.0
"""Seconds without a byte after which the call has failed."""
TOKEN_STATUSES = frozenset({400, 401, 403, 409, 422})
"""Answers that are about the enrolment token."""


async def enroll(
    url: str,
    ca_file: Path | None,
    enrollment_token: str,
    state_dir: Path,
    *,
    machine_id_file: Path = identities.MACHINE_ID_FILE,
) -> Identity:
    """Enrol this machine, and leave its machine-id, journal and identity durable, in this order.

    The same token with the same machine gets the same node, so an answer that was lost is healed by calling again.

    Args:
        url: `supervisor.url`.
        ca_file: `supervisor.ca_file`.
        enrollment_token: Made by the Supervisor for one machine; expires.
        state_dir: The state folder; made if it is not there.
        machine_id_file: machine-id(5).

    Raises:
        SettingsError: The URL or the CA file cannot be used.
        IdentityError: There is an identity for another machine or node, or it cannot be written.
        JournalError: The journal cannot be made.
        SupervisorError: The Supervisor could not be asked, or refused; may be tried again.
    """
    token = enrollment_token.strip()
    version = await in_thread(metadata.version, "iggy-node-agent")
    transport = Transport(url, version=version)
    context = await in_thread(tls_context, url, ca_file)
    known = await in_thread(_prepare, state_dir, machine_id_file)
    machine = await in_thread(identities.machine_id, state_dir, file=machine_id_file)
    # An enrolled node keeps the name of its journal: one that is missing has to be found lost.
    journal_id = known.journal_id if known else await Journal.create(state_dir)
    enrollment, issued_at = await _ask(
        transport,
        context,
        EnrollRequest(
            enrollment_token=token, hostname=socket.gethostname()[:255], machine_id=machine, agent_version=version[:64]
        ),
    )
    if known is not None and known.node_id != enrollment.node_id:
        msg = f"cannot enrol: {state_dir} belongs to node {known.node_id}, and the token is for {enrollment.node_id}"
        raise IdentityError(msg, hint="move identity.json and the journal away, or name another agent.state_dir")
    identity = _identity(enrollment, issued_at, url=url, machine=machine, journal_id=journal_id)
    await in_thread(identities.save, state_dir, identity)
    log.info("node.enrolled", node_id=identity.node_id, deployment_id=identity.deployment_id)
    return identity


def _prepare(state_dir: Path, machine_id_file: Path) -> Identity | None:
    """Make the state folder, and return the identity that it holds already."""
    try:
        state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the state folder {state_dir}: {error.strerror}"
        hint = "make it by hand for the agent's user, or set agent.state_dir"
        raise identities.unusable(msg, error, hint=hint) from error
    return identities.load(state_dir, machine_id_file=machine_id_file)


async def _ask(
    transport: Transport, context: ssl.SSLContext | None, request: EnrollRequest
) -> tuple[Enrollment, datetime | None]:
    """Make the call; returns the enrolment, and its time by the Supervisor's clock if the answer told it."""
    await transport.open(context)
    try:
        answer = await transport.call(
            "POST",
            "enroll",
            headers={},
            read_timeout=READ_TIMEOUT,
            body=request.model_dump_json().encode(),
            secrets=(request.enrollment_token,),
        )
        date = http_date(answer.date)
        sensible = date is not None and date.year in SENSIBLE_YEARS
        return Enrollment.model_validate(answer.body), date if sensible else None
    except ValidationError as error:
        msg = "cannot enrol: the Supervisor's answer is not an enrolment"
        raise SupervisorError(
            msg, hint="check that supervisor.url is a Supervisor", code=Failure.NOT_UNDERSTOOD
        ) from error
    except SupervisorError as error:
        if error.status in TOKEN_STATUSES:
            error.hint = "the enrolment token may be mistyped, expired, or used by another machine: create a new one"
        elif error.status == 410:
            error.hint = (
                "the node of this enrolment token was taken out of its deployment: create a token for a new node"
            )
        raise
    finally:
        await transport.close()


def _identity(
    enrollment: Enrollment, issued_at: datetime | None, *, url: str, machine: str, journal_id: str
) -> Identity:
    now = datetime.now(UTC)
    try:
        return Identity(
            **enrollment.model_dump(exclude={"node_token"}),
            node_token=SecretStr(enrollment.node_token),
            supervisor_url=url,
            token_issued_at=issued_at or now,
            machine_id=machine,
            journal_id=journal_id,
            enrolled_at=now,
        )
    except ValidationError as error:
        msg = "cannot enrol: the node token in the Supervisor's answer could not stand in a header"
        raise SupervisorError(msg, code=Failure.NOT_UNDERSTOOD) from error
