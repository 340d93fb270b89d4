"""The node token: which one to use, and its rotation with overlap.

A new token is durable before it is used. Should the Supervisor not know it (it was put back from a backup), the one
before is tried, whatever was said of its end: such a Supervisor may know only that one. If it works it is exchanged at
once.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import structlog
from pydantic import SecretStr, ValidationError

from agent.conditions import Conditions
from agent.errors import IdentityError, SupervisorError
from agent.link import identity as identities
from agent.link.backoff import Backoff
from agent.link.blocking import in_thread
from agent.link.client import SupervisorClient
from agent.link.clock import SupervisorClock
from agent.link.failures import Failure
from agent.link.health import Channel
from agent.link.identity import Identity, PreviousToken
from agent.link.standing import Standing

log = structlog.get_logger(__name__)

ROTATE_EVERY = timedelta(days=30)
LONGEST_SLEEP = 3600.0
"""Seconds between looks at the calendar; a sleep of weeks would not see a clock that was set."""
UNTIL_KNOWN = 60.0
"""Seconds between looks while no answer has told the Supervisor's time yet."""
IN_THE_FUTURE = timedelta(minutes=1)
"""An issue that is further ahead than this was written down by a clock that was wrong."""
NOT_ROTATED = "token_not_rotated"
"""Condition: the node token is older than it should be, and could not be exchanged."""


class Tokens:
    """Holds the identity of a running agent.

    Args:
        identity: As it was loaded.
        state_dir: Where it is kept.
        clock: The Supervisor's.
        learned: Told of each secret before it is used, so that it can be kept out of logs.
    """

    def __init__(
        self,
        identity: Identity,
        state_dir: Path,
        *,
        clock: SupervisorClock,
        learned: Callable[[Iterable[str]], None] = lambda _: None,
    ) -> None:
        self.identity = identity
        self._state_dir = state_dir
        self._clock = clock
        self._learned = learned
        self._fallen_back = False
        self.fell_back = asyncio.Event()
        """Set when the newest token was refused and the one before it was seen to work."""
        learned(identity.secrets())

    def current(self) -> str:
        """Return the token to use now."""
        previous = self.identity.previous_token
        if self._fallen_back and previous is not None:
            return previous.token.get_secret_value()
        return self.identity.node_token.get_secret_value()

    def refused(self, token: str) -> bool:
        """Take note of a token that was answered 401; returns whether another one is to be tried at once.

        The newest and the one before it take turns, so each call that is answered 401 costs one more at most.
        """
        if token != self.current():
            # It was exchanged while the call was under way.
            return True
        previous = self.identity.previous_token
        if self._fallen_back or previous is None:
            self._fallen_back = False
            self.fell_back.clear()
            return False
        self._fallen_back = True
        return True

    def accepted(self, token: str) -> None:
        """Take note of a token that was answered well."""
        if self._fallen_back and token == self.current() and not self.fell_back.is_set():
            log.warning("token.fell_back")
            self.fell_back.set()

    async def correct_issue(self) -> None:
        """Let a token that was issued in the future count as issued now.

        Else a node whose clock was years ahead when it enrolled would keep its token for years.
        """
        now = self._clock.now()
        if not self._clock.known or self.identity.token_issued_at <= now + IN_THE_FUTURE:
            return
        log.warning("token.issued_in_the_future", issued_at=str(self.identity.token_issued_at))
        self.identity = self.identity.model_copy(update={"token_issued_at": now})
        try:
            # Durable, for an agent that is restarted often would else begin to count with each start.
            await in_thread(identities.save, self._state_dir, self.identity)
        except IdentityError as error:
            log.warning("token.issue_not_kept", cause=error.message)

    async def replace(self, token: SecretStr, previous: PreviousToken) -> None:
        """Make a new token durable, then use it.

        Raises:
            IdentityError: It could not be written; the tokens before stay in use.
        """
        identity = self.identity.model_copy(
            update={"node_token": token, "previous_token": previous, "token_issued_at": self._clock.now()}
        )
        self._learned(identity.secrets())
        await in_thread(identities.save, self._state_dir, identity)
        self.identity = identity
        self._fallen_back = False
        self.fell_back.clear()


class Rotation:
    """The one loop that exchanges the token.

    Args:
        client: Makes the call.
        tokens: Keeps the new one.
        clock: The Supervisor's.
        standing: Ends all calls when it is lost.
        conditions: Shows that it could not be exchanged.
        every: Age at which a token is exchanged.
        backoff: Delays after failures.
    """

    def __init__(
        self,
        client: SupervisorClient,
        tokens: Tokens,
        *,
        clock: SupervisorClock,
        standing: Standing,
        conditions: Conditions,
        every: timedelta = ROTATE_EVERY,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._clock = clock
        self._standing = standing
        self._conditions = conditions
        # Up to a tenth earlier, so that a fleet that was enrolled in one hour does not rotate in one.
        self._every = every * random.uniform(0.9, 1.0)  # noqa: S311 - only spreads load
        self._backoff = backoff or Backoff(first=30.0, cap=3600.0)

    async def run(self) -> None:
        """Rotate until cancelled; no failure of the network, the Supervisor or the disk ends it."""
        while True:
            await self._standing.wait_if_lost()
            await self._wait_until_due()
            try:
                await self._rotate()
            except (SupervisorError, IdentityError) as error:
                seconds = self._backoff.failed(error)
                if self._standing.permitted:
                    log.warning("token.not_rotated", cause=error.message, retry_in=round(seconds, 1))
                    self._conditions.set(NOT_ROTATED, error.message, hint=error.hint)
                    await asyncio.sleep(seconds)
            else:
                self._backoff.reset()
                self._conditions.clear(NOT_ROTATED)
                log.info("token.rotated")

    async def _wait_until_due(self) -> None:
        while not self._tokens.fell_back.is_set():
            await self._tokens.correct_issue()
            age = self._clock.now() - self._tokens.identity.token_issued_at
            left = (self._every - age).total_seconds()
            if left <= 0:
                return
            # Nothing is overdue: the newest token is in use again, after all.
            self._conditions.clear(NOT_ROTATED)
            self._client.forget_failure(Channel.TOKEN)
            try:
                async with asyncio.timeout(min(left, LONGEST_SLEEP if self._clock.known else UNTIL_KNOWN)):
                    await self._tokens.fell_back.wait()
            except TimeoutError:
                continue

    async def _rotate(self) -> None:
        answer = await self._client.rotate_token()
        # Read after the call: it may have fallen back on the one before.
        used = SecretStr(self._tokens.current())
        try:
            previous = PreviousToken(token=used, valid_until=answer.previous_valid_until)
            # The same checks as of a file that is read.
            checked = PreviousToken(token=SecretStr(answer.node_token), valid_until=answer.previous_valid_until)
        except ValidationError as error:
            msg = "cannot rotate the node token: the new one could not stand in a header"
            raise SupervisorError(msg, code=Failure.NOT_UNDERSTOOD) from error
        await self._tokens.replace(checked.token, previous)
