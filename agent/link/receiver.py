"""Brings what is to be done from the Supervisor into the journal: sweeps, and long polls between them.

A poll is woken by what is new. A sweep reads everything that is still processing, and so heals whatever a poll cannot
see: a gap, a reordering, a report that the Supervisor forgot, a Supervisor or a journal put back from a backup.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from agent.conditions import Conditions
from agent.errors import JournalError, SupervisorError
from agent.journal import Journal, SweepToken, Taken
from agent.link.backoff import DISK_CAP, Backoff
from agent.link.client import SupervisorClient
from agent.link.failures import Failure
from agent.link.health import Channel, LinkStatus
from agent.link.pace import Pace
from agent.link.standing import Standing
from agent.progress import Mark
from agent.protocol import MAX_ID

log = structlog.get_logger(__name__)

INCOMPLETE = "sweep_incomplete"
"""Condition: the Supervisor answers, but its list of activities cannot be read to the end."""
PAGE = 100
"""Items asked for at once."""
SWEEP_INTERVAL = 600.0
"""Seconds between sweeps, also when nothing fails; each is up to a tenth shorter, so that a fleet does not march."""
EARLY = 1.0
"""Seconds; a poll that was to be held, and came back empty sooner than this, was not held."""
LONGEST_STALL = 10.0
"""Seconds; the longest pause after an answer that brought nothing new."""
LONGEST_ROUND = 600.0
"""Seconds; more than one call and its pause can take, which are bounded. Past it the loop is stuck."""


class Receiver:
    """The one loop that lists activities.

    Args:
        client: Makes the calls.
        journal: Takes the items in.
        standing: Ends all calls when it is lost.
        conditions: Shows that no sweep can be completed.
        pace: How long a poll is held.
        swept: Called after each complete sweep.
        page: Items asked for at once.
        sweep_interval: Seconds between sweeps.
        backoff: Delays after failures of calls.
        disk: Delays after failures of the journal.
        stall: Delays after answers that brought nothing new.
        mark: Shows that the loop goes round.
    """

    def __init__(  # noqa: PLR0913 - a loop is given all that it needs
        self,
        client: SupervisorClient,
        journal: Journal,
        *,
        standing: Standing,
        conditions: Conditions,
        pace: Pace,
        swept: Callable[[], None] = lambda: None,
        page: int = PAGE,
        sweep_interval: float = SWEEP_INTERVAL,
        backoff: Backoff | None = None,
        disk: Backoff | None = None,
        stall: Backoff | None = None,
        mark: Mark | None = None,
    ) -> None:
        self._client = client
        self._journal = journal
        self._standing = standing
        self._conditions = conditions
        self._pace = pace
        self._swept = swept
        self._page = page
        self._sweep_interval = sweep_interval
        self._backoff = backoff or Backoff()
        self._disk = disk or Backoff(cap=DISK_CAP)
        self._stall = stall or Backoff(cap=LONGEST_STALL)
        self._mark = mark or Mark()
        self._sweep_at = 0.0
        self._past = 0
        """Sequence that the next poll asks past; 0 for the cursor."""
        self.sweeps = 0
        """Complete ones, since the agent started."""
        self.skipped = 0
        """Items without a usable id and sequence, which nothing could be answered for."""

    @property
    def status(self) -> LinkStatus:
        """How polls and sweeps do."""
        return self._client.status(Channel.ACTIVITIES)

    async def run(self) -> None:
        """Receive until cancelled; no failure of the network, the Supervisor or the disk ends it."""
        while True:
            self._mark.rest()
            await self._standing.wait_if_lost()
            self._mark.within(LONGEST_ROUND)
            try:
                if time.monotonic() >= self._sweep_at:
                    await self._sweep()
                else:
                    await self._poll()
            except (SupervisorError, JournalError) as error:
                # Whatever was missed meanwhile, a sweep finds it.
                self._sweep_at = 0.0
                seconds = (self._disk if isinstance(error, JournalError) else self._backoff).failed(error)
                if self._standing.permitted:
                    self._mark.within(seconds + LONGEST_ROUND)
                    say = log.debug if isinstance(error, JournalError) else log.warning  # a condition says that once
                    say("receive.failed", cause=error.message, hint=error.hint, retry_in=round(seconds, 1))
                    await asyncio.sleep(seconds)
            else:
                self._backoff.succeeded()
                self._disk.succeeded()

    async def _sweep(self) -> None:
        """Read everything that is processing, page by page, to the end."""
        begun = time.monotonic()
        for _ in range(2):
            token = await self._journal.begin_sweep()
            last = await self._read_pages(token)
            if last is not None:
                break
        else:
            # The journal took over the revision the first time; only a Supervisor that is not well goes on past it.
            cause = "the journal revision in the Supervisor's answers grows with each of them"
            raise self._incomplete(cause)
        withdrawn = await self._journal.end_sweep(token, last=last)
        if withdrawn:
            log.warning("sweep.withdrew", activity_ids=withdrawn[:20], count=len(withdrawn))
        self._conditions.clear(INCOMPLETE)
        self.sweeps += 1
        self._sweep_at = begun + self._sweep_interval * random.uniform(0.9, 1.0)  # noqa: S311 - only spreads load
        self._swept()

    async def _read_pages(self, token: SweepToken) -> int | None:
        """Take in each page; returns the highest sequence ever given, or None when the sweep has to begin anew.

        An answer may be cut by its size, so only one without items is the end.
        """
        after = last = 0
        while True:
            self._mark.within(LONGEST_ROUND)
            answer = await self._client.activities(after=after, wait=0, limit=self._page)
            if await self._outdated(answer.revision):
                return None
            self._note(await self._journal.take(answer.items, sweep=token, last=answer.last))
            last = max(last, answer.last or 0)
            further = page_past(answer.items, after)
            if further > after:
                after = further
            elif further == 0 and len(answer.items) < self._page:
                # No items, or none that could be paged past.
                return last
            else:
                cause = f"the Supervisor's list does not go on past sequence {after}"
                raise self._incomplete(cause)

    def _incomplete(self, cause: str) -> SupervisorError:
        error = SupervisorError(
            f"cannot complete a sweep: {cause}",
            hint="activities still arrive, but late; look at the Supervisor's store and at what stands before it",
            code=Failure.NOT_UNDERSTOOD,
        )
        self._conditions.set(INCOMPLETE, error.message, hint=error.hint)
        return error

    async def _poll(self) -> None:
        """Wait for what is above the cursor; or look, without waiting, behind what could not be journaled there."""
        wait, cursor, begun = self._pace.poll_wait, self._journal.cursor, time.monotonic()
        after, self._past = max(cursor, self._past), 0
        if after > cursor:
            wait = 0.0
        answer = await self._client.activities(after=after, wait=wait, limit=self._page)
        if await self._outdated(answer.revision):
            self._sweep_at = 0.0
            return
        taken = self._note(await self._journal.take(answer.items, sweep=None, last=answer.last))
        if answer.items:
            progress = taken.new > 0 or self._journal.cursor > cursor
            further = page_past(answer.items, after)
            if not progress and further > after:
                # Never waited at: one bad item may have a sequence that nothing will ever be above.
                self._past = further
        else:
            progress = time.monotonic() - begun >= min(wait, EARLY) and wait > 0
        if progress:
            self._stall.reset()
        else:
            await asyncio.sleep(self._stall.failed())

    async def _outdated(self, revision: int) -> bool:
        if not await self._journal.check_revision(revision):
            return False
        log.error("journal.outdated", revision=revision)
        return True

    def _note(self, taken: Taken) -> Taken:
        self.skipped += taken.skipped
        if taken.skipped:
            log.warning("activities.skipped", count=taken.skipped)
        if taken.new or taken.again:
            log.info("activities.received", new=taken.new, known=taken.known, again=taken.again, invalid=taken.invalid)
        return taken


def page_past(items: Sequence[Any], after: int) -> int:
    """Return the sequence to ask past when these items were listed; 0 when none has one.

    That of an item with an id is believed first: the sequence of another may be nonsense too, and would hide the rest.

    Args:
        items: Raw, of one answer.
        after: What was asked past to get them.
    """
    listed = [item for item in items if isinstance(item, dict) and _is_id(item.get("sequence"))]
    usable = max((item["sequence"] for item in listed if _is_id(item.get("id"))), default=0)
    return usable if usable > after else max((item["sequence"] for item in listed), default=0)


def _is_id(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_ID
