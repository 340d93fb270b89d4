"""What every request is answered with, whatever becomes of it: an id, and a problem if it goes wrong.

Nothing is left to the answers that the HTTP server has of its own: they are plain text, and pass no middleware.
"""

import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus

import structlog
from aiohttp import HttpVersion11, hdrs, web

from supervisor.openapi import PATH
from supervisor.problems import Code, ProblemError
from supervisor.routes import Route

log = structlog.get_logger(__name__)

AnyHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CODES: Mapping[int, Code] = {
    HTTPStatus.NOT_FOUND: Code.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: Code.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Code.BODY_TOO_LARGE,
    HTTPStatus.EXPECTATION_FAILED: Code.EXPECTATION_FAILED,
}
"""The code for a status that the HTTP server answers with; another 4xx is a bad request."""


def add_routes(application: web.Application, routes: Iterable[Route]) -> None:
    """Add the routes, and one of our own for every other method and path."""
    by_path: dict[str, list[Route]] = defaultdict(list)
    for route in routes:
        by_path[route.path].append(route)
    for path, known in by_path.items():
        resource = application.router.add_resource(path)
        for route in known:
            resource.add_route(route.method, route.handler, expect_handler=_expect)
        methods = sorted(route.method for route in known)
        resource.add_route(hdrs.METH_ANY, _method_not_allowed(methods), expect_handler=_expect)
    application.router.add_route(hdrs.METH_ANY, r"/{path:[\s\S]*}", _not_found, expect_handler=_expect)


@web.middleware
async def answer_every_request(request: web.Request, handler: AnyHandler) -> web.StreamResponse:
    """Give each request an id, and make a problem of whatever goes wrong."""
    request_id = secrets.token_hex(16)
    response = await _answer(request, handler, request_id)
    response.headers["ld-request"] = request_id
    return response


async def _answer(request: web.Request, handler: AnyHandler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem.response(request_id)
    except web.HTTPClientError as error:
        code = _CODES.get(error.status, Code.BAD_REQUEST)
        return ProblemError(code, f"cannot answer: {error.reason.lower()}").response(request_id)
    except Exception:
        log.exception("request.failed", request=request_id, method=request.method, path=request.path)
        reason = f"cannot answer: an internal error, logged with the request id {request_id}"
        return ProblemError(Code.INTERNAL_ERROR, reason).response(request_id)


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Ask for the body where the client waits for that; no other expectation is known (RFC 9110, 10.1.1)."""
    expectation = request.headers.get(hdrs.EXPECT, "")
    if request.version < HttpVersion11:  # such a client does not understand an answer to it
        return None
    if expectation.lower() != "100-continue":
        return await answer_every_request(request, _expectation_failed)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None


async def _expectation_failed(request: web.Request) -> web.Response:
    expectation = request.headers[hdrs.EXPECT]
    reason = f"cannot meet the expectation {expectation[:80]!r}: only 100-continue is known"
    raise ProblemError(Code.EXPECTATION_FAILED, reason, field=hdrs.EXPECT)


async def _not_found(request: web.Request) -> web.Response:
    raise ProblemError(Code.NOT_FOUND, f"cannot find {request.path[:200]!r}: there is no such path; {PATH} lists all")


def _method_not_allowed(methods: list[str]) -> Callable[[web.Request], Awaitable[web.Response]]:
    allowed = ", ".join(methods)

    async def answer(request: web.Request) -> web.Response:
        reason = f"cannot {request.method} this path: it knows {allowed}"
        raise ProblemError(Code.METHOD_NOT_ALLOWED, reason, headers={"Allow": allowed})

    return answer
