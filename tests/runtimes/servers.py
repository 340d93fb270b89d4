"""Small servers that a probe is pointed at."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(**routes: Handler | str) -> AsyncIterator[str]:
    """Serve a handler, or a fixed text, at each path; yields the server's URL."""
    app = web.Application()
    for name, route in routes.items():
        app.router.add_get(f"/{name}", route if callable(route) else answering(route))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def answering(text: str, status: int = 200, **headers: str) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(text=text, status=status, headers=headers)

    return handler


def json_answering(data: Any, *, api_key: str | None = None) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        if api_key is not None and request.headers.get("api-key") != api_key:
            return web.Response(status=401)
        return web.json_response(data)

    return handler


async def hanging(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def free_port() -> int:
    """Find a port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
