"""The agent's calls to the Supervisor, typed: agent protocol 1 as `docs/protocol.md` tells it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from agent.conditions import Conditions
from agent.errors import SupervisorError
from agent.link.address import tls_context
from agent.link.blocking import in_thread
from agent.link.clock import SupervisorClock
from agent.link.failures import Failure
from agent.link.health import Channel, Health, LinkStatus
from agent.link.standing import Revocation, Standing
from agent.link.transport import Answer, Transport
from agent.protocol import (
    INSTANCE_HEADER,
    REVISION_HEADER,
    ActivityList,
    Heartbeat,
    HeartbeatAnswer,
    Message,
    ReportOutcome,
    ReportResult,
    TokenRotation,
)

T = TypeVar("T")

HELD_MARGIN = 15.0
"""Seconds past a poll's wait without a byte after which the poll has failed."""
READ_TIMEOUT = 60.0
"""Seconds without a byte after which any other call has failed; a large batch on a slow line is sent within it."""
REPORT_REFUSALS = frozenset({400, 413, 422})
"""Statuses that are about what was reported, not about the connection."""
RENEWALS = 3
"""Times that one call is made again under a fresh name."""


async def _stand_back(_newest: str) -> str | None:
    """Take every newer instance for another agent."""
    return None


class SupervisorClient:
    """Makes the calls of one node, and draws from each answer what concerns all of them.

    Args:
        url: `supervisor.url`.
        ca_file: `supervisor.ca_file`.
        token: Returns the node token to use now.
        token_refused: Told of a token that was answered 401; returns whether another one is to be tried at once.
        token_accepted: Told of the token of each call that succeeded.
        instance: Random, for each start of the agent.
        revision: Returns the journal's revision.
        clock: Learns from the answers.
        standing: Is lost by 409 `identity_in_use` and by 410.
        conditions: Shows what is wrong.
        version: Of the agent.
        renew: Told of the newest instance that the Supervisor knows; returns a fresh one to go on as, or None if that
            one is another agent.
        held_margin: Seconds; see HELD_MARGIN.
        read_timeout: Seconds; see READ_TIMEOUT.

    Raises:
        SettingsError: The URL cannot be used.
    """

    def __init__(  # noqa: PLR0913 - the node's whole side of the conversation meets here
        self,
        *,
        url: str,
        ca_file: Path | None,
        token: Callable[[], str],
        instance: str,
        revision: Callable[[], int],
        clock: SupervisorClock,
        standing: Standing,
        conditions: Conditions,
        version: str,
        token_refused: Callable[[str], bool] = lambda _: False,
        token_accepted: Callable[[str], None] = lambda _: None,
        renew: Callable[[str], Awaitable[str | None]] = _stand_back,
        held_margin: float = HELD_MARGIN,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        self._token = token
        self._token_refused = token_refused
        self._token_accepted = token_accepted
        self._instance = instance
        self._renew = renew
        self._renewing = asyncio.Lock()
        self._revision = revision
        self._clock = clock
        self._standing = standing
        self._held_margin = held_margin
        self._read_timeout = read_timeout
        self._health = Health(conditions)
        self._url = url
        self._ca_file = ca_file
        self._transports = {channel: Transport(url, version=version, now=clock.now) for channel in Channel}

    async def open(self) -> None:
        """Make the sessions.

        Raises:
            SettingsError: `ca_file` cannot be used.
        """
        context = await in_thread(tls_context, self._url, self._ca_file)
        for transport in self._transports.values():
            await transport.open(context)

    async def close(self) -> None:
        """Close the connections."""
        for transport in self._transports.values():
            await transport.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def status(self, channel: Channel) -> LinkStatus:
        """Return the figures of a channel."""
        return self._health.status(channel)

    def forget_failure(self, channel: Channel) -> None:
        """Show no failure of a channel any more, because nothing has to be called there now."""
        self._health.forget_failure(channel)

    async def activities(self, *, after: int, wait: float, limit: int) -> ActivityList:
        """List what is processing with a sequence above `after`; held up to `wait` seconds while there is nothing."""
        params = {"after": str(after), "wait": f"{wait:g}", "limit": str(limit)}
        return await self._call(
            Channel.ACTIVITIES, "GET", ActivityList.model_validate, params=params, read_timeout=wait + self._held_margin
        )

    async def report(self, reports: Sequence[bytes]) -> dict[int, ReportOutcome]:
        """Send reports, each as JSON, and return what became of those that were answered."""
        body = b'{"reports":[' + b",".join(reports) + b"]}"
        return await self._call(Channel.REPORTS, "POST", _outcomes, body=body)

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        """Say how the node is, and learn the pace and the time."""
        return await self._call(
            Channel.HEARTBEATS, "POST", HeartbeatAnswer.model_validate, body=heartbeat.model_dump_json().encode()
        )

    async def rotate_token(self) -> TokenRotation:
        """Ask for a new node token."""
        return await self._call(Channel.TOKEN, "POST", TokenRotation.model_validate, body=b"{}")

    async def _call(
        self,
        channel: Channel,
        method: str,
        parse: Callable[[Any], T],
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        read_timeout: float | None = None,
    ) -> T:
        self._require_standing()
        self._health.called(channel)
        send = partial(
            self._send, channel, method, params=params, body=body, read_timeout=read_timeout or self._read_timeout
        )
        try:
            answer = await self._under_a_name(send)
            # A poll that was held while another call learnt that the standing is lost is worth nothing.
            self._require_standing()
            result = self._understand(parse, answer)
        except SupervisorError as error:
            self._judge(channel, error)
            raise
        self._health.succeeded(channel)
        return result

    async def _under_a_name(self, send: Callable[[str], Awaitable[Answer]]) -> Answer:
        """Make a call, and make it again under a fresh name if a dead agent of this node was taken for a newer one."""
        for _ in range(RENEWALS):
            used = self._instance
            try:
                return await self._with_a_token(send)
            except SupervisorError as error:
                if not (_replaced(error) and await self._renewed(used, error.newest_instance)):
                    raise
        return await self._with_a_token(send)

    async def _renewed(self, used: str, newest: str | None) -> bool:
        async with self._renewing:
            if self._instance != used:
                # Another call did it meanwhile.
                return True
            fresh = None if newest is None else await self._renew(newest)
            self._instance = fresh or used
            return fresh is not None

    async def _with_a_token(self, send: Callable[[str], Awaitable[Answer]]) -> Answer:
        """Make a call, and make it once more if another token may do what this one did not."""
        token = self._token()
        try:
            answer = await send(token)
        except SupervisorError as error:
            if error.status != 401 or not self._token_refused(token):
                raise
            token = self._token()
            try:
                answer = await send(token)
            except SupervisorError as second:
                if second.status == 401:
                    self._token_refused(token)
                raise
        self._token_accepted(token)
        return answer

    async def _send(
        self,
        channel: Channel,
        method: str,
        token: str,
        *,
        params: Mapping[str, str] | None,
        body: bytes | None,
        read_timeout: float,
    ) -> Answer:
        headers = {
            "Authorization": f"Bearer {token}",
            INSTANCE_HEADER: self._instance,
            REVISION_HEADER: str(self._revision()),
        }
        return await self._transports[channel].call(
            method, channel, headers=headers, read_timeout=read_timeout, params=params, body=body, secrets=(token,)
        )

    def _require_standing(self) -> None:
        if not self._standing.permitted:
            msg = f"cannot call the Supervisor: {self._standing.revocation}"
            raise SupervisorError(msg, code=Failure.STANDING_LOST)

    def _understand(self, parse: Callable[[Any], T], answer: Answer) -> T:
        try:
            result = parse(answer.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            msg = f"cannot understand the Supervisor's answer: {place}: {first['msg']}"
            raise SupervisorError(msg, code=Failure.NOT_UNDERSTOOD) from error
        if isinstance(result, HeartbeatAnswer):
            self._clock.learn(result.server_time, round_trip=answer.round_trip, date=answer.date)
        else:
            self._clock.learn_date(answer.date, round_trip=answer.round_trip)
        return result

    def _judge(self, channel: Channel, error: SupervisorError) -> None:
        if error.status == 410:
            self._standing.revoke(Revocation.DECOMMISSIONED)
        elif _replaced(error):
            self._standing.revoke(Revocation.IDENTITY_IN_USE)
        if not self._standing.permitted:
            self._health.forget_failures()
        elif channel is Channel.REPORTS and error.status in REPORT_REFUSALS:
            self._health.succeeded(channel)
        else:
            self._health.failed(channel, error)


def _replaced(error: SupervisorError) -> bool:
    """Say whether the Supervisor serves another agent instead of this one."""
    return error.status == 409 and error.code == Revocation.IDENTITY_IN_USE


class _Results(Message):
    """The answer to reports, as little of it as there has to be."""

    results: list[Any]


def _outcomes(body: Any) -> dict[int, ReportOutcome]:
    """Read the results one by one: one that is not understood is as good as missing, and holds up no other."""
    outcomes: dict[int, ReportOutcome] = {}
    for item in _Results.model_validate(body).results:
        try:
            result = ReportResult.model_validate(item)
        except ValidationError:
            continue
        outcomes[result.activity_id] = result.outcome
    return outcomes
