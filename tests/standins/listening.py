"""TCP listeners with a thread per connection, and the small HTTP/1.1 server that the stand-ins answer with."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_REASONS = {
    200: "OK",
    201: "Created",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    415: "Unsupported Media Type",
    503: "Service Unavailable",
}
_MAX_HEAD = 64 * 1024
_MAX_BODY = 2 * 1000 * 1000


class BadAddressError(Exception):
    """An address in the configuration is not `HOST:PORT`."""


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`; raise BadAddressError where it is something else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BadAddressError(address)
    return host.strip("[]"), int(port)


def bind(address: str, *, kind: socket.SocketKind = socket.SOCK_STREAM, shared: bool = False) -> socket.socket:
    """Bind a socket; raise OSError when the port is taken.

    Args:
        address: `HOST:PORT`; port 0 picks a free one.
        kind: TCP, or UDP for QUIC's port.
        shared: set SO_REUSEPORT, as servers up to 0.8 do: several of them can then have the same port.
    """
    family, _, _, _, where = socket.getaddrinfo(*split_address(address), type=kind)[0]
    listener = socket.socket(family, kind)
    try:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        if kind == socket.SOCK_STREAM:
            listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Write the address that a socket is bound to as `HOST:PORT`."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Acceptor:
    """Accepts connections on a bound socket and serves each in a thread of its own until it is closed."""

    def __init__(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._serve = serve
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """The number of connections that are open."""
        return len(self._open)

    def close(self) -> None:
        """Stop accepting and cut the connections."""
        for one in [self._listener, *tuple(self._open)]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            with connection, contextlib.suppress(OSError):  # the other side may go at any moment
                self._serve(connection)
        finally:
            self._open.discard(connection)


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body, or return None where it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Response(NamedTuple):
    """One HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, body: str) -> "Response":
        """Answer 200 with plain text."""
        return cls(200, body.encode(), "text/plain; charset=utf-8")

    @classmethod
    def json(cls, content: Any, status: int = 200) -> "Response":
        """Answer with compact JSON, as serde writes it."""
        return cls(status, json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(), "application/json")


Handler = Callable[[Request], Response | None]
"""Answers a request; None leaves the caller waiting without an answer."""


def serve_http(connection: socket.socket, handler: Handler) -> None:
    """Answer the requests of one connection until it ends."""
    stream = connection.makefile("rb")
    while True:
        request, keep = _read_request(stream)
        if request is None:
            return
        response = handler(request)
        if response is None:
            stream.read()
            return
        connection.sendall(_write_response(request, response))
        if not keep:
            return


def _read_request(stream: Any) -> tuple[Request | None, bool]:
    line = stream.readline(_MAX_HEAD).decode("latin-1").split()
    if len(line) != 3:
        return None, False
    headers: dict[str, str] = {}
    while (header := stream.readline(_MAX_HEAD).decode("latin-1").strip()) != "":
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = min(int(headers.get("content-length", "0")), _MAX_BODY)
    keep = headers.get("connection", "").lower() != "close" and line[2] == "HTTP/1.1"
    return Request(line[0], line[1].partition("?")[0], headers, stream.read(length)), keep


def _write_response(request: Request, response: Response) -> bytes:
    head = [f"HTTP/1.1 {response.status} {_REASONS[response.status]}"]
    if response.content_type is not None:
        head.append(f"content-type: {response.content_type}")
    head += [f"{name}: {value}" for name, value in response.headers]
    if response.status != 204:
        head.append(f"content-length: {len(response.body)}")
    head.append(time.strftime("date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()))
    body = b"" if request.method == "HEAD" else response.body
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
