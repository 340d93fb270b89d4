"""Judges what an agent reports whose journal was damaged while it was dead: it may be less than was done, and is true.

Two times are told apart. What the Supervisor had recorded when the agent was dead, before the damage, was said by a
sound agent: it is judged as everywhere, by what ran at that moment, and it does not change afterwards. What is reported
later is judged by what runs then.

A damage that nobody can see takes the journal back in time, so two things are not promised after it, and are counted:
that nothing is done again, and that a reconfigure starts a runtime which it had stopped itself; see `was_left_stopped`.
"""

import random
from collections.abc import Sequence

from agent.protocol import ActivityStatus, ReasonCode, ReconfigureOutcome, RuntimeState
from tests.e2e.births import Birth
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.deeds import IGGY, PATIENCE, SIZE, Actor, Deed, Terms, told_run
from tests.faults.tally import FalseReportError, LostError, Tally

OLD_COPY = "an old copy"
UNSEEN = {"a cut log", "an emptied log", "a deleted log", "flipped bits in the log", OLD_COPY}
"""Damages after which a journal may open cleanly, with an older state."""
UNKNOWN = {ReasonCode.OUTCOME_UNKNOWN, ReasonCode.START_FAILED}
"""What is said of an activity that the journal does not know enough of."""
WRITES = 2
"""Of our own, one after the other: the Supervisor writes in the order in which requests come to it, and looks at who
sends one before it takes its place in that order."""


class DamagedActor(Actor):
    """Judges one deed after the other, each of which may be followed by a damage.

    Attributes:
        damage: What was done to the journal in this round; empty when nothing was.
        repeated: How many starts were made again.
        left_stopped: How many reconfigures left a runtime stopped which ran before.
    """

    def __init__(self, rig: Rig, chance: random.Random, tally: Tally) -> None:
        super().__init__(rig, chance, tally)
        self.tolerated = ("journal_replaced", "activity_conflict", "report_conflict")
        self.damage = ""
        self.repeated = 0
        self.left_stopped = 0
        self._early: Activity | None = None
        self._born = 0

    async def look_at_death(self, deed: Deed) -> None:
        """Judge what is recorded already, with the agent dead: it was said by a sound one, and was true or was not."""
        for _ in range(WRITES):  # what the agent had sent before it died is recorded after that
            await self.rig.api.call("POST", "enrollment-tokens", {})
        activity = await self.rig.api.get(deed.activity.id)
        if activity.status is ActivityStatus.PROCESSING:
            return
        self._early, self._born = activity, len(self.rig.births(IGGY))
        try:
            await super()._judge(deed, activity, Terms())
        except AssertionError as error:
            error.add_note(f"{activity.raw}\n{self.rig.logs()}")
            self.tally.fail(f"{deed.action}, reported before the damage", error)

    async def _rests(self, deed: Deed) -> None:
        """Wait as with a sound journal; but this one may not know any more what was reported before."""

        async def look() -> bool:
            self._require_agent()
            activity, status = await self.rig.journaled(deed.activity.id), await self.rig.ask("/v1/status")
            if status is None or not {found["code"] for found in status["conditions"]} <= set(self.tolerated):
                return False
            return activity is None or activity["state"] == "reported"

        await until(look, "the agent is well, and has nothing to report", within=PATIENCE, every=0.05)

    async def _judge(self, deed: Deed, activity: Activity, terms: Terms) -> None:
        births, alive = self.rig.births(IGGY), self.alive()
        if (await self.rig.api.get(activity.id)).raw != activity.raw:
            msg = "the report changed after it was recorded"
            raise FalseReportError(msg)
        if self._early is not None and self._early.id == activity.id:
            self.repeated += len(births) - self._born
            if activity.raw != self._early.raw:
                msg = f"the report changed after the damage; it was {self._early.raw}"
                raise FalseReportError(msg)
            _refuse(activity, _wrong_now(deed, alive))
            return
        new = births[len(deed.before) :]
        self.repeated += max(0, len(new) - deed.starts)
        self.tally.effects_seen += min(len(new), deed.starts)
        self.tally.effects_expected += min(len(new), deed.starts)
        if was_left_stopped(self.damage, deed, activity, new, alive):
            self.left_stopped += 1
            return
        if activity.status is ActivityStatus.COMPLETED and len(new) < deed.starts:
            msg = f"completed, and it was started {len(new)} times"
            raise LostError(msg)
        _refuse(activity, _wrong_words(deed, activity, alive))


def was_left_stopped(damage: str, deed: Deed, activity: Activity, new: Sequence[Birth], alive: Sequence[Birth]) -> bool:
    """Say whether a reconfigure, as its true report tells, found stopped what it had itself stopped before the damage.

    Its journal went back to a time before that stop, unseen. A reconfigure of a stopped runtime does not start it.

    Args:
        damage: What was done to the journal.
        deed: What was begun.
        activity: With its report.
        new: The runs since then.
        alive: Those that live.
    """
    told, ran = activity.evidence, [(run.pid, run.start_ticks) for run in deed.before[-1:]]
    before, after, running = (told.get(fact) or {} for fact in ("before", "after", "running"))
    return (
        (damage in UNSEEN and deed.size is not None and deed.starts == 1 and not new and not alive)
        and (activity.status is ActivityStatus.COMPLETED and told.get("outcome") == ReconfigureOutcome.APPLIED)
        and all(fact.get("state") == RuntimeState.STOPPED for fact in (before, after, running))
        and told_run(before) in ran
        and not {"start", "restart"} & set(told.get("calls", ()))
    )


def _wrong_now(deed: Deed, alive: Sequence[Birth]) -> dict[str, object]:
    """Find what is not as it is after a deed that was completed."""
    wrong: dict[str, object] = {}
    if len(alive) > 1:
        wrong["it runs more than once"] = alive
    if bool(alive) is not deed.runs:
        wrong["it runs"] = bool(alive)
    if deed.size is not None and alive and alive[0].environment.get(SIZE) != deed.size:
        wrong["its config"] = alive[0].environment.get(SIZE)
    return wrong


def _wrong_words(deed: Deed, activity: Activity, alive: Sequence[Birth]) -> dict[str, object]:
    """Find what a report says that is not so now."""
    after = activity.evidence.get("after") or {}
    if activity.status is ActivityStatus.COMPLETED:
        wrong = _wrong_now(deed, alive)
    else:
        wrong = {} if len(alive) <= 1 else {"it runs more than once": alive}
        if activity.code not in UNKNOWN:
            wrong["its code"] = activity.code
    there = [(run.pid, run.start_ticks) for run in alive]
    if after.get("state") == RuntimeState.RUNNING and told_run(after) not in there:
        wrong["its run"] = after
    return wrong


def _refuse(activity: Activity, wrong: dict[str, object]) -> None:
    if wrong:
        msg = f"{activity.status}, but: {wrong}"
        raise FalseReportError(msg)
