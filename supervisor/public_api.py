"""The public API: `/deployments/{deployment_id}/…`, for users, with an API key in the header `ld-api-key`."""

from collections.abc import Callable
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

import structlog
from aiohttp import web

from agent.protocol import Action, FieldIssue, RuntimeName
from agent.redaction import Redactor
from supervisor import activities, configs, idempotency, nodes
from supervisor.activities import Dispatched, Order
from supervisor.auth import Caller, Permission, SecretKind, authorize, derived_secret
from supervisor.clock import SECOND, whole_time
from supervisor.fleet import Fleet
from supervisor.idempotency import Made
from supervisor.problems import Code, ProblemError
from supervisor.requests import Paging, parse_body, path_id, read_body
from supervisor.routes import encode, json_answer
from supervisor.schema import ConfigBody, DispatchBody, EmptyBody, EnrollmentTokenBody
from supervisor.store import Store

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Post:
    """A POST on its way: who asks, for what."""

    caller: Caller
    body: bytes
    now: int
    key: str | None
    fingerprint: str


class PublicApi:
    """The calls of users.

    Args:
        activity_ttl: Seconds until an activity that was not begun expires.
    """

    def __init__(self, store: Store, fleet: Fleet, activity_ttl: float, clock: Callable[[], int]) -> None:
        self._store = store
        self._fleet = fleet
        self._ttl = round(activity_ttl * SECOND)
        self._clock = clock
        self._in_flight: dict[tuple[int, str], str] = {}

    async def dispatch(self, request: web.Request) -> web.Response:
        """Answer `POST activities/{runtime}/{action}`: one activity per targeted node, all of them or none."""
        post = await self._post(request, Permission.MANAGE)
        runtime, action = _runtime(request), _action(request)
        body = parse_body(DispatchBody, post.body, optional=True)
        deployment = post.caller.deployment
        order = Order(deployment, post.caller.author_id, runtime, action, body.nodes, self._ttl)
        made: list[Dispatched] = []

        def work(connection: Connection) -> Made:
            made[:] = activities.dispatch(connection, order, post.now)
            items = [activities.dispatched_item(deployment, activity) for activity in made]
            return Made(202, encode({"items": items}))

        response = await self._once(post, work, lambda: self._fleet.dispatched(made))
        log.info(
            "activity.dispatched",
            deployment_id=deployment.id,
            runtime=runtime.value,
            action=str(action),
            activities=len(made),
            author_id=post.caller.author_id,
        )
        return response

    async def list_activities(self, request: web.Request) -> web.Response:
        """Answer `GET activities`: newest first."""
        caller = await self._authorize(request, Permission.READ)
        paging = Paging.of(request)

        def work(connection: Connection) -> dict[str, Any]:
            items, total = activities.list_activities(connection, caller.deployment, paging)
            return paging.answer(_mask_reasons(items, configs.redactor_of(connection, caller.deployment)), total)

        return json_answer(await self._store.read(work))

    async def get_activity(self, request: web.Request) -> web.Response:
        """Answer `GET activities/{activity_id}`: with what the node reported."""
        caller = await self._authorize(request, Permission.READ)
        activity_id = path_id(request, "activity_id")

        def work(connection: Connection) -> dict[str, Any]:
            item = activities.get_activity(connection, caller.deployment, activity_id)
            redactor = configs.redactor_of(connection, caller.deployment)
            item["evidence"] = redactor.data(item["evidence"])
            return _mask_reasons([item], redactor)[0]

        return json_answer(await self._store.read(work))

    async def list_nodes(self, request: web.Request) -> web.Response:
        """Answer `GET nodes`: each with its latest heartbeat."""
        caller = await self._authorize(request, Permission.READ)
        paging = Paging.of(request)

        def work(connection: Connection) -> tuple[list[dict[str, Any]], int, Redactor]:
            items, total = nodes.list_nodes(connection, caller.deployment, paging)
            return items, total, configs.redactor_of(connection, caller.deployment)

        items, total, redactor = await self._store.read(work)
        now = self._clock()
        return json_answer(paging.answer([self._with_heartbeat(item, redactor, now) for item in items], total))

    def _with_heartbeat(self, item: dict[str, Any], redactor: Redactor, now: int) -> dict[str, Any]:
        heartbeat, received_at = item["heartbeat"], item["heartbeat_at"]
        if (beat := self._fleet.latest_beat(item["id"])) is not None:
            heartbeat, received_at = beat.parsed(), beat.received_at
        for runtime in (heartbeat or {}).get("runtimes", []):
            runtime["message"] = redactor.data(runtime["message"])
            runtime["warnings"] = redactor.data(runtime["warnings"])
        return item | {
            "heartbeat_at": whole_time(received_at),
            "heartbeat_age": None if received_at is None else round(max(now - received_at, 0) / SECOND, 3),
            "heartbeat": heartbeat,
        }

    async def create_enrollment_token(self, request: web.Request) -> web.Response:
        """Answer `POST enrollment-tokens`: the token is shown this once."""
        post = await self._post(request, Permission.MANAGE)
        ttl = parse_body(EnrollmentTokenBody, post.body, optional=True).ttl * SECOND
        deployment_id = post.caller.deployment.id

        def work(connection: Connection) -> Made:
            # Derived from the caller's own key, so that a replay can show it again though it is stored nowhere.
            nonce = idempotency.new_nonce()
            token = derived_secret(SecretKind.ENROLLMENT_TOKEN, post.caller.api_key, nonce)
            token_id = nodes.create_enrollment_token(connection, deployment_id, token, ttl, post.now)
            item = {
                "id": token_id,
                "deployment_id": deployment_id,
                "created_at": whole_time(post.now),
                "expires_at": whole_time(post.now + ttl),
            }
            return Made(201, encode(item), secret_nonce=nonce)

        return await self._once(post, work)

    async def create_config(self, request: web.Request) -> web.Response:
        """Answer `POST configs/{kind}`: a new version of a named config."""
        post = await self._post(request, Permission.CONFIG_MANAGE)
        kind = _kind(request)
        body = parse_body(ConfigBody, post.body)

        def work(connection: Connection) -> Made:
            item = configs.create_config(connection, post.caller, kind, body, post.now)
            return Made(201, encode(item), {"ld-config": str(item["id"])})

        return await self._once(post, work)

    async def list_configs(self, request: web.Request) -> web.Response:
        """Answer `GET configs/{kind}`: the newest version of each name, and the active one."""
        caller = await self._authorize(request, Permission.CONFIG_READ)
        kind, paging = _kind(request), Paging.of(request)
        return json_answer(
            await self._store.read(
                lambda connection: paging.answer(*configs.list_configs(connection, caller.deployment, kind, paging))
            )
        )

    async def list_versions(self, request: web.Request) -> web.Response:
        """Answer `GET configs/{kind}/{name}/versions`: newest first."""
        caller = await self._authorize(request, Permission.CONFIG_READ)
        kind, paging, name = _kind(request), Paging.of(request), request.match_info["name"]
        return json_answer(
            await self._store.read(
                lambda connection: paging.answer(
                    *configs.list_versions(connection, caller.deployment, kind, name, paging)
                )
            )
        )

    async def activate_config(self, request: web.Request) -> web.Response:
        """Answer `POST configs/{kind}/{config_id}/activate`."""
        post = await self._post(request, Permission.CONFIG_MANAGE)
        kind, config_id = _kind(request), path_id(request, "config_id")
        parse_body(EmptyBody, post.body, optional=True)
        return await self._once(
            post,
            lambda connection: Made(
                200,
                encode(configs.activate_config(connection, post.caller.deployment, kind, config_id)),
                {"ld-config": str(config_id)},
            ),
        )

    async def _authorize(self, request: web.Request, permission: Permission) -> Caller:
        api_key, now = request.headers.get("ld-api-key"), self._clock()
        deployment_id = path_id(request, "deployment_id")
        return await self._store.read(lambda connection: authorize(connection, api_key, deployment_id, permission, now))

    async def _post(self, request: web.Request, permission: Permission) -> _Post:
        caller = await self._authorize(request, permission)
        body = await read_body(request)
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= idempotency.MAX_KEY_CHARACTERS:
            reason = f"expected 1 to {idempotency.MAX_KEY_CHARACTERS} characters"
            raise ProblemError(
                Code.INVALID_PARAMETER, f"cannot accept idempotency-key: {reason}", field="idempotency-key"
            )
        fingerprint = idempotency.fingerprint(request.method, request.path, body)
        return _Post(caller, body, self._clock(), key, fingerprint)

    async def _once(
        self, post: _Post, work: Callable[[Connection], Made], then: Callable[[], None] | None = None
    ) -> web.Response:
        """Do what a POST asks for, once per idempotency key; `then` follows when something was made."""

        def made(result: Made) -> None:
            if then is not None and not result.replayed:
                then()

        if post.key is None:
            return _answer(await self._store.write(work, made), post.caller)
        key = (post.caller.key_id, post.key)
        if (other := self._in_flight.get(key)) is not None:
            raise idempotency.in_progress(post.key) if other == post.fingerprint else idempotency.reused(post.key)
        self._in_flight[key] = post.fingerprint
        try:
            result = await self._store.write(
                lambda connection: idempotency.once(connection, key, post.fingerprint, work, post.now), made
            )
        finally:
            del self._in_flight[key]
        return _answer(result, post.caller)


def _answer(made: Made, caller: Caller) -> web.Response:
    headers = dict(made.headers)
    if made.replayed:
        headers["idempotent-replayed"] = "true"
    body = made.body
    if made.secret_nonce is not None:
        token = derived_secret(SecretKind.ENROLLMENT_TOKEN, caller.api_key, made.secret_nonce)
        body = body[:-1] + b',"enrollment_token":' + encode(token) + b"}"
    return web.Response(status=made.status, body=body, content_type="application/json", headers=headers)


def _mask_reasons(items: list[dict[str, Any]], redactor: Redactor) -> list[dict[str, Any]]:
    for item in items:
        if "reason" in item:
            item["reason"] = redactor.data(item["reason"])
    return items


def _runtime(request: web.Request) -> RuntimeName:
    text = request.match_info["runtime"]
    if text in set(RuntimeName):
        return RuntimeName(text)
    issue = FieldIssue(code=Code.UNKNOWN_RUNTIME, reason=f"expected one of {', '.join(RuntimeName)}", path="runtime")
    raise ProblemError(
        Code.UNKNOWN_RUNTIME, f"cannot dispatch to runtime {text[:80]!r}: {issue.reason}", issues=[issue]
    )


def _action(request: web.Request) -> Action:
    try:
        return Action.parse(request.match_info["action"])
    except ValueError as error:
        issue = FieldIssue(code=Code.UNKNOWN_ACTION, reason=str(error), path="action")
        raise ProblemError(Code.UNKNOWN_ACTION, f"cannot dispatch: {error}", issues=[issue]) from error


def _kind(request: web.Request) -> RuntimeName:
    text = request.match_info["kind"]
    if text in set(RuntimeName):
        return RuntimeName(text)
    raise ProblemError(
        Code.UNKNOWN_KIND,
        f"cannot find configs of kind {text[:80]!r}: expected one of {', '.join(RuntimeName)}",
        field="kind",
    )
