"""Calls in the middle of an action, which go on when the Engine was away for a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from agent.errors import Rejection
from agent.runtimes.containers import Container
from agent.runtimes.driver import Call
from agent.runtimes.engine import AwayError, Engine, EngineError, RefusedError

log = structlog.get_logger(__name__)

T = TypeVar("T")


class PatientCalls:
    """Calls of one driver.

    Args:
        engine: Where.
        rejection: Makes the rejection of a call that failed for good.
        name: Of the container, for the log.
        patience: Seconds that an Engine that is away is waited for.
        settle_pause: Seconds between two looks that have to agree.
    """

    def __init__(
        self,
        engine: Engine,
        rejection: Callable[[EngineError, Call | None], Rejection],
        *,
        name: str,
        patience: float,
        settle_pause: float,
    ) -> None:
        self._engine = engine
        self._rejection = rejection
        self._name = name
        self._patience = patience
        self._settle_pause = settle_pause

    async def insist(self, call: Call, job: Callable[[], Awaitable[T]], *, patience: float | None = None) -> T:
        """Do something that may be done twice, again and again while the Engine is away, within reason.

        Raises:
            Rejection: It was refused, or the Engine did not come back.
        """
        give_up_at = time.monotonic() + (self._patience if patience is None else patience)
        while True:
            try:
                return await job()
            except AwayError as error:
                left = give_up_at - time.monotonic()
                if left <= 0:
                    raise self._rejection(error, call) from error
                await self._engine.wait_until_up(left)
            except RefusedError as error:
                raise self._rejection(error, call) from error

    async def arrives(
        self, call: Call, container: Container, made: Awaitable[None], *, tolerate: tuple[int, ...] = ()
    ) -> bool:
        """Make a call; False when it is not known to have had its effect, because the Engine went away in it.

        Then it returns only when the Engine is back, and what it was doing has come to rest.

        Args:
            call: Which, for the sentence.
            container: That it is made to.
            made: The call itself.
            tolerate: Answers that mean that there was nothing to do.

        Raises:
            Rejection: It was refused, or the Engine did not come back.
        """
        try:
            await made
        except RefusedError as error:
            if error.status not in tolerate:
                raise self._rejection(error, call) from error
        except AwayError as error:
            log.warning("docker.away", container=self._name, call=str(call), cause=str(error))
            await self.insist(call, lambda: self._come_to_rest(container))
            return False
        return True

    async def _come_to_rest(self, container: Container) -> None:
        before: tuple[object, ...] | None = None
        while True:
            data = await self._engine.inspect(container.id)
            now = () if data is None else (data["State"].get("Status"), data["State"].get("StartedAt"))
            if now == before:
                return
            before = now
            await asyncio.sleep(self._settle_pause)
