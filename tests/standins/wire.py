"""The few commands of Iggy's binary protocol that the stand-ins speak, in the framing of 0.8.

A request is `length:u32 code:u32 payload`, where the length counts the code too; an answer is `status:u32 length:u32
payload`, all little-endian. Of a stream only its name travels: that is between the stand-ins, not Iggy's format.
"""

import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

PING, LOGIN, LOGIN_WITH_TOKEN, GET_STREAM, CREATE_STREAM = 1, 38, 44, 200, 202
OK, INVALID_COMMAND, RESOURCE_NOT_FOUND, UNAUTHENTICATED, INVALID_CREDENTIALS = 0, 3, 20, 40, 42
_MAX_FRAME = 1024 * 1024


class Credentials(NamedTuple):
    """What a client signs in with: a name and a password, or a token."""

    username: str = ""
    password: str = ""
    token: str = ""


class Session(NamedTuple):
    """What a server does for its clients."""

    knows: Callable[[str, str], bool]
    knows_token: Callable[[str], bool]
    has_stream: Callable[[str], bool]
    create_stream: Callable[[str], None]


def serve(connection: socket.socket, session: Session) -> None:
    """Answer the commands of one client until it goes."""
    stream = connection.makefile("rb")
    signed_in = False
    while len(head := stream.read(8)) == 8:
        length, code = struct.unpack("<II", head)
        if not 4 <= length <= _MAX_FRAME:
            return
        status, payload = _answer(code, stream.read(length - 4), session, signed_in=signed_in)
        signed_in = signed_in or (code in {LOGIN, LOGIN_WITH_TOKEN} and status == OK)
        connection.sendall(struct.pack("<II", status, len(payload)) + payload)


def _answer(code: int, payload: bytes, session: Session, *, signed_in: bool) -> tuple[int, bytes]:
    first, rest = _take(payload)
    status, answer = OK, b""
    if code == LOGIN:
        status = OK if session.knows(first, _take(rest)[0]) else INVALID_CREDENTIALS
    elif code == LOGIN_WITH_TOKEN:
        status = OK if session.knows_token(first) else RESOURCE_NOT_FOUND
    elif code != PING and not signed_in:
        status = UNAUTHENTICATED
    elif code == GET_STREAM:
        answer = b"\x01" * session.has_stream(first)
    elif code == CREATE_STREAM:
        session.create_stream(first)
    elif code != PING:
        status = INVALID_COMMAND
    if code in {LOGIN, LOGIN_WITH_TOKEN} and status == OK:
        answer = struct.pack("<I", 0)  # the id of the user
    return status, answer


class RefusedError(Exception):
    """The server answered with another status than 0."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"status {status}")


class Client:
    """A connection of the connectors' double to a server.

    Raises:
        OSError: nothing listens there, or the connection broke.
        RefusedError: the server refused a command.
    """

    def __init__(self, host: str, port: int, credentials: Credentials) -> None:
        self._socket = socket.create_connection((host, port), timeout=5)
        self._stream = self._socket.makefile("rb")
        if credentials.token:
            self._call(LOGIN_WITH_TOKEN, _text(credentials.token))
        else:
            self._call(LOGIN, _text(credentials.username) + _text(credentials.password) + bytes(8))

    def ping(self) -> None:
        """Check that the server is there."""
        self._call(PING)

    def has_stream(self, name: str) -> bool:
        """Tell whether a stream exists."""
        return self._call(GET_STREAM, _text(name)) != b""

    def create_stream(self, name: str) -> None:
        """Make a stream unless it exists."""
        self._call(CREATE_STREAM, _text(name))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._socket.close()

    def _call(self, code: int, payload: bytes = b"") -> bytes:
        self._socket.sendall(struct.pack("<II", len(payload) + 4, code) + payload)
        head = self._stream.read(8)
        if len(head) < 8:
            msg = "the server closed the connection"
            raise ConnectionResetError(msg)
        status, length = struct.unpack("<II", head)
        if status != OK:
            raise RefusedError(status)
        return self._stream.read(length)


def _text(value: str) -> bytes:
    data = value.encode()
    return bytes([len(data)]) + data


def _take(payload: bytes) -> tuple[str, bytes]:
    end = 1 + (payload[0] if payload else 0)
    return payload[1:end].decode(), payload[end:]
