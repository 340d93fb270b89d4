"""Error answers: `application/problem+json` with the public API's own fields (`code`, `reason`, `field_issues`)."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus

from aiohttp import web

from agent.protocol import FieldIssue, Problem

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_ISSUES = 20
"""Field issues in one answer; a list of thousands helps nobody."""


class Code(StrEnum):
    """What went wrong; stable, for programs."""

    INVALID_JSON = "invalid_json"
    """The body is not JSON."""
    INVALID_BODY = "invalid_body"
    """The body has the wrong shape; `field_issues` says where."""
    INVALID_PARAMETER = "invalid_parameter"
    """A path part, a query parameter or a header has a wrong value."""
    UNKNOWN_RUNTIME = "unknown_runtime"
    """There is no such runtime."""
    UNKNOWN_ACTION = "unknown_action"
    """There is no such action."""
    UNKNOWN_NODE = "unknown_node"
    """A targeted node is not one of this deployment."""
    UNKNOWN_KIND = "unknown_kind"
    """There is no such kind of config."""
    UNKNOWN_CONFIG = "unknown_config"
    """There is no such config of this kind in this deployment."""
    UNKNOWN_DEPLOYMENT = "unknown_deployment"
    """There is no such deployment, or the key does not see it."""
    UNKNOWN_ACTIVITY = "unknown_activity"
    """There is no such activity in this deployment."""
    NO_NODES = "no_nodes"
    """The deployment has no node to target."""
    API_KEY_MISSING = "api_key_missing"
    """The header `ld-api-key` is missing."""
    API_KEY_INVALID = "api_key_invalid"
    """The key is unknown or revoked."""
    API_KEY_EXPIRED = "api_key_expired"
    """The key's time is over."""
    PERMISSION_DENIED = "permission_denied"
    """The key lacks the permission."""
    NODE_TOKEN_INVALID = "node_token_invalid"  # noqa: S105 - a code, not a secret
    """The node token is missing, unknown or replaced."""
    NODE_TOKEN_EXPIRED = "node_token_expired"  # noqa: S105 - a code, not a secret
    """The node token's time is over."""
    ENROLLMENT_TOKEN_INVALID = "enrollment_token_invalid"  # noqa: S105 - a code, not a secret
    """The enrolment token is unknown."""
    ENROLLMENT_TOKEN_EXPIRED = "enrollment_token_expired"  # noqa: S105 - a code, not a secret
    """The enrolment token's time is over."""
    ENROLLMENT_TOKEN_USED = "enrollment_token_used"  # noqa: S105 - a code, not a secret
    """The enrolment token already served another machine."""
    IDENTITY_IN_USE = "identity_in_use"
    """A newer agent instance has this node's identity."""
    DECOMMISSIONED = "decommissioned"
    """The node was removed."""
    IDEMPOTENCY_ERROR = "idempotency_error"
    """The idempotency key was used for another request."""
    IDEMPOTENT_REQUEST_IN_PROGRESS = "idempotent_request_in_progress"
    """The same request is being worked on."""
    NOT_FOUND = "not_found"
    """There is no such path."""
    METHOD_NOT_ALLOWED = "method_not_allowed"
    """The path does not know this method."""
    EXPECTATION_FAILED = "expectation_failed"
    """The header `Expect` asks for something that is not known."""
    REQUEST_TIMEOUT = "request_timeout"
    """The body did not arrive in time."""
    BODY_TOO_LARGE = "body_too_large"
    """The body is over its bound."""
    CONFIG_TOO_LARGE = "config_too_large"
    """The config, as the agent would get it, is over its bound."""
    EVIDENCE_TOO_LARGE = "evidence_too_large"
    """One report's evidence is over its bound."""
    BAD_REQUEST = "bad_request"
    """The request could not be read."""
    INTERNAL_ERROR = "internal_error"
    """A fault of the Supervisor itself."""
    STORE_UNAVAILABLE = "store_unavailable"
    """The store cannot be read or written now; nothing was done."""
    OVERLOADED = "overloaded"
    """Too many writes are waiting; nothing was done."""


STATUS: Mapping[Code, HTTPStatus] = {
    Code.API_KEY_MISSING: HTTPStatus.UNAUTHORIZED,
    Code.API_KEY_INVALID: HTTPStatus.UNAUTHORIZED,
    Code.API_KEY_EXPIRED: HTTPStatus.UNAUTHORIZED,
    Code.NODE_TOKEN_INVALID: HTTPStatus.UNAUTHORIZED,
    Code.NODE_TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED,
    Code.ENROLLMENT_TOKEN_INVALID: HTTPStatus.UNAUTHORIZED,
    Code.ENROLLMENT_TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.UNKNOWN_KIND: HTTPStatus.NOT_FOUND,
    Code.UNKNOWN_CONFIG: HTTPStatus.NOT_FOUND,
    Code.UNKNOWN_DEPLOYMENT: HTTPStatus.NOT_FOUND,
    Code.UNKNOWN_ACTIVITY: HTTPStatus.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.EXPECTATION_FAILED: HTTPStatus.EXPECTATION_FAILED,
    Code.REQUEST_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.NO_NODES: HTTPStatus.CONFLICT,
    Code.ENROLLMENT_TOKEN_USED: HTTPStatus.CONFLICT,
    Code.IDENTITY_IN_USE: HTTPStatus.CONFLICT,
    Code.IDEMPOTENCY_ERROR: HTTPStatus.CONFLICT,
    Code.IDEMPOTENT_REQUEST_IN_PROGRESS: HTTPStatus.CONFLICT,
    Code.DECOMMISSIONED: HTTPStatus.GONE,
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.CONFIG_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.EVIDENCE_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.INTERNAL_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.STORE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The HTTP status of each code; one that is not listed is a 400."""


def status_of(code: Code) -> HTTPStatus:
    """Return the HTTP status that a code is answered with."""
    return STATUS.get(code, HTTPStatus.BAD_REQUEST)


class ProblemError(Exception):
    """A request that is refused; becomes the error answer.

    Args:
        code: The stable word; decides the status.
        reason: "cannot X: cause", for people.
        field: The one field that is to blame.
        issues: Each field that broke a rule.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        *,
        field: str | None = None,
        issues: Sequence[FieldIssue] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.field = field or (issues[0].path if issues else None)
        self.issues = list(issues[:MAX_ISSUES])
        self.headers = dict(headers or {})

    def response(self, request_id: str) -> web.Response:
        """Make the error answer of the request with this id."""
        status = status_of(self.code)
        problem = Problem(
            title=self.code.replace("_", " ").capitalize(),
            code=self.code,
            reason=self.reason,
            instance=request_id,
            field=self.field,
            field_issues=self.issues,
            status=status,
            retryable=status in RETRYABLE,
        )
        if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.REQUEST_TIMEOUT}:
            self.headers.setdefault("Retry-After", "1")
        return web.Response(
            status=status,
            body=problem.model_dump_json(exclude_none=True).encode(),
            content_type="application/problem+json",
            headers=self.headers,
        )
