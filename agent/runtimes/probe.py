"""The probe: whether a runtime is ready, not just alive. One attempt at a time; `runtime.py` repeats it.

A failed attempt says why in one sentence, because that sentence is what a user reads when an action is rejected.
"""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    import aiohttp

NO_THREAD = "no thread can be made to look the name up"
"""What Python tells as a RuntimeError, at TasksMax= for example."""
_MAX_PING_BYTES = 64 * 1024
_MAX_STATS_BYTES = 1024 * 1024
_MAX_LISTED = 20


class ConnectorsRule(StrEnum):
    """What becomes of an enabled connector that is not running; `/health` of the connectors runtime hides it."""

    WARN = "warn"
    """It is said in the evidence."""
    REQUIRE = "require"
    """The runtime is not ready."""
    IGNORE = "ignore"
    """It is not looked at."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How to see that a runtime is ready. Times in seconds.

    Args:
        http: URL to GET.
        tcp: HOST:PORT to connect to; for a runtime without HTTP.
        status: The answer that counts as ready.
        expect: The body that counts as ready, without surrounding white space; any when None.
        attempt_timeout: Of one attempt, all of it.
        ready_timeout: For the whole wait.
        stable_for: How long it has to stay ready.
        connectors: Read from `/stats` beside an `http` that ends with `/health`; with `require` beside any.
        api_key: For `/stats`.
    """

    http: str | None = None
    tcp: str | None = None
    status: int = 200
    expect: str | None = None
    attempt_timeout: float = 2.0
    ready_timeout: float = 60.0
    stable_for: float = 1.0
    connectors: ConnectorsRule = ConnectorsRule.WARN
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one attempt saw.

    Args:
        ready: The verdict.
        why: Why not, as a sentence; None when ready.
        detail: What else belongs into the evidence.
    """

    ready: bool
    why: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_evidence(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {"ready": self.ready, **({"why": self.why} if self.why else {}), **self.detail}


class _NotReadyError(Exception):
    """An attempt failed; its text is the sentence."""


class Probe:
    """Asks one runtime whether it is ready.

    Args:
        plan: How.
    """

    def __init__(self, plan: ProbePlan) -> None:
        self._plan = plan
        self._session: aiohttp.ClientSession | None = None
        self._stats_url = _stats_url(plan)

    async def close(self) -> None:
        """Let go of the HTTP client."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def check(self) -> ProbeResult:
        """Make one attempt, within `attempt_timeout`."""
        deadline = asyncio.get_running_loop().time() + self._plan.attempt_timeout
        try:
            async with self._until(deadline):
                await self._ask()
        except _NotReadyError as error:
            return ProbeResult(ready=False, why=str(error))
        if self._stats_url is None:
            return ProbeResult(ready=True)
        return await self._check_connectors(self._stats_url, deadline)

    @asynccontextmanager
    async def _until(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            msg = f"no answer in {self._plan.attempt_timeout:g} s"
            raise _NotReadyError(msg) from None

    async def _ask(self) -> None:
        if self._plan.http is not None:
            body = await self._get(self._plan.http, status=self._plan.status, max_bytes=_MAX_PING_BYTES)
            if self._plan.expect is not None and body.strip() != self._plan.expect.strip():
                msg = f"body is {body.strip()[:80]!r}, expected {self._plan.expect[:80]!r}"
                raise _NotReadyError(msg)
        elif self._plan.tcp is not None:
            await _connect(self._plan.tcp)

    async def _check_connectors(self, url: str, deadline: float) -> ProbeResult:
        required = self._plan.connectors is ConnectorsRule.REQUIRE
        try:
            async with self._until(deadline):
                key = {"api-key": self._plan.api_key} if self._plan.api_key else {}
                down = _not_running(await self._get(url, headers=key, max_bytes=_MAX_STATS_BYTES))
        except _NotReadyError as error:
            note = f"cannot read {url}: {error}"
            return ProbeResult(ready=not required, why=note if required else None, detail={"connectors_note": note})
        if not down:
            return ProbeResult(ready=True)
        why = ", ".join(f"{connector['type']} {connector['key']} is {connector['status']}" for connector in down)
        detail = {"connectors_not_running": down}
        return ProbeResult(ready=not required, why=why if required else None, detail=detail)

    async def _get(
        self, url: str, *, status: int = 200, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> str:
        import aiohttp  # noqa: PLC0415 - a node whose probes are TCP needs none

        from agent.runtimes.resolver import Resolver  # noqa: PLC0415 - as above

        if self._session is None:
            # Each attempt has a connection of its own: a kept one could still lead to the incarnation before.
            connector = aiohttp.TCPConnector(force_close=True, resolver=Resolver())
            jar = aiohttp.DummyCookieJar()
            unbounded = aiohttp.ClientTimeout(total=None, sock_connect=None)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, timeout=unbounded)
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status != status:
                    msg = f"answered {response.status}, expected {status}"
                    raise _NotReadyError(msg)
                body = b""
                async for chunk in response.content.iter_chunked(max_bytes):
                    body += chunk
                    if len(body) > max_bytes:
                        msg = f"body has over {max_bytes} bytes"
                        raise _NotReadyError(msg)
                return body.decode(errors="replace")
        except aiohttp.ClientConnectorError as error:
            raise _NotReadyError(_sentence(error.os_error, error.host, error.port)) from error
        except (aiohttp.ClientError, ValueError) as error:
            msg = f"no usable answer: {str(error) or type(error).__name__}"
            raise _NotReadyError(msg) from error


async def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise _NotReadyError(_sentence(error, host, port)) from error
    except RuntimeError as error:  # pthread_create(3): EAGAIN
        raise _NotReadyError(_sentence(OSError(errno.EAGAIN, NO_THREAD), host, port)) from error
    writer.close()
    with suppress(OSError):  # it was open, which is all that was asked
        await writer.wait_closed()


def _sentence(error: OSError, host: str, port: str | int | None) -> str:
    if isinstance(error, ConnectionRefusedError) or error.errno == errno.ECONNREFUSED:
        return f"connection refused at {host}:{port}"
    return f"cannot connect to {host}:{port}: {error.strerror or error}"


def _stats_url(plan: ProbePlan) -> str | None:
    if plan.http is None or plan.connectors is ConnectorsRule.IGNORE:
        return None
    parts = urlsplit(plan.http)
    if plan.connectors is ConnectorsRule.WARN and not parts.path.endswith("/health"):
        return None
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0] + "/stats", "", ""))


def _not_running(body: str) -> list[dict[str, str]]:
    """List the enabled connectors of a `/stats` body that do not run.

    Raises:
        _NotReadyError: It is not what the connectors runtime answers.
    """
    try:
        found = [
            {
                "key": str(connector["key"])[:80],
                "type": str(connector["connector_type"])[:20],
                "status": str(connector["status"])[:20],
            }
            for connector in json.loads(body)["connectors"]
            if connector["enabled"] and connector["status"] != "running"
        ]
    except (ValueError, KeyError, TypeError) as error:
        msg = "it does not list its connectors"
        raise _NotReadyError(msg) from error
    return found[:_MAX_LISTED]
