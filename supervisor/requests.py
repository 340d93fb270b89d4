"""What arrives: bodies, path parts, query parameters. What is wrong becomes a problem before anything is done."""

import asyncio
import json
import math
import re
import zlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ValidationError

from agent.protocol import MAX_BODY_BYTES, MAX_ID, FieldIssue
from supervisor.problems import MAX_ISSUES, Code, ProblemError
from supervisor.routes import encode

BODY_SECONDS = 30
"""How long a body may take to arrive."""
DEFAULT_RESULTS = 10
MAX_RESULTS = 100
MAX_PAGE = 10**9

M = TypeVar("M", bound=BaseModel)
WORDS = {"extra_forbidden": "unknown_field", "missing": "missing_field"}
"""The code of a field issue by pydantic's type of it; all others are `invalid_value`."""


async def read_body(request: web.Request, *, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read a body whole.

    Raises:
        ProblemError: It is longer than `limit` bytes (413), too slow (408), or broken or cut off (400).
    """
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError as error:
        raise ProblemError(
            Code.REQUEST_TIMEOUT, f"cannot read the body: it did not arrive within {BODY_SECONDS} s"
        ) from error
    except (web.RequestPayloadError, HttpProcessingError, zlib.error) as error:
        raise ProblemError(Code.BAD_REQUEST, "cannot read the body: its encoding is broken") from error
    except ConnectionError as error:  # nobody reads this answer
        raise ProblemError(Code.BAD_REQUEST, "cannot read the body: the client is gone") from error
    return bytes(body)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(Code.BODY_TOO_LARGE, f"cannot read the body: it is longer than {limit} bytes")


def parse_json(body: bytes) -> Any:
    """Parse JSON as the standard has it: UTF-8, no NaN, no name twice in an object, no half characters.

    Raises:
        ProblemError: It is something else (400).
    """
    try:
        text = body.decode()
        parsed = json.loads(text, parse_constant=_refuse_constant, parse_float=_number, object_pairs_hook=_unique)
        # A lone surrogate parses, but nothing can store or send it.
        if "\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        cause = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProblemError(Code.INVALID_JSON, f"cannot read the body as JSON: {cause[:200]}") from error
    return parsed


def _refuse_constant(word: str) -> NoReturn:
    msg = f"{word} is not JSON"
    raise ValueError(msg)


def _number(text: str) -> float:
    """Read a number with a point or an exponent; to JSON Schema, 5.0 is as whole as 5."""
    if math.isinf(number := float(text)):
        msg = f"{text[:40]} is out of range"
        raise ValueError(msg)
    # Not by way of the float: a large id is not what it was then.
    return int(exact) if abs(number) <= MAX_ID and (exact := Decimal(text)) == int(exact) else number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        msg = "a name is there twice in one object"
        raise ValueError(msg)
    return result


def parse_body(model: type[M], body: bytes, *, optional: bool = False) -> M:
    """Parse a body into a model; with `optional`, no body at all is `{}`.

    Raises:
        ProblemError: It is not JSON, or has another shape (400); its field issues say where.
    """
    if optional and not body.strip():
        body = b"{}"
    content = parse_json(body)
    try:
        return _strictly(model, body, content)
    except ValidationError as error:
        issues = [
            FieldIssue(code=WORDS.get(issue["type"], "invalid_value"), reason=issue["msg"], path=_path(issue["loc"]))
            for issue in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_ISSUES]
        ]
        where = f"{issues[0].path}: " if issues[0].path else ""
        raise ProblemError(
            Code.INVALID_BODY, f"cannot accept the body: {where}{issues[0].reason}", issues=issues
        ) from error


def _strictly(model: type[M], body: bytes, content: Any) -> M:
    """Take each value for what it is: a number that is said as a text is none."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError:
        # Perhaps only for a whole number such as 5.0, which is said in another way in what was parsed.
        return model.model_validate_json(encode(content), strict=True)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:200]


def path_id(request: web.Request, name: str) -> int:
    """Return an id from the path.

    Raises:
        ProblemError: It is not a number from 1 to 2^63 - 1 (400).
    """
    return integer(name, request.match_info[name], 1, MAX_ID)


def integer(name: str, text: str, low: int, high: int) -> int:
    """Parse a whole number from a path, a query or a header.

    Raises:
        ProblemError: It is not one, or out of its bounds (400).
    """
    if re.fullmatch(r"[0-9]{1,19}", text) and low <= (number := int(text)) <= high:
        return number
    issue = FieldIssue(code="invalid_value", reason=f"expected a whole number from {low} to {high}", path=name)
    raise ProblemError(Code.INVALID_PARAMETER, f"cannot accept {name}={text[:40]!r}: {issue.reason}", issues=[issue])


def query_integer(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """Return a whole number from the query, or its default.

    Raises:
        ProblemError: It is not one, or out of its bounds (400).
    """
    text = request.query.get(name)
    return default if text is None else integer(name, text, low, high)


def query_seconds(request: web.Request, name: str, longest: int) -> float:
    """Return a number of seconds from the query, 0 when it is not there.

    Raises:
        ProblemError: It is not one, or longer than allowed (400).
    """
    text = request.query.get(name, "0")
    if re.fullmatch(r"[0-9.eE+-]{1,40}", text) and 0 <= (seconds := _float(text)) <= longest:
        return seconds
    issue = FieldIssue(code="invalid_value", reason=f"expected seconds from 0 to {longest}", path=name)
    raise ProblemError(Code.INVALID_PARAMETER, f"cannot accept {name}={text[:40]!r}: {issue.reason}", issues=[issue])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is wanted."""

    page: int
    results: int

    @classmethod
    def of(cls, request: web.Request) -> "Paging":
        """Read `page` (from 1) and `results` (1 to 100) from the query.

        Raises:
            ProblemError: One of them is wrong (400).
        """
        page = query_integer(request, "page", 1, 1, MAX_PAGE)
        return cls(page, query_integer(request, "results", DEFAULT_RESULTS, 1, MAX_RESULTS))

    @property
    def offset(self) -> int:
        """How many results come before this page."""
        return (self.page - 1) * self.results

    def answer(self, items: list[dict[str, Any]], total: int) -> dict[str, Any]:
        """Make the answer of a list."""
        return {
            "items": items,
            "page": self.page,
            "total_results": total,
            "total_pages": -(-total // self.results),
        }
