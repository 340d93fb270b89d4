"""A gate that all connections of an agent go through, as bytes: what firewalls, moves and certificates do to them."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

CHUNK = 65536
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Gate:
    """Listens at an address, and relays to the Supervisor; with TLS if it has a certificate.

    Args:
        port: Where it listens.
        upstream: Port of the Supervisor on 127.0.0.1.
        tls: Its certificate; None to relay bytes as they are.
        host: Where it listens, an address of the loopback.
    """

    def __init__(self, port: int, upstream: int, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host
        self._upstream = upstream
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._welcome: Callable[[Connection], Coroutine[Any, Any, None]] = self._relay
        self._open: set[asyncio.Task[None]] = set()
        self.hits = 0
        """Connections that met what is wrong with it now."""
        self.fooled = 0
        """Connections that went on although what answered was not the Supervisor."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self, host: str | None = None) -> None:
        """Listen, and be a way to the Supervisor; at another address, if one is given."""
        self.host = host or self.host
        self._welcome = self._relay
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self.host, self.port)

    async def close(self) -> None:
        """Stop listening, and reset every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.reset()

    async def reset(self) -> None:
        """Reset every connection that is open."""
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def fall_silent(self) -> None:
        """Take connections and say nothing more, on those that are open neither."""
        self.hits = 0
        self._welcome = self._say_nothing
        self._flows.clear()

    async def be(self, impostor: ssl.SSLContext | bytes) -> None:
        """Answer as somebody else: with another certificate, or with bytes that are no TLS; resets what was open."""
        await self.close()
        await self.open()
        self.hits = 0
        self._welcome = lambda connection: self._pretend(connection, impostor)

    # --- connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            msg = "a connection is served in a task"
            raise RuntimeError(msg)
        self._open.add(task)
        try:
            await self._welcome((reader, writer))
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the other side is gone, which is its right
        except asyncio.CancelledError:
            pass  # the gate was closed; a task of the server that is cancelled would be logged as an error
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _relay(self, connection: Connection) -> None:
        reader, writer = connection
        if self._tls is not None:
            await writer.start_tls(self._tls)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        ways = {
            asyncio.ensure_future(self._carry(reader, far_writer)),
            asyncio.ensure_future(self._carry(far_reader, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK):
            if not self._flows.is_set():
                self.hits += 1
                await self._flows.wait()
            target.write(chunk)
            await target.drain()

    async def _say_nothing(self, connection: Connection) -> None:
        self.hits += 1
        await self._flows.wait()

    async def _pretend(self, connection: Connection, impostor: ssl.SSLContext | bytes) -> None:
        reader, writer = connection
        if isinstance(impostor, bytes):
            self.hits += 1
            writer.write(impostor)
            await writer.drain()
            await reader.read(CHUNK)
            return
        try:
            await writer.start_tls(impostor)
        except (OSError, ssl.SSLError):
            self.hits += 1
            return
        if await reader.read(CHUNK):
            self.fooled += 1
