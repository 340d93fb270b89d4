"""Answers for activities of runtimes that this node does not manage: none is left without a report."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from agent.errors import JournalError, Rejection
from agent.journal import Journal, Row
from agent.protocol import ReasonCode, ReportStatus

log = structlog.get_logger(__name__)

WRITE_AGAIN = 1.0
"""Seconds between two tries to use a journal that cannot be written."""


class ForeignLane:
    """The queue of what belongs to no lane.

    Args:
        journal: Where its activities come from and go to.
        lanes: The runtimes that have a lane.
        permitted: Whether this agent may act.
    """

    def __init__(self, journal: Journal, lanes: Sequence[str], *, permitted: Callable[[], bool]) -> None:
        self._journal = journal
        self._lanes = lanes
        self._permitted = permitted
        self._work_ready = journal.work_ready.subscribe()
        self._stopping = False

    def stop(self) -> None:
        """Answer nothing more."""
        self._stopping = True
        self._work_ready.set()

    async def run(self) -> None:
        """Finish what was begun before its runtime was taken out of the settings, then answer what comes."""
        while not self._stopping:
            try:
                for begun in await self._journal.unfinished():
                    if begun.runtime not in self._lanes:
                        await self._reject(begun, self._taken_out(begun), recovered=True)
                row = await self._journal.next_foreign(self._lanes) if self._permitted() else None
                if row is not None:
                    await self._reject(row, self._unknown(), recovered=False)
                    continue
            except JournalError:
                await asyncio.sleep(WRITE_AGAIN)
                continue
            await self._work_ready.wait()

    async def _reject(self, row: Row, rejection: Rejection, *, recovered: bool) -> None:
        await self._journal.finish(
            row.id,
            status=ReportStatus.REJECTED,
            changed=bool(row.calls),
            recovered=recovered,
            reason=rejection.reason(),
            evidence={"calls": [call.call for call in row.calls]},
        )
        log.warning(
            "activity.rejected", activity_id=row.id, runtime=row.runtime, action=row.action, code=rejection.code
        )

    def _unknown(self) -> Rejection:
        return Rejection(
            ReasonCode.UNKNOWN_RUNTIME,
            f"cannot act on it: this node manages {' and '.join(self._lanes) or 'no runtime'} only",
            hint="name the runtime in the node's settings, or dispatch to the nodes that have it",
        )

    def _taken_out(self, row: Row) -> Rejection:
        if not row.calls:
            return self._unknown()
        return Rejection(
            ReasonCode.OUTCOME_UNKNOWN,
            f"cannot tell what became of it: {row.runtime} was taken out of the node's settings while it was under way",
            hint="look at the runtime; name it in the settings again if the agent is to manage it",
        )
