"""The agent's side of the local API: GET only, JSON, on a unix socket whose permissions say who may ask.

It serves what the daemon hands it and knows nothing else: `/v1/status`, `/v1/activities?limit=N` and
`/v1/activities/{id}`.
"""

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from agent.errors import AgentError, SocketError
from agent.local.visits import Visits
from agent.protocol import MAX_ID, format_time

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1
"""Of every answer; grows when a field changes its meaning or goes away."""

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
FOLDER_MODE = 0o750
SOCKET_MODE = 0o660
BACKLOG = 16
SHUTDOWN_TIMEOUT = 1.0
"""Seconds that an answer under way gets when the agent stops."""

Status = Callable[[], Awaitable[dict[str, Any]]]
Activities = Callable[[int], Awaitable[list[dict[str, Any]]]]
Activity = Callable[[int], Awaitable[dict[str, Any] | None]]


class LocalServer:
    """Serves the local API.

    Args:
        path: The socket; its folder is made if it is missing.
        status: Makes the answer of `/v1/status`.
        activities: Lists the newest activities, at most so many.
        activity: Shows one activity with its calls and evidence; None when there is none with that id.
    """

    def __init__(self, path: Path, *, status: Status, activities: Activities, activity: Activity) -> None:
        self._path = path
        self._status = status
        self._activities = activities
        self._activity = activity
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local")

    async def open(self) -> None:
        """Open the socket and serve.

        Raises:
            SocketError: Another agent answers on it, or it cannot be made.
        """
        listener, self._inode = await asyncio.get_running_loop().run_in_executor(self._executor, _listen, self._path)
        app = web.Application(middlewares=[_errors_as_json])
        app.router.add_get("/v1/status", self._get_status, allow_head=False)
        app.router.add_get("/v1/activities", self._get_activities, allow_head=False)
        app.router.add_get("/v1/activities/{id}", self._get_activity, allow_head=False)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await self._runner.setup()
        visits = Visits(self._http_protocol)
        self._listening = await asyncio.get_running_loop().create_server(
            visits.protocol, sock=listener, backlog=BACKLOG
        )
        log.info("local.opened", socket=str(self._path))

    def _http_protocol(self) -> asyncio.BaseProtocol:
        server = None if self._runner is None else self._runner.server
        if server is None:
            msg = "the server is closed"
            raise RuntimeError(msg)
        return server()

    async def close(self) -> None:
        """Stop serving and remove the socket, if it is still this one's."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._inode is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, _remove, self._path, self._inode)
            self._inode = None
        self._executor.shutdown(wait=False)

    async def _get_status(self, _request: web.Request) -> web.Response:
        return _answer(await self._status())

    async def _get_activities(self, request: web.Request) -> web.Response:
        text = request.query.get("limit", str(DEFAULT_LIMIT))
        limit = _number(text, MAX_LIMIT)
        if limit is None:
            return _error(400, "invalid_limit", f"cannot list: limit has to be 1 to {MAX_LIMIT}")
        return _answer({"items": await self._activities(limit)})

    async def _get_activity(self, request: web.Request) -> web.Response:
        activity_id = _number(request.match_info["id"], MAX_ID)
        if activity_id is None:
            return _error(400, "invalid_id", f"cannot show the activity: its id has to be 1 to {MAX_ID}")
        activity = await self._activity(activity_id)
        if activity is None:
            return _error(
                404,
                "unknown_activity",
                f"cannot show activity {activity_id}: it is not in this node's journal",
                "it may be another node's, or older than what is kept; `iggy-agent activities` lists what is there",
            )
        return _answer(activity)


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        answer = _error(405, "method_not_allowed", f"cannot {error.method} here: this API only answers GET")
        answer.headers["Allow"] = "GET"
        return answer
    except web.HTTPNotFound:
        return _error(404, "unknown_path", f"cannot answer: there is no {request.path[:200]}")
    except AgentError as error:
        log.warning("local.unavailable", path=request.path, cause=error.message)
        return _error(503, "unavailable", error.message, error.hint)
    except Exception as error:
        log.exception("local.failed", path=request.path, error=str(error))
        return _error(500, "internal", f"cannot answer: {type(error).__name__}", "the agent's log says more")


def _answer(body: Mapping[str, Any]) -> web.Response:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **body}, default=_plain)
    return web.Response(text=text, content_type="application/json")


def _error(status: int, code: str, message: str, hint: str | None = None) -> web.Response:
    body = {"schema_version": SCHEMA_VERSION, "error": {"code": code, "message": message, "hint": hint}}
    return web.json_response(body, status=status)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return format_time(value)
    msg = f"cannot write {type(value).__name__} as JSON"
    raise TypeError(msg)


def _number(text: str, largest: int) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else 0
    return number if 1 <= number <= largest else None


def _listen(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """Make the socket beside its place, ready and with its mode, then move it there: nobody sees it half made."""
    temporary = path.with_name(f".{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        _refuse_to_steal(path)
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        status = temporary.stat()
        temporary.replace(path)
    except OSError as error:
        listener.close()
        msg = f"cannot open the socket {path}: {(error.strerror or str(error)).lower()}"
        raise SocketError(
            msg, hint="agent.socket in the settings says where it is; its folder must be writable"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener, (status.st_dev, status.st_ino)


def _refuse_to_steal(path: Path) -> None:
    """Let a socket be replaced only if nobody listens on it any more."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        msg = f"cannot open the socket {path}: something else is there"
        raise SocketError(msg, hint="remove it, or set agent.socket to another place")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except (TimeoutError, BlockingIOError):  # its backlog is full: somebody is there, and busy
            pass
    msg = f"cannot open the socket {path}: another agent answers on it"
    raise SocketError(msg, hint="stop the other agent, or give this one a state_dir and a socket of its own")


def _remove(path: Path, inode: tuple[int, int]) -> None:
    try:
        status = path.lstat()
        if (status.st_dev, status.st_ino) == inode:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("local.socket_left", socket=str(path), error=str(error))
