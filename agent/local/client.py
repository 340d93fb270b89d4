"""The operator's side of the local API: one GET over the agent's unix socket, with the standard library only."""

import http.client
import json
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.errors import AgentError, SocketDeniedError, UnavailableError

TIMEOUT = 10.0
"""Seconds without a byte; a hanging Docker Engine may hold up a status that long."""

LONGEST = 60.0
"""Seconds for a whole answer; a peer that sends a byte now and then is hung up on."""
MAX_BYTES = 8 * 1024 * 1024


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path
        self._stream: socket.socket | None = None
        """The base class forgets it when an answer is the last one, and still reads from it."""

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stream = self.sock
        # Blocking, for a socket with a timeout of Python's does not wait for a place in the backlog: unix(7), EAGAIN.
        seconds, fraction = divmod(TIMEOUT, 1)
        patience = struct.pack("@ll", int(seconds), int(fraction * 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self.timeout)

    def hang_up(self) -> None:
        """End it from another thread: whoever reads from it has read all."""
        if self._stream is not None:
            with suppress(OSError):  # it has ended by itself
                self._stream.shutdown(socket.SHUT_RDWR)


def ask(path: Path, target: str) -> dict[str, Any]:
    """Ask the running agent.

    Args:
        path: Its socket.
        target: What to get, such as `/v1/status`.

    Raises:
        UnavailableError: It does not run, or does not answer.
        SocketDeniedError: This user may not ask it.
        AgentError: It says no; in its own words.
    """
    connection = _UnixConnection(path)
    patience = threading.Timer(LONGEST, connection.hang_up)
    patience.daemon = True
    patience.start()
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read(MAX_BYTES + 1)
        whole = not response.length  # what is still to come: http.client does not mind when nothing does
    except (FileNotFoundError, ConnectionRefusedError) as error:
        msg = f"cannot ask the agent: it is not running, nobody listens on {path}"
        raise UnavailableError(msg, hint="systemctl start iggy-agent; for another socket, --socket PATH") from error
    except PermissionError as error:
        msg = f"cannot ask the agent: no permission on {path}"
        raise SocketDeniedError(msg, hint="use sudo, or join the group that the socket belongs to") from error
    except (TimeoutError, BlockingIOError) as error:
        msg = f"cannot ask the agent: no answer on {path} within {TIMEOUT:g} s"
        raise UnavailableError(msg, hint="the agent's log may say what it waits for") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # a ValueError: of a chunk of negative length
        msg = f"cannot ask the agent on {path}: {str(error) or type(error).__name__}"
        raise UnavailableError(msg, hint="ask again; the agent may have just stopped") from error
    finally:
        patience.cancel()
        connection.close()
    return _read(body if whole else b"", response.status, path)


def _read(body: bytes, status: int, path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        msg = f"cannot read the answer of the agent: {path} does not speak its language"
        raise UnavailableError(msg, hint="is it another program's socket? give the agent's with --socket PATH")
    error = answer.get("error")
    if status != 200 or isinstance(error, dict):
        error = error if isinstance(error, dict) else {}
        raise AgentError(str(error.get("message", f"cannot ask the agent: HTTP {status}")), hint=error.get("hint"))
    return answer
