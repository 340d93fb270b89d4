"""The agent with one of its protections switched off, to see that the state machine notices."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

from agent.activities import resume
from agent.activities.lanes import Lane
from agent.errors import Rejection
from agent.journal import Journal, Row, intake, opening
from agent.protocol import Report
from agent.runtimes.driver import Observation
from tests.faults.simulated.drivers import SimulatedDriver

Weakening = Callable[[], AbstractContextManager[object]]


def without_journaled_calls() -> AbstractContextManager[object]:
    """A call is made, and was not journaled before."""

    async def record(self: Journal, activity_id: int, call: str, **facts: Any) -> None: ...

    return mock.patch.object(Journal, "record", record)


def without_a() -> AbstractContextManager[object]:
    """A call is journaled without the run that was there before it."""
    real = Journal.record

    async def record(self: Journal, activity_id: int, call: str, **facts: Any) -> None:
        await real(self, activity_id, call, **{**facts, "incarnation": None, "running": None})

    return mock.patch.object(Journal, "record", record)


def with_expiry_after_a_call() -> AbstractContextManager[object]:
    """What was begun is given up in its middle, once it has expired."""
    real = Lane._recover_row

    async def recover_row(self: Lane, row: Row) -> None:
        try:
            self._refuse_expired(row)
        except Rejection as rejection:
            await self._refuse(row, rejection, recovered=True)
        else:
            await real(self, row)

    return mock.patch.object(Lane, "_recover_row", recover_row)


def without_the_decision_to_go_back() -> AbstractContextManager[object]:
    """A reconfigure goes back without having journaled that it does."""

    async def go_back(self: Journal, activity_id: int, **facts: Any) -> None: ...

    return mock.patch.object(Journal, "go_back", go_back)


def without_digests() -> AbstractContextManager[object]:
    """The same id with another content is taken for the same."""
    return mock.patch.object(intake, "_digest", return_value="the same")


def without_deduplication() -> AbstractContextManager[object]:
    """What is over and is listed all the same is taken for new."""
    real = intake.take

    def take(connection: Any, items: Any, *rest: Any, **more: Any) -> Any:
        for raw in items:
            connection.execute("DELETE FROM activities WHERE id = ? AND state = 'reported'", (raw["id"],))
        return real(connection, items, *rest, **more)

    return mock.patch.object(intake, "take", take)


def without_a_sweep_before_the_first() -> AbstractContextManager[object]:
    """What was received by an agent that died begins at once, listed again or not."""

    async def first(self: Journal, _listed: object, condition: str, *values: object) -> Row | None:
        rows = await self._rows(f"state = 'received' AND {condition} ORDER BY sequence", *values)
        return rows[0] if rows else None

    return mock.patch.object(Journal, "_first", first)


def without_withdrawal() -> AbstractContextManager[object]:
    """What a complete sweep does not list is not withdrawn."""
    return mock.patch.object(intake, "_withdraw", return_value=False)


def without_the_lost_flag() -> AbstractContextManager[object]:
    """A journal that is begun in place of another takes itself for complete."""
    real = opening._compose

    def compose(**parts: Any) -> bytearray:
        return real(**{**parts, "lost": False})

    return mock.patch.object(opening, "_compose", compose)


def without_the_mark() -> AbstractContextManager[object]:
    """A lost journal takes for new what is listed after its first sweep."""
    real = intake.end_sweep

    def end_sweep(connection: Any, token: Any, last: int) -> list[int]:
        withdrawn = real(connection, token, last)
        connection.execute("UPDATE journal SET mark = 0")
        return withdrawn

    return mock.patch.object(intake, "end_sweep", end_sweep)


def without_last() -> AbstractContextManager[object]:
    """The mark is the highest that the first sweep listed, not the highest that was ever given."""
    real = intake.end_sweep
    return mock.patch.object(intake, "end_sweep", lambda connection, token, _last: real(connection, token, 0))


def without_the_revision() -> AbstractContextManager[object]:
    """An old copy of the journal is not noticed."""

    async def check_revision(self: Journal, revision: int) -> bool:
        self.compared.set()
        return False

    return mock.patch.object(Journal, "check_revision", check_revision)


def without_boots() -> AbstractContextManager[object]:
    """A is believed whatever boot it was read in."""
    real = intake.doubt

    def doubt(connection: Any, revision: int, boot_id: str) -> None:
        real(connection, revision, boot_id)
        connection.execute(
            "UPDATE activities SET uncertain = 0 WHERE state = 'started' AND action NOT LIKE 'reconfigure:%'"
            " AND EXISTS (SELECT 1 FROM calls WHERE activity_id = activities.id AND decisive = 1)"
        )

    def told_by_a(row: Row) -> bool:
        return row.decisive_call() is not None and not row.action.startswith("reconfigure")

    stack = ExitStack()
    stack.enter_context(mock.patch.object(intake, "doubt", doubt))
    stack.enter_context(mock.patch.object(resume, "told_by_a", told_by_a))
    return stack


def without_an_outbox() -> AbstractContextManager[object]:
    """A report is sent once in one life of the agent, whether or not that was answered."""
    real = Journal.outbox

    async def outbox(self: Journal, limit: int) -> list[Report]:
        sent: set[int] = self.__dict__.setdefault("sent", set())
        reports = [report for report in await real(self, limit) if report.activity_id not in sent]
        sent.update(report.activity_id for report in reports)
        return reports

    return mock.patch.object(Journal, "outbox", outbox)


def without_settling() -> AbstractContextManager[object]:
    """Recovery goes by its first look, whatever is still on its way."""

    async def settle(self: SimulatedDriver) -> Observation:
        return await self.observe()

    return mock.patch.object(SimulatedDriver, "settle", settle)


WEAKENINGS: Mapping[str, tuple[Weakening, str, int]] = {
    "the call journaled before it is made": (without_journaled_calls, "deaths", 3),
    "A read at the decisive call": (without_a, "deaths", 1),
    "no expiry after a call": (with_expiry_after_a_call, "expiry", 2),
    "the journaled decision to go back": (without_the_decision_to_go_back, "deaths", 3),
    "the digest": (without_digests, "lists", 3),
    "each id once for ever": (without_deduplication, "reports", 1),
    "listed again before `received` begins": (without_a_sweep_before_the_first, "lists", 1),
    "the withdrawal of what is not listed": (without_withdrawal, "lists", 2),
    "the lost flag": (without_the_lost_flag, "lost journals", 1),
    "the mark": (without_the_mark, "lost journals", 3),
    "`last`": (without_last, "lost journals", 3),
    "the revision": (without_the_revision, "old journals", 11),
    "A only in the boot in which it was read": (without_boots, "old journals and boots", 1),
    "the outbox": (without_an_outbox, "reports", 2),
    "the settled reads": (without_settling, "deaths", 1),
}
"""Each protection that this machine can see: how it is switched off, the theme whose stories show it, and a seed by
which it shows soon. Of any seed, 200 stories are nearly always enough."""

NOT_SEEN: Mapping[str, str] = {
    "the lock and the pid before exec": "the simulated process driver has no real process; the kills with the real one"
    " show it",
    "subscribe before call": "the simulated bus loses no signal; the real systemd driver has it to itself",
    "the lock of the state folder": "there is one agent at a time here; two on one folder are a row of their own",
    "the order of fsync": "nothing here loses what the kernel has not written; the traced system calls show it",
}
"""What it cannot see by its nature, and why."""
