"""A scripted Supervisor: a real HTTP server that keeps the agent's side of the protocol, and breaks it on request.

It remembers every request with its time, so that a test can count them. A fault is scripted for a path, for its next
requests (`script`) or for all of them (`always`).
"""

import asyncio
import json
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Handler = Callable[[], Awaitable[web.Response]]
Fault = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

BASE = "/agent/v1/"
TOKEN = "node-token-1"


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; `at` is monotonic, in seconds."""

    path: str
    at: float
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def problem(
    status: int, code: str = "broken", *, reason: str = "as scripted", headers: dict[str, str] | None = None
) -> web.Response:
    content = {"type": "about:blank", "title": code, "code": code, "reason": reason, "status": status}
    return web.Response(
        status=status, body=json.dumps(content).encode(), content_type="application/problem+json", headers=headers
    )


def status(code: int, word: str = "broken", *, reason: str = "as scripted", retry_after: str | None = None) -> Fault:
    """Answer an error instead."""

    async def fault(_request: web.Request, _handler: Handler) -> web.StreamResponse:
        return problem(code, word, reason=reason, headers={"Retry-After": retry_after} if retry_after else None)

    return fault


def plain(code: int, body: bytes, content_type: str = "text/html", headers: dict[str, str] | None = None) -> Fault:
    """Answer something that is no JSON of the protocol."""

    async def fault(_request: web.Request, _handler: Handler) -> web.StreamResponse:
        return web.Response(status=code, body=body, content_type=content_type, headers=headers)

    return fault


def hang(seconds: float = 3600.0) -> Fault:
    """Answer nothing for a long time."""

    async def fault(_request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await handler()

    return fault


def cut(*, after: bool = True) -> Fault:
    """Cut the connection in the middle of the body; with `after`, the call had its effect."""

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        content = (await handler()).body if after else b'{"items": [], "last": 0}'
        assert isinstance(content, bytes)
        response = web.StreamResponse()
        response.content_type = "application/json"
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    return fault


def huge(size: int, *, chunked: bool = True) -> Fault:
    """Answer a body that is far too long."""

    async def fault(request: web.Request, _handler: Handler) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "application/json"
        if not chunked:
            response.content_length = size
        await response.prepare(request)
        try:
            for _ in range(size // 65536):
                await response.write(b" " * 65536)
        except ConnectionError:
            return response
        return response

    return fault


def redirect(location: str) -> Fault:
    """Point elsewhere."""
    return plain(307, b"", headers={"Location": location})


def altered(change: Callable[[Any], Any]) -> Fault:
    """Change the JSON of the right answer."""

    async def fault(_request: web.Request, handler: Handler) -> web.StreamResponse:
        body = (await handler()).body
        assert isinstance(body, bytes)
        return web.json_response(change(json.loads(body)))

    return fault


def activity(number: int, *, action: str = "restart", runtime: str = "iggy", **more: Any) -> dict[str, Any]:
    """Make an activity as it is listed; `number` is its sequence, and its id follows from it."""
    return {
        "id": 610809900976570000 + number,
        "sequence": number,
        "runtime": runtime,
        "action": action,
        "config": None,
        "author_id": 608123456789012345,
        "created_at": "2026-03-16T12:00:00Z",
        "expires_at": None,
        **more,
    }


@dataclass
class FakeSupervisor:
    """Serves one node on a loopback port."""

    ssl_context: ssl.SSLContext | None = None
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    processing: dict[int, Any] = field(default_factory=dict)
    """What is listed, by sequence."""
    last: int = 0
    revision: int = 0
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The first report for each activity."""
    deliveries: list[int] = field(default_factory=list)
    """Ids of all reports that arrived in calls that had their effect."""
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    heartbeat_interval: float = 30.0
    poll_wait: float = 30.0
    server_time_offset: timedelta = timedelta()
    max_answer: int = 768 * 1024
    requests: list[Received] = field(default_factory=list)
    instances: list[str] = field(default_factory=list)
    """Agents, in the order in which they were first seen; only the last one is served."""
    host: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._rotations = 1

    # --- for tests

    @property
    def url(self) -> str:
        return f"{'https' if self.ssl_context else 'http'}://{self.host}:{self.port}"

    def script(self, path: str, *faults: Fault) -> None:
        """Let the next requests to a path meet these faults, in this order."""
        self._faults[path].extend(faults)

    def always(self, path: str, fault: Fault | None) -> None:
        """Let all requests to a path meet a fault; None ends that."""
        self._always.pop(path, None)
        if fault is not None:
            self._always[path] = fault

    def count(self, path: str) -> int:
        return len(self.calls(path))

    def calls(self, path: str) -> list[Received]:
        return [request for request in self.requests if request.path == path]

    async def dispatch(self, *items: Any) -> None:
        """List items; those without a usable sequence are listed behind the last one."""
        async with self._changed:
            for item in items:
                sequence = item.get("sequence") if isinstance(item, dict) else None
                place = sequence if isinstance(sequence, int) and 0 < sequence < 2**63 else self.last + 1
                self.processing[place] = item
                self.last = max(self.last, place)
            self._changed.notify_all()

    async def withdraw(self, sequence: int) -> None:
        async with self._changed:
            del self.processing[sequence]

    async def forget(self, activity: dict[str, Any]) -> None:
        """Lose a recorded report: the activity is processing again."""
        async with self._changed:
            self.reports.pop(activity["id"], None)
            self.processing[activity["sequence"]] = activity
            self._changed.notify_all()

    async def start(self) -> None:
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.ssl_context, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Go away; `start` comes back on the same port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # --- the protocol

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix(BASE)
        body = await request.read()
        self.requests.append(Received(path, time.monotonic(), dict(request.query), dict(request.headers), body))

        async def handler() -> web.Response:
            if path == "enroll":
                return self._enroll(json.loads(body))
            refusal = self._admit(request)
            return await self._answer(path, request, body) if refusal is None else refusal

        fault = self._faults[path].popleft() if self._faults[path] else self._always.get(path)
        return await (handler() if fault is None else fault(request, handler))

    async def _answer(self, path: str, request: web.Request, body: bytes) -> web.Response:
        match path:
            case "activities":
                return await self._activities(request)
            case "reports":
                return self._reports(json.loads(body)["reports"])
            case "heartbeats":
                return self._heartbeat(json.loads(body))
            case "token":
                return self._rotate()
            case _:
                return problem(404, "not_found", reason="no such path")

    def _admit(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return problem(401, "invalid_token", reason="the node token is not known")
        instance = request.headers["Agent-Instance"]
        if instance not in self.instances:
            self.instances.append(instance)
        elif instance != self.instances[-1]:
            refusal = problem(409, "identity_in_use", reason="another instance started later")
            refusal.headers["Agent-Instance"] = self.instances[-1]
            return refusal
        self.revision = max(self.revision, int(request.headers["Journal-Revision"]))
        return None

    def _heartbeat(self, heartbeat: dict[str, Any]) -> web.Response:
        self.heartbeats.append(heartbeat)
        answer = {
            "server_time": (datetime.now(UTC) + self.server_time_offset).isoformat(),
            "heartbeat_interval": self.heartbeat_interval,
            "poll_wait": self.poll_wait,
            "news": "ignored",
        }
        return web.json_response(answer)

    def _enroll(self, request: dict[str, Any]) -> web.Response:
        if request["enrollment_token"] != "enrolment-token-1":
            return problem(401, "invalid_enrollment_token", reason="the enrollment token is not known")
        token = f"node-token-of-{request['machine_id']}"
        self.tokens.add(token)
        ids = {"tenant_id": 1, "division_id": 2, "environment_id": 3, "deployment_id": 4, "node_id": 610809900976570889}
        return web.json_response({**ids, "node_token": token}, status=201)

    def _rotate(self) -> web.Response:
        self._rotations += 1
        token = f"node-token-{self._rotations}"
        self.tokens.add(token)
        until = datetime.now(UTC) + timedelta(hours=1)
        return web.json_response({"node_token": token, "previous_valid_until": until.isoformat()})

    async def _activities(self, request: web.Request) -> web.Response:
        after, limit, wait = int(request.query["after"]), int(request.query["limit"]), float(request.query["wait"])
        deadline = time.monotonic() + wait
        async with self._changed:
            while not self._page(after, limit) and (left := deadline - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                except TimeoutError:
                    break
        return web.json_response({"items": self._page(after, limit), "last": self.last, "revision": self.revision})

    def _page(self, after: int, limit: int) -> list[Any]:
        items: list[Any] = []
        size = 0
        for sequence in sorted(sequence for sequence in self.processing if sequence > after):
            size += len(json.dumps(self.processing[sequence]))
            if len(items) == limit or (items and size > self.max_answer):
                break
            items.append(self.processing[sequence])
        return items

    def _reports(self, reports: Iterable[dict[str, Any]]) -> web.Response:
        results = []
        by_id = {item["id"]: item for item in self.processing.values() if isinstance(item, dict) and "id" in item}
        for report in reports:
            activity_id = report["activity_id"]
            self.deliveries.append(activity_id)
            if activity_id in self.reports:
                outcome = "duplicate" if self.reports[activity_id] == report else "conflict"
            elif activity_id not in by_id:
                outcome = "unknown"
            else:
                outcome = "recorded"
                self.reports[activity_id] = report
                self.processing.pop(by_id[activity_id]["sequence"], None)
            results.append({"activity_id": activity_id, "outcome": outcome})
        return web.json_response({"results": results})
