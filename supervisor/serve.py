"""`iggy-supervisor serve`: the process around the application."""

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from supervisor.app import Options, Supervisor
from supervisor.database import ServeLock, StoreError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `HOST:PORT`, with `[…]` around an IPv6 address.

        Raises:
            ValueError: It is something else.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
            msg = f"expected HOST:PORT, got {text!r}"
            raise ValueError(msg)
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def url(self, port: int, *, tls: bool) -> str:
        """Write the URL of this host and the port that is listened on."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if tls else 'http'}://{host}:{port}"


def serve(options: Options, address: Address, tls_cert: Path | None, tls_key: Path | None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StoreError: The data folder, the certificate or the address cannot be used.
    """
    if tls_cert is None and not address.loopback:
        msg = f"cannot listen on {address.host} without TLS: API keys and secrets would travel in clear"
        raise StoreError(msg, hint="give --tls-cert and --tls-key, or listen on 127.0.0.1", exit_code=78)
    tls = None if tls_cert is None or tls_key is None else _tls_context(tls_cert, tls_key)
    _configure_logs()
    _allow_many_connections()
    options.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ServeLock(options.data):
        asyncio.run(_serve(options, address, tls))


async def _serve(options: Options, address: Address, tls: ssl.SSLContext | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Supervisor.open(options) as supervisor, contextlib.AsyncExitStack() as listening:
        with _explained(address):
            port = await listening.enter_async_context(supervisor.listen(address.host, address.port, tls))
        sys.stdout.write(f"listening on {address.url(port, tls=tls is not None)}\n")
        sys.stdout.flush()
        supervisor.background.add_done_callback(lambda _: stop.set())
        await stop.wait()
    log.info("supervisor.stopped")


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"cannot listen on {address.host}:{address.port}: {(error.strerror or str(error)).lower()}"
        raise StoreError(msg, hint="choose another --listen; port 0 lets the system choose") from error


def _tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        if not path.is_file():
            msg = f"cannot use TLS: there is no file {path}"
            raise StoreError(msg, hint="--tls-cert and --tls-key take PEM files", exit_code=78)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        msg = f"cannot use TLS: {certificate} and {key} do not load: {error}"
        raise StoreError(msg, hint="both are PEM, and the key belongs to the certificate", exit_code=78) from error
    return context


def _allow_many_connections() -> None:
    # The usual soft limit of 1024 files would stop at a thousand nodes; the hard one is the administrator's word.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _configure_logs() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
