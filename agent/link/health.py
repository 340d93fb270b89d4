"""How the conversation goes: figures for each channel, and the conditions that follow from all of them."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from agent.conditions import Conditions
from agent.errors import SupervisorError

UNREACHABLE = "supervisor_unreachable"
"""Condition: a call failed, and none on its channel has succeeded since."""
UNAUTHORIZED = "unauthorized"
"""Condition: a call was answered 401 or 403, and none on its channel has succeeded since."""


class Channel(StrEnum):
    """A kind of call; each has a session of its own, so that a held poll is in nobody's way."""

    ACTIVITIES = "activities"
    """Polls and sweeps."""
    REPORTS = "reports"
    """The outbox."""
    HEARTBEATS = "heartbeats"
    """Heartbeats."""
    TOKEN = "token"  # noqa: S105 - the name of a path
    """Rotation."""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How one channel does."""

    calls: int = 0
    failures: int = 0
    last_success_at: datetime | None = None
    last_error: str | None = None
    last_error_at: datetime | None = None


class Health:
    """Keeps the figures and the conditions; used from the event loop only."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._status = {channel: LinkStatus() for channel in Channel}
        self._failing: dict[Channel, SupervisorError] = {}

    def status(self, channel: Channel) -> LinkStatus:
        """Return a channel's figures."""
        return self._status[channel]

    def called(self, channel: Channel) -> None:
        """Note that a call begins."""
        status = self._status[channel]
        self._status[channel] = replace(status, calls=status.calls + 1)

    def succeeded(self, channel: Channel) -> None:
        """Note that the Supervisor answered as it should."""
        self._status[channel] = replace(self._status[channel], last_success_at=datetime.now(UTC))
        self._failing.pop(channel, None)
        self._show()

    def failed(self, channel: Channel, error: SupervisorError) -> None:
        """Note that it did not."""
        status = self._status[channel]
        self._status[channel] = replace(
            status, failures=status.failures + 1, last_error=error.message, last_error_at=datetime.now(UTC)
        )
        # Put last, for the newest failure is the one that is shown.
        self._failing.pop(channel, None)
        self._failing[channel] = error
        self._show()

    def forget_failure(self, channel: Channel) -> None:
        """Show no failure of a channel any more, because nothing has to be called there now."""
        if self._failing.pop(channel, None) is not None:
            self._show()

    def forget_failures(self) -> None:
        """Show no failure any more, because no call will be made that could end it."""
        self._failing.clear()
        self._show()

    def _show(self) -> None:
        newest: dict[str, SupervisorError] = {}
        for error in self._failing.values():
            newest[UNAUTHORIZED if error.status in {401, 403} else UNREACHABLE] = error
        for code in (UNREACHABLE, UNAUTHORIZED):
            shown = newest.get(code)
            if shown is None:
                self._conditions.clear(code)
            else:
                self._conditions.set(code, shown.message, hint=shown.hint)
