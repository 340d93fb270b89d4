"""What a route is: one row that both the server and its OpenAPI document are made from."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from supervisor.auth import Permission
from supervisor.problems import Code

Handler = Callable[[web.Request], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path, a query or a header."""

    name: str
    place: str
    description: str
    schema: dict[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """What may be called next with what an answer holds; values are runtime expressions of OpenAPI."""

    operation: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Route:
    """One call."""

    method: str
    path: str
    handler: Handler
    name: str
    summary: str
    tag: str
    answer: type[BaseModel] | None
    codes: tuple[Code, ...]
    """What can go wrong, beside what can always go wrong."""
    status: int = 200
    permission: Permission | None = None
    body: type[BaseModel] | None = None
    body_required: bool = True
    parameters: tuple[Parameter, ...] = ()
    answer_headers: tuple[str, ...] = ()
    links: Mapping[str, Link] = field(default_factory=dict)
    """By a name of their own."""


def json_answer(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Answer JSON, in UTF-8 as it is."""
    return web.Response(status=status, body=encode(content), content_type="application/json", headers=headers)


def encode(content: Any) -> bytes:
    """Write JSON without spaces, in UTF-8 as it is."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def whole_number(low: int, high: int, default: int | None = None) -> dict[str, Any]:
    """Make the schema of a whole number."""
    return {"type": "integer", "minimum": low, "maximum": high} | ({} if default is None else {"default": default})
