"""A Docker Engine's API on a unix socket that does what a real one does not do on demand: hang, fail, lie."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

CONTAINER = "c0ffee" * 10 + "cafe"
KEPT = "b" * 64


class FakeEngine:
    """One container, which a test changes at will.

    Args:
        path: Of the socket.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.address = f"unix://{path}"
        self.name = name
        self.api_version = "1.41"
        self.running = False
        self.starts = 0
        self.labels: dict[str, str] = {}
        self.hangs: set[str] = set()
        """Endpoints that never answer."""
        self.fails: dict[str, tuple[int, str]] = {}
        """Endpoint to status and text."""
        self.kept = ""
        """The name of another container that is there, stopped, if any; it cannot be removed."""
        self.calls: list[str] = []
        self.streams = 0
        self._path = path
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue(100)
        self._runner: web.AppRunner | None = None
        self._ended = asyncio.Event()

    async def open(self) -> None:
        app = web.Application(middlewares=[self._faults])
        version = r"/v{version:[\d.]+}"
        app.router.add_get("/version", self._version)
        app.router.add_get(version + "/_ping", self._ping)
        app.router.add_get(version + "/events", self._stream)
        app.router.add_get(version + "/containers/{id}/json", self._inspect)
        app.router.add_post(version + "/containers/{id}/start", self._start)
        app.router.add_post(version + "/containers/{id}/stop", self._stop)
        app.router.add_get(version + "/containers/{id}/stats", self._stats)
        self._ended.clear()
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def close(self) -> None:
        self._ended.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def say(self, event: Any) -> None:
        """Send an event, of any shape; None ends the stream."""
        line = event if isinstance(event, bytes) or event is None else json.dumps(event).encode()
        self._events.put_nowait(line)

    @web.middleware
    async def _faults(self, request: web.Request, handler: Any) -> web.StreamResponse:
        endpoint = request.path.rpartition("/")[2]
        self.calls.append(endpoint)
        if endpoint in self.hangs:
            await self._ended.wait()
        if endpoint in self.fails:
            status, text = self.fails[endpoint]
            return web.json_response({"message": text}, status=status)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": self.api_version})

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _inspect(self, request: web.Request) -> web.Response:
        if self.kept and request.match_info["id"] == self.kept:
            state = {"Status": "exited", "Running": False, "StartedAt": "2026-01-01T00:00:00Z", "ExitCode": 0}
            found = {"Id": KEPT, "Name": f"/{self.kept}", "State": state, "Config": {"Labels": {}}, "HostConfig": {}}
            return web.json_response(found)
        if request.match_info["id"] not in {self.name, CONTAINER, CONTAINER[:12]}:
            return web.json_response({"message": "No such container"}, status=404)
        started = f"2026-01-01T00:00:{self.starts:02d}.5Z" if self.starts else "0001-01-01T00:00:00Z"
        status = "running" if self.running else "exited" if self.starts else "created"
        state = {"Status": status, "Running": self.running, "StartedAt": started, "ExitCode": 0, "Pid": 7}
        config = {"Labels": self.labels, "Env": [], "Image": "i"}
        found = {"Id": CONTAINER, "Name": f"/{self.name}", "State": state, "Config": config, "HostConfig": {}}
        return web.json_response(found)

    async def _start(self, _request: web.Request) -> web.Response:
        self.running = True
        self.starts += 1
        return web.Response(status=204)

    async def _stop(self, _request: web.Request) -> web.Response:
        self.running = False
        return web.Response(status=204)

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.streams += 1
        response = web.StreamResponse()
        await response.prepare(request)
        while (line := await self._next_event()) is not None:
            await response.write(line + b"\n")
        return response

    async def _next_event(self) -> bytes | None:
        said = asyncio.ensure_future(self._events.get())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({said, ended}, return_when=asyncio.FIRST_COMPLETED)
            return said.result() if said.done() else None
        finally:
            said.cancel()
            ended.cancel()


@asynccontextmanager
async def fake_engine(path: Path, name: str) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(path, name)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()
