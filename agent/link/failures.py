"""What can go wrong with a call, each as a sentence with its next step."""

import json
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import aiohttp
from yarl import URL

from agent import means
from agent.errors import SupervisorError
from agent.link.dates import http_date
from agent.protocol import INSTANCE_HEADER

LONGEST_QUOTE = 300
"""Characters of the Supervisor's own words that are repeated in an error."""


class Failure(StrEnum):
    """The `code` of a SupervisorError that is not the Supervisor's own word."""

    DNS = "dns"
    """The host's name has no address, or could not be looked up."""
    REFUSED = "connection_refused"
    """Nothing listens there."""
    TLS = "tls"
    """It could not prove that it is the Supervisor."""
    TIMEOUT = "timeout"
    """No connection, or no answer, in time."""
    BROKEN = "connection_broken"
    """The connection ended before the answer did."""
    REDIRECT = "redirect"
    """It pointed elsewhere; that is not followed."""
    TOO_LARGE = "too_large"
    """The answer passed the bound."""
    NOT_UNDERSTOOD = "not_understood"
    """The answer is not what the protocol says."""
    STANDING_LOST = "standing_lost"
    """This agent may not call any more."""


def unreachable(error: aiohttp.ClientError | OSError, url: URL) -> SupervisorError:
    """Explain why no answer came.

    Args:
        error: What the HTTP client, or the system, raised; a TimeoutError is an OSError.
        url: Of the call; only its origin is shown.
    """
    failure, cause, hint = _explain(error, url)
    return SupervisorError(f"cannot reach the Supervisor at {url.origin()}: {cause}", hint=hint, code=failure)


def _explain(error: Exception, url: URL) -> tuple[Failure, str, str]:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return Failure.TLS, *_explain_certificate(error.certificate_error, url)
        case aiohttp.ClientSSLError():
            cause = f"TLS failed: {_reason(error)}"
            return Failure.TLS, cause, "check that the port of supervisor.url speaks TLS"
        case aiohttp.ClientConnectorDNSError():
            used_up = means.hint(error.os_error)
            what = "could not be looked up" if used_up else "has no address"
            cause = f"the name {url.host} {what} ({_reason(error)})"
            return Failure.DNS, cause, used_up or "check supervisor.url and the name resolution of this machine"
        case TimeoutError():
            return Failure.TIMEOUT, "no answer in time", "check the network, the firewall, and the Supervisor's health"
        case aiohttp.ClientConnectorError():
            cause = f"no connection ({_reason(error)})"
            return Failure.REFUSED, cause, "check supervisor.url, and that the Supervisor runs and listens there"
        case _:
            cause = f"the connection broke ({_reason(error)})"
            return Failure.BROKEN, cause, "this heals by itself; if it stays, look at proxies and at the Supervisor"


def _explain_certificate(error: Exception, url: URL) -> tuple[str, str]:
    cause = getattr(error, "verify_message", "") or str(error)
    sentence = f"its certificate was not accepted: {cause}"
    match getattr(error, "verify_code", None):
        case 10 | 9:  # X509_V_ERR_CERT_HAS_EXPIRED, …NOT_YET_VALID: openssl-verification-options(1)
            return sentence, "renew the certificate, or set this machine's clock"
        case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return sentence, f"the certificate has to name {url.host}, or supervisor.url another host"
        case _:
            return sentence, "name the CA that signed it with supervisor.ca_file"


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        if isinstance(inner, ssl.SSLError) and inner.reason:
            return inner.reason.lower().replace("_", " ")
        return inner.strerror or str(inner)
    return str(error) or type(error).__name__


def redirected(status: int, location: str | None, url: URL) -> SupervisorError:
    """Explain an answer that points elsewhere; its target's path and query are not shown."""
    try:
        target = str(url.join(URL(location)).origin()) if location else "nowhere"
    except ValueError:
        target = "somewhere that is no URL"
    return SupervisorError(
        f"cannot use the answer of {url.origin()}: it is a redirect ({status}) to {target}, and none is followed",
        hint="set supervisor.url to the final address",
        status=status,
        code=Failure.REDIRECT,
    )


def too_large(url: URL, bound: int) -> SupervisorError:
    """Explain an answer that passed the bound (bytes)."""
    return SupervisorError(
        f"cannot take the answer of {url.origin()}: it is longer than {bound} bytes",
        hint="check that supervisor.url is a Supervisor",
        code=Failure.TOO_LARGE,
    )


def not_understood(url: URL, cause: str) -> SupervisorError:
    """Explain an answer that is not what the protocol says."""
    return SupervisorError(
        f"cannot understand the answer of {url.origin()}: {cause}",
        hint="check that supervisor.url is a Supervisor that speaks agent protocol 1",
        code=Failure.NOT_UNDERSTOOD,
    )


def refused(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    url: URL,
    secrets: Iterable[str] = (),
    *,
    now: Callable[[], datetime],
) -> SupervisorError:
    """Explain an error answer; a problem document is read leniently, for a proxy may have answered.

    Args:
        status: The HTTP status.
        headers: Of the answer.
        body: Of the answer, as far as it was read.
        url: Of the call.
        secrets: What is never repeated, even if the answer does.
        now: Tells the Supervisor's time; asked only when the answer does not tell it.
    """
    problem = _problem(body)
    code = _word(problem.get("code"))
    sentence = _quote(problem.get("reason") or problem.get("detail") or problem.get("title"), secrets)
    said = ": ".join(part for part in (code, sentence) if part)
    return SupervisorError(
        f"cannot complete a call to {url.origin()}: it answered {status}" + (f" ({said})" if said else ""),
        hint=_hint(status),
        status=status,
        code=code,
        retry_after=retry_after_seconds(headers.get("Retry-After"), date=headers.get("Date"), now=now),
        newest_instance=headers.get(INSTANCE_HEADER),
    )


def _hint(status: int) -> str | None:
    match status:
        case 401:
            return "the node token is not accepted: enrol this node anew (iggy-agent enroll) and restart the agent"
        case 403:
            return (
                "the node is known but not allowed to call: look at its state, and at address rules, on the Supervisor"
            )
        case 404:
            return "supervisor.url may be wrong: it is the address in front of /agent/v1/"
        case _:
            return None


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _word(code: object) -> str | None:
    """Return a code only if it looks like one, for it decides and is shown."""
    return code if isinstance(code, str) and re.fullmatch(r"[a-z0-9_.-]{1,64}", code) else None


def _quote(text: object, secrets: Iterable[str]) -> str | None:
    if not isinstance(text, str):
        return None
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable[:LONGEST_QUOTE]


def retry_after_seconds(header: str | None, *, date: str | None, now: Callable[[], datetime]) -> float | None:
    """Read a Retry-After header (RFC 9110, 10.2.3).

    Args:
        header: Seconds, or an HTTP date.
        date: The Date header of the same answer: the clock that such a date was reckoned by.
        now: Tells the Supervisor's time; asked only without a Date header.

    Returns:
        Seconds; None if there is no header, or none that is valid.
    """
    if header is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", header.strip()):
        return float(header)
    until = http_date(header)
    if until is None:
        return None
    return max(0.0, (until - (http_date(date) or now())).total_seconds())
