"""Brings the results from the journal to the Supervisor, and gives none up.

A report leaves the outbox only when an answer has its id. What a Supervisor refuses is narrowed down by halving, tried
without its evidence, and kept: one report that nobody takes holds up no other.
"""

import asyncio
import time
from collections.abc import Mapping

import structlog

from agent.conditions import Conditions
from agent.errors import JournalError, SupervisorError
from agent.journal import Journal
from agent.link.backoff import DISK_CAP, Backoff
from agent.link.client import REPORT_REFUSALS, SupervisorClient
from agent.link.health import Channel, LinkStatus
from agent.link.held import Held
from agent.link.parcel import Parcel, batches, pack
from agent.link.standing import Standing
from agent.progress import Mark
from agent.protocol import ReportOutcome

log = structlog.get_logger(__name__)

REFUSED = "report_refused"
"""Condition: the Supervisor does not take a report, not even without its evidence; it is kept."""
CONFLICT = "report_conflict"
"""Condition: the Supervisor has another report of this node for an activity, and keeps that one."""
CONFLICT_SHOWN = 3600.0
"""Seconds that a conflict is shown; it is final, and nothing else would end it."""
BATCH = 100
"""Reports in one call, the most that the protocol allows."""
IDLE = 300.0
"""Seconds after which the outbox is looked at without having been called."""
LONGEST_ROUND = 600.0
"""Seconds; more than one call or one wait can take, which are bounded. Past it the loop is stuck."""


class Reporter:
    """The one loop that empties the outbox.

    Args:
        client: Makes the calls.
        journal: Holds the outbox.
        standing: Ends all calls when it is lost.
        conditions: Shows what was refused.
        backoff: Delays after failures of calls.
        disk: Delays after failures of the journal.
        refusals: Delays between calls that are refused one after the other.
        held: Which reports wait.
        mark: Shows that the loop goes round.
    """

    def __init__(  # noqa: PLR0913 - a loop is given all that it needs
        self,
        client: SupervisorClient,
        journal: Journal,
        *,
        standing: Standing,
        conditions: Conditions,
        backoff: Backoff | None = None,
        disk: Backoff | None = None,
        refusals: Backoff | None = None,
        held: Held | None = None,
        mark: Mark | None = None,
    ) -> None:
        self._client = client
        self._journal = journal
        self._standing = standing
        self._conditions = conditions
        self._backoff = backoff or Backoff()
        self._disk = disk or Backoff(cap=DISK_CAP)
        self._refusals = refusals or Backoff(first=0.1, cap=10.0)
        self._held = Held() if held is None else held
        self._mark = mark or Mark()
        self._ready = journal.report_ready.subscribe()
        self._conflict_until: float | None = None

    @property
    def status(self) -> LinkStatus:
        """How reports do."""
        return self._client.status(Channel.REPORTS)

    def try_refused(self) -> None:
        """Try once more, soon, what was refused."""
        self._held.try_refused()
        self._ready.set()

    async def run(self) -> None:
        """Report until cancelled; no failure of the network, the Supervisor or the disk ends it."""
        while True:
            self._mark.rest()
            await self._standing.wait_if_lost()
            self._mark.within(LONGEST_ROUND)
            try:
                sent = await self._send_pending()
            except (SupervisorError, JournalError) as error:
                seconds = (self._disk if isinstance(error, JournalError) else self._backoff).failed(error)
                if self._standing.permitted:
                    self._mark.within(seconds + LONGEST_ROUND)
                    say = log.debug if isinstance(error, JournalError) else log.warning  # a condition says that once
                    say("report.failed", cause=error.message, hint=error.hint, retry_in=round(seconds, 1))
                    await asyncio.sleep(seconds)
                continue
            self._show()
            if not sent:
                self._mark.within(LONGEST_ROUND)
                await self._wait()

    async def _wait(self) -> None:
        """Wait until something was finished, or something held is due."""
        due = self._held.seconds_to_next()
        seconds = IDLE if due is None else min(IDLE, due)
        if self._conflict_until is not None:
            seconds = min(seconds, max(0.0, self._conflict_until - time.monotonic()))
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            return

    async def _send_pending(self) -> bool:
        """Send what is pending and does not wait; returns whether there was any."""
        # Those that wait stand at the head of the outbox; without counting them they would hide the others.
        limit = BATCH + len(self._held)
        reports = await self._journal.outbox(limit)
        if len(reports) < limit:
            self._held.keep_only({report.activity_id for report in reports})
        parcels = [pack(report) for report in reports if not self._held.waits(report.activity_id)][:BATCH]
        for batch in batches(parcels):
            await self._deliver(batch)
        return bool(parcels)

    async def _deliver(self, batch: list[Parcel]) -> None:
        """Send a batch; when it is refused its halves, down to the one report that is at fault."""
        pending = [batch]
        while pending:
            parcels = pending.pop()
            self._mark.within(LONGEST_ROUND)
            try:
                outcomes = await self._client.report([parcel.content for parcel in parcels])
            except SupervisorError as error:
                if error.status not in REPORT_REFUSALS:
                    raise
                pending += self._divide(parcels, error)
                await asyncio.sleep(self._refusals.failed(error))
            else:
                self._refusals.reset()
                self._backoff.succeeded()
                await self._settle(parcels, outcomes)
                self._disk.succeeded()

    def _divide(self, parcels: list[Parcel], error: SupervisorError) -> list[list[Parcel]]:
        """Return what to send instead of a batch that was refused; the last is sent first."""
        if len(parcels) > 1:
            middle = len(parcels) // 2
            return [parcels[middle:], parcels[:middle]]
        parcel = parcels[0]
        if not parcel.light:
            return [[parcel.lighter(f"refused by the Supervisor: {error.code or error.status}")]]
        log.error("report.refused", activity_id=parcel.activity_id, cause=error.message)
        self._held.refused(parcel.activity_id)
        self._show()
        return []

    async def _settle(self, parcels: list[Parcel], outcomes: Mapping[int, ReportOutcome]) -> None:
        """Take in an answer; an id that it leaves out is tried again later."""
        results = {
            parcel.activity_id: outcomes[parcel.activity_id] for parcel in parcels if parcel.activity_id in outcomes
        }
        if results:
            await self._journal.reported(results)
        for parcel in parcels:
            outcome = results.get(parcel.activity_id)
            if outcome is None:
                log.warning("report.unanswered", activity_id=parcel.activity_id)
                self._held.missing(parcel.activity_id)
                continue
            self._held.answered(parcel.activity_id)
            self._log_outcome(parcel, outcome)

    def _log_outcome(self, parcel: Parcel, outcome: ReportOutcome) -> None:
        match outcome:
            case ReportOutcome.RECORDED | ReportOutcome.DUPLICATE:
                log.info("report.confirmed", activity_id=parcel.activity_id, outcome=str(outcome), light=parcel.light)
            case ReportOutcome.UNKNOWN:
                log.warning("report.unknown", activity_id=parcel.activity_id)
            case ReportOutcome.CONFLICT:
                log.error("report.conflict", activity_id=parcel.activity_id)
                self._conflict_until = time.monotonic() + CONFLICT_SHOWN
                self._conditions.set(
                    CONFLICT,
                    f"the Supervisor has another report of this node for activity {parcel.activity_id}, and keeps it",
                    hint="look for a second agent with this node's identity, and compare both with the node's journal",
                )

    def _show(self) -> None:
        if self._conflict_until is not None and time.monotonic() >= self._conflict_until:
            self._conflict_until = None
            self._conditions.clear(CONFLICT)
        refused = self._held.refused_ids()
        if refused:
            self._conditions.set(
                REFUSED,
                f"the Supervisor does not take {len(refused)} report(s), the first for activity {refused[0]}",
                hint="they are kept and tried again; look at the agent's log and at the Supervisor's",
            )
        else:
            self._conditions.clear(REFUSED)
