"""Whether this agent may act for its node; once that is over, it is over for the life of this agent."""

import asyncio
from enum import StrEnum

import structlog

from agent.conditions import Conditions

log = structlog.get_logger(__name__)


class Revocation(StrEnum):
    """Why an agent may not act any more; also the code of its condition."""

    IDENTITY_IN_USE = "identity_in_use"
    """Another agent with this identity started later: of two clones only one acts."""
    DECOMMISSIONED = "decommissioned"
    """The node was taken out of its deployment."""


_WORDS = {
    Revocation.IDENTITY_IN_USE: (
        "another agent with this node's identity started later, so this one does not act any more",
        "stop the one that does not belong here (a cloned machine has to enrol itself), then restart this one",
    ),
    Revocation.DECOMMISSIONED: (
        "the Supervisor has decommissioned this node; its runtimes are left as they are",
        "stop the agent, or enrol the node anew",
    ),
}


class Standing:
    """Shared by everything that talks or acts; used from the event loop only."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._revocation: Revocation | None = None
        self.changed = asyncio.Event()
        """Set when the standing was lost."""

    @property
    def permitted(self) -> bool:
        """Whether the agent may call and act."""
        return self._revocation is None

    @property
    def revocation(self) -> Revocation | None:
        """Why it may not; None while it may."""
        return self._revocation

    def revoke(self, why: Revocation) -> None:
        """Stop calling and acting, for good; the first reason stays."""
        if self._revocation is not None:
            return
        self._revocation = why
        message, hint = _WORDS[why]
        log.error("standing.lost", reason=str(why))
        self._conditions.set(why, message, hint=hint)
        self.changed.set()

    async def wait_if_lost(self) -> None:
        """Return at once while the agent may act; never return once it may not (until cancelled)."""
        if not self.permitted:
            await asyncio.Event().wait()
