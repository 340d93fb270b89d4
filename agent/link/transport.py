"""One HTTP call: bounded, verified, not redirected, and every way that it can fail is a SupervisorError."""

import errno
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from multidict import CIMultiDictProxy
from yarl import URL

from agent.link import failures
from agent.link.address import api_base
from agent.protocol import MAX_BODY_BYTES

CONNECT_TIMEOUT = 10.0
"""Seconds for a name, a connection and TLS together."""
SLOWEST_ANSWER = 300.0
"""Seconds that an answer may take on top of being held: a peer that sends a byte now and then is cut here."""
_LONGEST_INTEGER = 64
_ACCEPT = {"Accept": "application/json, application/problem+json", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer. `round_trip` is in seconds."""

    body: Any
    date: str | None
    round_trip: float


class _Resolver(aiohttp.ThreadedResolver):
    """Looks names up in the event loop's threads, and says in the system's words when it may make none."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up."""
        try:
            return await super().resolve(host, port, family)
        except RuntimeError as error:  # pthread_create(3): EAGAIN
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


class Transport:
    """One ClientSession to one Supervisor.

    Args:
        url: `supervisor.url`.
        version: Of the agent; sent with each call.
        now: Tells the Supervisor's time, as well as it is known.

    Raises:
        SettingsError: The URL cannot be used.
    """

    def __init__(self, url: str, *, version: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._base = api_base(url)
        self._now = now
        self._user_agent = f"iggy-agent/{version}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self, context: ssl.SSLContext | None) -> None:
        """Make the session; `context` verifies the Supervisor, and is not used with plain HTTP."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context or True, limit=2, resolver=_Resolver()),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent, **_ACCEPT},
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        read_timeout: float,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        secrets: Iterable[str] = (),
    ) -> Answer:
        """Make one call and return its JSON.

        Args:
            method: Of HTTP.
            path: Below the API's base.
            headers: Of this call.
            read_timeout: Seconds without a byte after which it has failed.
            params: The query.
            body: JSON.
            secrets: What an error never repeats.

        Raises:
            SupervisorError: No answer, an error answer, or one that cannot be used.
        """
        if self._session is None:
            msg = "the transport is not open"
            raise RuntimeError(msg)
        url = self._base / path
        all_headers = dict(headers) if body is None else {**headers, "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(
            total=read_timeout + SLOWEST_ANSWER,
            connect=CONNECT_TIMEOUT,
            sock_connect=CONNECT_TIMEOUT,
            sock_read=read_timeout,
        )
        begun = time.monotonic()
        try:
            async with self._session.request(
                method, url, params=params, data=body, headers=all_headers, timeout=timeout, allow_redirects=False
            ) as response:
                status, answer_headers = response.status, response.headers
                content = await _read(response)
        except (aiohttp.ClientError, OSError) as error:
            raise failures.unreachable(error, url) from error
        round_trip = time.monotonic() - begun
        if 300 <= status < 400:
            raise failures.redirected(status, answer_headers.get("Location"), url)
        if not 200 <= status < 300:
            raise failures.refused(status, answer_headers, content or b"", url, secrets, now=self._now)
        if content is None:
            raise failures.too_large(url, MAX_BODY_BYTES)
        return Answer(_parse(content, answer_headers, url), answer_headers.get("Date"), round_trip)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Read a body; None as soon as it passes the bound, and the connection is given up with it."""
    body = bytearray()
    if (response.content_length or 0) <= MAX_BODY_BYTES:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return bytes(body)
    response.close()
    return None


def _parse(content: bytes, headers: CIMultiDictProxy[str], url: URL) -> Any:
    if headers.get("Content-Encoding", "identity") != "identity":
        raise failures.not_understood(url, "it is compressed, which was not asked for")
    try:
        return json.loads(content, parse_int=_integer, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise failures.not_understood(url, "it is not JSON") from error


def _integer(text: str) -> int | str:
    """Read an integer; one of absurd length stays text, so that it spoils its own item and not the whole answer."""
    return int(text) if len(text) <= _LONGEST_INTEGER else text
