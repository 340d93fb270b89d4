"""The agent's side: `/agent/v1/`, agent protocol version 1. Every call is made by an agent; none is made to one."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from aiohttp import web

from agent.protocol import (
    INSTANCE_HEADER,
    MAX_ANSWER_BYTES,
    MAX_ID,
    MAX_POLL_WAIT,
    MAX_REVISION,
    REVISION_HEADER,
    Enrollment,
    EnrollRequest,
    FieldIssue,
    Heartbeat,
    HeartbeatAnswer,
    Report,
    ReportBatch,
    ReportOutcome,
    ReportResult,
    ReportResults,
    ReportStatus,
    TokenRotation,
)
from supervisor import activities, nodes
from supervisor.activities import Dispatched
from supervisor.auth import hash_secret
from supervisor.clock import exact_time, from_microseconds
from supervisor.configs import config_content
from supervisor.fleet import Fleet, Node, admission_of
from supervisor.nodes import Admission, Admitted
from supervisor.problems import Code, ProblemError
from supervisor.requests import integer, parse_body, query_integer, query_seconds, read_body
from supervisor.routes import encode, json_answer
from supervisor.store import Store

log = structlog.get_logger(__name__)

MAX_ITEMS = 100
MAX_HEARTBEAT_BYTES = 64 * 1024
MAX_ENROLL_BYTES = 16 * 1024
MAX_EVIDENCE_BYTES = 256 * 1024
"""One report's evidence, as JSON."""
MAX_INSTANCE_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the fleet calls, in seconds."""

    heartbeat_interval: float
    poll_wait: float


class AgentApi:
    """The calls of agents."""

    def __init__(self, store: Store, fleet: Fleet, pace: Pace, clock: Callable[[], int]) -> None:
        self._store = store
        self._fleet = fleet
        self._pace = pace
        self._clock = clock

    async def enroll(self, request: web.Request) -> web.Response:
        """Answer `POST enroll`."""
        body = parse_body(EnrollRequest, await read_body(request, limit=MAX_ENROLL_BYTES))
        now = self._clock()
        enrolled = await self._store.write(lambda connection: nodes.enroll(connection, body, now), self._fleet.enrolled)
        deployment = enrolled.deployment
        log.info("node.enrolled", node_id=enrolled.node.id, deployment_id=deployment.id, hostname=body.hostname)
        answer = Enrollment(
            tenant_id=deployment.tenant_id,
            division_id=deployment.division_id,
            environment_id=deployment.environment_id,
            deployment_id=deployment.id,
            node_id=enrolled.node.id,
            node_token=enrolled.node_token,
        )
        return json_answer(answer.model_dump(), status=201, headers={"ld-node": str(enrolled.node.id)})

    async def activities(self, request: web.Request) -> web.Response:
        """Answer `GET activities`: at once when there is something, else held; a pure read."""
        node, instance = await self._authenticate(request)
        after = query_integer(request, "after", 0, 0, MAX_ID)
        wait = query_seconds(request, "wait", MAX_POLL_WAIT)
        limit = query_integer(request, "limit", MAX_ITEMS, 1, MAX_ITEMS)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not (items := await self._items(node, after, limit)):
            if self._fleet.stopping or (seconds := deadline - loop.time()) <= 0:
                break
            changed = await node.changed(seconds)
            node.check(instance)
            if not changed:
                break
        body = b'{"items":[%b],"last":%d,"revision":%d}' % (b",".join(items), node.last_sequence, node.revision)
        return web.Response(body=body, content_type="application/json")

    async def _items(self, node: Node, after: int, limit: int) -> list[bytes]:
        items: list[bytes] = []
        size = 0
        for activity in node.after(after):
            item = await self._item(activity)
            size += len(item) + 1
            if items and (len(items) == limit or size > MAX_ANSWER_BYTES - 100):
                break
            items.append(item)
        return items

    async def _item(self, activity: Dispatched) -> bytes:
        item = encode(
            {
                "id": activity.id,
                "sequence": activity.sequence,
                "runtime": activity.runtime,
                "action": activity.action,
                "author_id": activity.author_id,
                "created_at": exact_time(activity.created_at),
                "expires_at": exact_time(activity.expires_at),
            }
        )
        config = b"null" if activity.config_id is None else await self._config(activity.config_id)
        return b'%b,"config":%b}' % (item[:-1], config)

    async def _config(self, config_id: int) -> bytes:
        content = self._fleet.cached_config(config_id)
        if content is None:
            content = await self._store.read(lambda connection: config_content(connection, config_id))
            self._fleet.cache_config(config_id, content)
        return content

    async def reports(self, request: web.Request) -> web.Response:
        """Answer `POST reports`: all of a batch in one transaction."""
        node, instance, admission = self._identify(request)
        if node.instance != instance:
            await self._admit(node, instance, admission)
            admission = None
        try:
            batch = parse_body(ReportBatch, await read_body(request))
            for position, report in enumerate(batch.reports):
                _check_report(report, position)
        except ProblemError:
            await self._admit(node, instance, admission)
            raise
        node.check(instance)  # another one may have come while the body was on its way
        now = self._clock()
        recorded: list[int] = []

        def write(connection: sqlite3.Connection) -> tuple[Admitted | None, list[ReportResult]]:
            # What is reported has made the revision grow: both are written at once.
            admitted = None if admission is None else nodes.admit(connection, admission, now)
            return admitted, [
                ReportResult(
                    activity_id=report.activity_id,
                    outcome=activities.record_report(connection, node.id, report, now),
                )
                for report in batch.reports
            ]

        def then(written: tuple[Admitted | None, list[ReportResult]]) -> None:
            admitted, results = written
            if admitted is not None:
                self._fleet.admitted(admitted)
            recorded.extend(self._close(node, results))

        _, results = await self._store.write(write, then)
        log.debug("reports.recorded", node_id=node.id, reports=len(results), recorded=len(recorded))
        return json_answer(ReportResults(results=results).model_dump(mode="json"))

    def _close(self, node: Node, results: list[ReportResult]) -> list[int]:
        final = {result.activity_id for result in results if result.outcome is not ReportOutcome.UNKNOWN}
        self._fleet.closed([(node.id, activity.sequence) for activity in node.after(0) if activity.id in final])
        return [result.activity_id for result in results if result.outcome is ReportOutcome.RECORDED]

    async def heartbeats(self, request: web.Request) -> web.Response:
        """Answer `POST heartbeats`."""
        node, _ = await self._authenticate(request)
        beat = parse_body(Heartbeat, await read_body(request, limit=MAX_HEARTBEAT_BYTES))
        now = self._clock()
        self._fleet.beat(node, beat.model_dump_json(), now)
        answer = HeartbeatAnswer(
            server_time=from_microseconds(now),
            heartbeat_interval=self._pace.heartbeat_interval,
            poll_wait=self._pace.poll_wait,
        )
        return json_answer(answer.model_dump(mode="json"))

    async def token(self, request: web.Request) -> web.Response:
        """Answer `POST token`."""
        node, _ = await self._authenticate(request)
        now = self._clock()
        token, _ = await self._store.write(
            lambda connection: (nodes.add_token(connection, node.id, now), nodes.tokens_of(connection, node.id)),
            lambda made: self._fleet.replace_tokens(node.id, made[1]),
        )
        log.info("node.token_rotated", node_id=node.id)
        # It works for longer if the fresh one is used later; this much is promised.
        answer = TokenRotation(node_token=token, previous_valid_until=from_microseconds(now + nodes.TOKEN_OVERLAP))
        return json_answer(answer.model_dump(mode="json"))

    async def _authenticate(self, request: web.Request) -> tuple[Node, str]:
        """Accept a call for its node.

        Raises:
            ProblemError: 401, 409 or 410.
        """
        node, instance, admission = self._identify(request)
        await self._admit(node, instance, admission)
        return node, instance

    async def _admit(self, node: Node, instance: str, admission: Admission | None) -> None:
        """Tell the store who calls, if it does not know yet, and accept it."""
        if admission is not None:
            now = self._clock()
            await self._store.write(lambda connection: nodes.admit(connection, admission, now), self._fleet.admitted)
        node.check(instance)

    def _identify(self, request: web.Request) -> tuple[Node, str, Admission | None]:
        """Read who calls, and what the store has to be told about it before the call is accepted."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        hashed = hash_secret(token.strip()) if scheme.lower() == "bearer" else ""
        node, row = self._fleet.authenticate(hashed, self._clock())
        instance = request.headers.get(INSTANCE_HEADER, "")
        if not (0 < len(instance) <= MAX_INSTANCE_CHARACTERS and instance.isascii()):
            reason = f"expected 1 to {MAX_INSTANCE_CHARACTERS} ASCII characters"
            raise ProblemError(
                Code.INVALID_PARAMETER, f"cannot accept {INSTANCE_HEADER}: {reason}", field=INSTANCE_HEADER
            )
        revision = integer(REVISION_HEADER, request.headers.get(REVISION_HEADER, ""), 0, MAX_REVISION)
        return node, instance, admission_of(node, row, instance, revision)


def _check_report(report: Report, position: int) -> None:
    if report.status is ReportStatus.REJECTED and report.reason is None:
        issue = FieldIssue(
            code="missing_field", reason="a rejection needs a reason", path=f"reports[{position}].reason"
        )
        raise ProblemError(Code.INVALID_BODY, f"cannot accept the reports: {issue.reason}", issues=[issue])
    if len(encode(report.evidence)) > MAX_EVIDENCE_BYTES:
        raise ProblemError(
            Code.EVIDENCE_TOO_LARGE,
            f"cannot accept the report on {report.activity_id}: its evidence is longer than {MAX_EVIDENCE_BYTES} bytes",
            field=f"reports[{position}].evidence",
        )
