"""Where the Supervisor is, and how it proves that it is the one: the URL and the TLS context."""

import ipaddress
import ssl
from pathlib import Path

from yarl import URL

from agent.errors import CaFileUnavailableError, SettingsError
from agent.files import LASTING

API_PATH = "agent/v1/"


def api_base(url: str) -> URL:
    """Return the base of the agent API below `supervisor.url`.

    Raises:
        SettingsError: It is no usable http(s) URL, or plain HTTP to another machine.
    """
    try:
        base = URL(url.strip().rstrip("/") + "/" + API_PATH)
        host, _ = base.host, base.port
        if host is not None:
            # A label that is too long fails only when it is looked up, and then with a UnicodeError.
            host.encode("idna")
    except ValueError as error:
        raise _wrong(_without_user(url), f"{error}") from error
    if base.scheme not in {"http", "https"} or not host:
        raise _wrong(_without_user(url), "it does not begin with https:// and a host")
    if base.user is not None or base.password is not None:
        raise _wrong(_without_user(url), "it holds a user or a password", hint="the node token is the only credential")
    if base.raw_query_string or base.raw_fragment or "?" in url or "#" in url:
        raise _wrong(_without_user(url), "it has a query or a fragment")
    if base.scheme == "http" and not is_loopback(host):
        raise _wrong(
            url,
            "plain HTTP is accepted for this machine itself only (127.0.0.0/8, ::1, localhost)",
            hint="use https://; a private CA can be named with supervisor.ca_file",
        )
    return base


def is_loopback(host: str) -> bool:
    """Tell whether a host of a URL is this machine itself, without asking DNS."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(url: str, ca_file: Path | None) -> ssl.SSLContext | None:
    """Make the context that verifies the Supervisor: by the system's CAs, or by those of `ca_file` alone (blocking).

    None for plain HTTP, which is on this machine only: the system's CAs take 35 ms and 1 MB to read. A `ca_file` is
    checked even so.

    Raises:
        SettingsError: `ca_file` cannot be read, or holds no certificate; CaFileUnavailableError where that may pass by
            itself, as while somebody writes it anew.
    """
    if ca_file is None and url.startswith("http://"):
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        lasting = ca_file is None or not _is_cut_off(ca_file)
        raise _bad_ca(ca_file, "it holds no certificate in PEM", lasting=lasting) from error
    except OSError as error:
        raise _bad_ca(ca_file, error.strerror or str(error), lasting=error.errno in LASTING) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_cut_off(ca_file: Path) -> bool:
    """Tell whether a file looks as one does that is being written: empty, or it ends within a certificate."""
    try:
        content = ca_file.read_bytes()
    except OSError:
        return True
    return not content.strip() or content.count(b"-----BEGIN") != content.count(b"-----END")


def _bad_ca(ca_file: Path | None, cause: str, *, lasting: bool) -> SettingsError:
    kind = SettingsError if lasting else CaFileUnavailableError
    return kind(
        f"cannot use supervisor.ca_file {ca_file}: {cause}",
        hint="it has to be a PEM file with the CA's certificate that the agent's user can read",
    )


def _without_user(url: str) -> str:
    """Show a URL that may hold credentials."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at else url


def _wrong(url: str, cause: str, *, hint: str | None = None) -> SettingsError:
    return SettingsError(
        f"cannot use supervisor.url {url!r}: {cause}", hint=hint or "it looks like https://supervisor.example.com"
    )
