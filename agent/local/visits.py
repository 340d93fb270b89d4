"""Bounds what the visitors of the local API may hold: how many connections there are, and for how long."""

import asyncio
from collections.abc import Callable

MAX_VISITS = 32
"""Connections at once; one more ends the oldest, so that whoever asks now is always heard."""
LONGEST_VISIT = 30.0
"""Seconds; the operator's command connects anew for each question, and an answer takes a moment."""


class Visits:
    """The connections of one server, oldest first.

    Args:
        server: Makes the protocol that speaks HTTP on a connection.
    """

    def __init__(self, server: Callable[[], asyncio.BaseProtocol]) -> None:
        self._server = server
        self._visits: dict[_Visit, None] = {}

    def protocol(self) -> asyncio.Protocol:
        """Make the protocol of one more connection."""
        inner = self._server()
        if not isinstance(inner, asyncio.Protocol):
            msg = "the server does not speak over a stream"
            raise TypeError(msg)
        return _Visit(inner, self)

    def _begin(self, visit: "_Visit") -> None:
        self._visits[visit] = None
        if len(self._visits) > MAX_VISITS:
            next(iter(self._visits)).end()

    def _end(self, visit: "_Visit") -> None:
        self._visits.pop(visit, None)


class _Visit(asyncio.Protocol):
    """One connection: everything is the HTTP protocol's own, but for its end."""

    def __init__(self, inner: asyncio.Protocol, visits: Visits) -> None:
        self._inner = inner
        self._visits = visits
        self._transport: asyncio.WriteTransport | None = None
        self._time_is_over: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Close it at once, whatever is under way."""
        self._visits._end(self)  # noqa: SLF001 - the two are one part
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.WriteTransport):
            msg = "the connection is no stream"
            raise TypeError(msg)
        self._transport = transport
        self._time_is_over = asyncio.get_running_loop().call_later(LONGEST_VISIT, self.end)
        self._visits._begin(self)  # noqa: SLF001 - as above
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._time_is_over is not None:
            self._time_is_over.cancel()
        self._visits._end(self)  # noqa: SLF001 - as above
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
