"""A filter before the Docker Engine: it passes on what the table of docs/docker.md lists, and remembers the rest."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from tests.sidecar.images import ROOT

TABLE = ROOT / "docs" / "docker.md"
HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive", "upgrade"}


def documented(*, recreation: bool) -> list[tuple[str, str]]:
    """Read methods and paths off the table; those that only making a container anew needs are marked there."""
    rows = re.findall(r"^\| `(GET|POST|DELETE) (/\S*)` \|.*\| (always|recreation) \|$", TABLE.read_text(), re.MULTILINE)
    return [(method, path) for method, path, when in rows if recreation or when == "always"]


class SocketProxy:
    """Listens on a unix socket as the Engine does, with a part of what that can.

    Args:
        engine: Path of the Engine's socket.
        socket: Where to listen.
        allowed: Methods and paths, as in the table.
    """

    def __init__(self, engine: str, socket: Path, allowed: Sequence[tuple[str, str]]) -> None:
        self._engine = engine
        self._socket = socket
        self._allowed = [(method, re.compile(_pattern(path))) for method, path in allowed]
        self.refused: list[str] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._engine, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, self._socket).start()
        self._socket.chmod(0o660)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = re.sub(r"^/v1\.\d+", "", request.path)
        if not any(request.method == method and pattern.fullmatch(path) for method, pattern in self._allowed):
            self.refused.append(f"{request.method} {path}")
            return web.json_response({"message": "refused by the socket proxy"}, status=403)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = f"http://engine{request.raw_path}"
        async with self._session.request(request.method, url, headers=headers, data=await request.read()) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            await response.write_eof()
            return response


def _pattern(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: "[^/]+" if found[1] != "name" else ".+", path.replace(".", r"\."))
