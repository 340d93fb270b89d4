"""A proxy between an agent and its Supervisor that does what networks and other proxies do to requests and answers."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

MAX_BODY = 4 * 1024 * 1024
KEPT_HEADERS = ("Date", "Retry-After", "Agent-Instance")
LONGEST = 120.0
"""Seconds that a call may be held by the Supervisor."""


@dataclass(slots=True)
class Exchange:
    """One request on its way, and what brings the Supervisor's answer to it.

    Attributes:
        path: Below `/agent/v1/`.
        upstream: Where the Supervisor is.
        hit: Whether the fault came; one that finds nothing to spoil says that it did not.
    """

    request: web.Request
    path: str
    body: bytes
    upstream: str
    forward: Callable[[], Awaitable[web.Response]]
    hit: bool = True

    @property
    def left(self) -> bool:
        """Whether the agent has given the call up."""
        return self.request.transport is None or self.request.transport.is_closing()

    def abort(self) -> web.StreamResponse:
        """Close the agent's connection without another byte."""
        if self.request.transport is not None:
            self.request.transport.abort()
        return web.Response(status=502)


Fault = Callable[[Exchange], Awaitable[web.StreamResponse]]


async def none(exchange: Exchange) -> web.StreamResponse:
    """Pass everything on."""
    return await exchange.forward()


async def drop(exchange: Exchange) -> web.StreamResponse:
    """Close the connection without an answer, and without having asked for one."""
    return exchange.abort()


async def swallow(exchange: Exchange) -> web.StreamResponse:
    """Pass the request on, and lose the answer."""
    await exchange.forward()
    return exchange.abort()


async def hang(exchange: Exchange) -> web.StreamResponse:
    """Take the request and never answer, until `FaultProxy.set` ends this fault."""
    await asyncio.sleep(LONGEST)
    return exchange.abort()


async def cut(exchange: Exchange) -> web.StreamResponse:
    """Close the connection in the middle of the answer's body."""
    await answer_by_half(exchange)
    return exchange.abort()


async def answer_by_half(exchange: Exchange) -> None:
    """Give the agent the first half of the Supervisor's answer."""
    answer = await exchange.forward()
    body = answer.body if isinstance(answer.body, bytes) else b""
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    try:
        await response.prepare(exchange.request)
        await response.write(body[: len(body) // 2])
    except ConnectionError:  # the agent has left, and was killed perhaps
        exchange.hit = False


def answer_with(status: int, **headers: str) -> Fault:
    """Answer everything with an error, without having asked the Supervisor."""

    async def fault(_exchange: Exchange) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"code": "fault", "reason": "cannot answer: a fault"}, status=status, headers=named)

    return fault


def change_items(change: Callable[[list[Any]], list[Any]]) -> Fault:
    """Change what the list of activities holds."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        if exchange.path != "activities" or answer.status != 200 or not isinstance(answer.body, bytes):
            return answer
        content = json.loads(answer.body)
        content["items"] = change(content["items"])
        return web.json_response(content)

    return fault


def refuse_reports(refused: Callable[[Mapping[str, Any]], bool]) -> Fault:
    """Answer 413 to every batch with a report that is refused."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        if exchange.path == "reports" and any(refused(report) for report in json.loads(exchange.body)["reports"]):
            return web.json_response({"code": "evidence_too_large"}, status=413)
        return await exchange.forward()

    return fault


@dataclass(slots=True)
class FaultProxy:
    """The proxy; `url` is where agents are to call.

    Attributes:
        calls: When each request came (monotonic seconds), and its path.
    """

    upstream: str
    port: int
    calls: list[tuple[float, str]] = field(default_factory=list)
    _fault: Fault = none
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _session: aiohttp.ClientSession | None = None
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, fault: Fault) -> None:
        """Do this to each request from now on; what hangs is let go."""
        self._fault = fault
        self._ended.set()
        self._ended = asyncio.Event()

    def calls_since(self, moment: float) -> int:
        """Count the requests since a moment."""
        return sum(at >= moment for at, _ in self.calls)

    def polled_since(self, moment: float) -> list[float]:
        """Return when activities were asked for since a moment."""
        return [at for at, path in self.calls if path == "activities" and at >= moment]

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=LONGEST)
        )
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.set(drop)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/agent/v1/")
        self.calls.append((time.monotonic(), path))
        body = await request.read()
        exchange = Exchange(request, path, body, self.upstream, lambda: self._forward(request, body))
        answer = asyncio.ensure_future(self._fault(exchange))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({answer, ended}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else exchange.abort()
        finally:
            for task in (answer, ended):
                task.cancel()
            await asyncio.wait({answer, ended})

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        """Ask the Supervisor."""
        if self._session is None:
            msg = "the proxy is not open"
            raise RuntimeError(msg)
        headers = {name: value for name, value in request.headers.items() if name not in {"Host", "Connection"}}
        try:
            async with self._session.request(
                request.method, f"{self.upstream}{request.path_qs}", headers=headers, data=body
            ) as answer:
                content, kept = await answer.read(), {"Content-Type": "application/json"}
                kept |= {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers}
                return web.Response(status=answer.status, body=content, headers=kept)
        except aiohttp.ClientError as error:
            return web.json_response({"code": "bad_gateway", "reason": str(error)}, status=502)
