"""Judges what an agent reports whose journal was damaged while it was dead: it may be less than was done, and is true.

Two times are told apart. What the Supervisor had recorded when the agent was dead, before the damage, was said by a
sound agent: it is judged as everywhere, by what ran at that moment, and it does not change afterwards. What is reported
later is judged by what runs then. Where nothing was damaged after all, nothing is excused.

A damage that nobody can see takes the journal back in time, so two things are not promised after it, and are counted:
that nothing is done again, and that a reconfigure starts a runtime which it had stopped itself; see `was_left_stopped`.
Flipped bits in the journal's own file may go unseen too: SQLite has no checksums there, and its check of the file looks
at how it is built, not at what was written. After them a repeat is counted as well. Every other damage of that file is
seen, and a journal that is known to be lost never has anything carried out again: there a repeat is a failure. So it is
where the journal itself says that it is older than what the Supervisor had heard of it: that is what its revision is
for, and nothing of it is carried out.
"""

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from agent.errors import JournalDamagedError
from agent.protocol import ActivityStatus, ReasonCode, ReconfigureOutcome, RuntimeState
from tests.e2e.births import Birth
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.deeds import IGGY, PATIENCE, SIZE, Actor, Deed, Terms, check_rejected, check_times, told_run
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

OLD_COPY = "an old copy"
UNSEEN = {"a cut log", "an emptied log", "a deleted log", "flipped bits in the log", OLD_COPY}
"""Damages after which a journal may open cleanly, with an older state."""
MAY_REPEAT = {*UNSEEN, "flipped bits in the journal"}
"""Damages that the agent may not notice, so that something may be done again."""
UNKNOWN = {ReasonCode.OUTCOME_UNKNOWN, ReasonCode.START_FAILED}
"""What is said of an activity that the journal does not know enough of."""
WRITES = 2
"""Of our own, one after the other: the Supervisor writes in the order in which requests come to it, and looks at who
sends one before it takes its place in that order."""


class DamagedActor(Actor):
    """Judges one deed after the other, each of which may be followed by a damage.

    Attributes:
        damage: What was done to the journal in this round; empty when nothing was.
        known: Whether the journal can be known to be older than it was: see `is_known_to_be_older`.
        repeated: How many starts were made again.
        ended: How often the agent ended by itself, to begin a new journal.
        left_stopped: How many reconfigures left a runtime stopped which ran before.
    """

    def __init__(self, rig: Rig, chance: random.Random, tally: Tally) -> None:
        super().__init__(rig, chance, tally)
        self.tolerated = ("journal_replaced", "activity_conflict", "report_conflict", "journal_damaged")
        self.damage = ""
        self.known = False
        self.repeated = 0
        self.ended = 0
        self.left_stopped = 0
        self._early: Activity | None = None
        self._born = 0

    def _require_agent(self) -> None:
        """Start it again where it ended to begin a new journal, as what keeps it up does."""
        if not self.rig.agent.alive and self.rig.agent.exit_code == JournalDamagedError.exit_code:
            self.ended += 1
            self.rig.launch_agent()
        super()._require_agent()

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

    async def require_next(self, kind: str, size: str | None) -> None:
        """Require that what is dispatched after all that is completed, done once, and judged as everywhere.

        Args:
            kind: The damage.
            size: The config that was left for it; None when none was.
        """
        self.damage, story = "", f"the next one after {kind}"
        try:
            await self._until_certain()
        except (AssertionError, TimeoutError) as error:
            await self._failed(story, error)
            return
        activity = await self.end(await self.begin("restart"), story)
        sizes = [run.environment.get(SIZE) for run in self.alive()]
        if activity is not None and size is not None and sizes != [size]:
            self.tally.fail(story, FalseReportError(f"it runs with {sizes} instead of {size}: {activity.raw}"))

    async def _until_certain(self) -> None:
        """Wait until the agent has no more reason to say of a new activity that its journal may not know of it.

        Its calls that list activities come one after the other: once one has succeeded and another begun, the first
        answer was compared with the journal. If that turned out to be lost, it says so until a sweep is complete, and
        what it may have done is `waiting` until it is judged.
        """

        async def compared() -> bool:
            listing = ((await self._status())["link"] or {}).get("activities")
            return listing is not None and listing["calls"] - listing["failures"] > 1

        async def over() -> bool:  # by a later answer than that, which is not made all at once
            status = await self._status()
            lost = any(found["code"] == "journal_lost" for found in status["conditions"])
            return not lost and status["journal"] == {"waiting": 0, "unreported": 0}

        await until(compared, "the journal was compared with the Supervisor's answer", within=PATIENCE, every=0.03)
        await until(over, "the journal is not lost, and nothing is left of before", within=PATIENCE, every=0.03)

    async def _status(self) -> dict[str, Any]:
        self._require_agent()
        return await self.rig.ask("/v1/status") or {"link": None, "conditions": [], "journal": None}

    async def _rests(self, deed: Deed) -> None:
        """Wait as with a sound journal; but a damaged one may not know any more what was reported before."""
        if not self.damage:
            await super()._rests(deed)
            return

        async def look() -> bool:
            self._require_agent()
            activity, status = await self.rig.journaled(deed.activity.id), await self.rig.ask("/v1/status")
            if status is None or not {found["code"] for found in status["conditions"]} <= set(self.tolerated):
                return False
            return activity is None or activity["state"] == "reported"

        await until(look, "the agent is well, and has nothing to report", within=PATIENCE, every=0.05)

    async def _judge(self, deed: Deed, activity: Activity, terms: Terms) -> None:
        early = self._early if self._early is not None and self._early.id == activity.id else None
        if early is None and not self.damage:
            await super()._judge(deed, activity, terms)
            return
        births, alive = self.rig.births(IGGY), self.alive()
        if (await self.rig.api.get(activity.id)).raw != activity.raw:
            msg = "the report changed after it was recorded"
            raise FalseReportError(msg)
        if early is not None:
            if activity.raw != early.raw:
                msg = f"the report changed after the damage; it was {early.raw}"
                raise FalseReportError(msg)
            self._count_repeats(len(births) - self._born)
            _refuse(activity, _wrong_now(deed, alive))
            return
        self._judge_late(deed, activity, terms, births[len(deed.before) :])

    def _judge_late(self, deed: Deed, activity: Activity, terms: Terms, new: Sequence[Birth]) -> None:
        """Judge what was reported after the damage. After a repeat too, it is the last run that it has to name."""
        alive, completed = self.alive(), activity.status is ActivityStatus.COMPLETED
        left_stopped = was_left_stopped(self.damage, deed, activity, new, alive)
        seen = min(len(new), deed.starts)
        self.tally.effects_seen += seen
        self.tally.effects_expected += deed.starts if completed and not left_stopped else seen
        self._count_repeats(len(new) - deed.starts)
        check_times(activity)
        if left_stopped:
            self.left_stopped += 1
        elif completed:
            if len(new) < deed.starts:
                msg = f"completed, and it was started {len(new)} times"
                raise LostError(msg)
            _refuse(activity, _wrong_now(deed, alive) | _wrong_words(deed, activity, new, alive))
        else:
            _refuse(activity, {} if len(alive) <= 1 else {"it runs more than once": alive})
            check_rejected(activity, alive, Terms({*UNKNOWN, *terms.allowed}))

    def _count_repeats(self, count: int) -> None:
        if count > 0 and (self.known or self.damage not in MAY_REPEAT):
            self.tally.effects_seen += count
            seen = ", which can be known" if self.known else ""
            msg = f"it was started again {count} times, after {self.damage or 'no damage'}{seen}"
            raise RepeatedError(msg)
        self.repeated += max(0, count)


def is_known_to_be_older(journal: Path, supervisor: Path, node_id: int) -> bool:
    """Tell whether a dead agent's journal shows by itself that it is not the newest one.

    Either its revision is below the one that the Supervisor has heard of, or it cannot be read at all. It is looked at
    in a copy: to open it changes it.

    Args:
        journal: Its file.
        supervisor: The store of the Supervisor.
        node_id: Whose journal it is.
    """
    with closing(sqlite3.connect(f"file:{supervisor}?mode=ro", uri=True)) as store:
        (heard,) = store.execute("SELECT revision FROM nodes WHERE id = ?", (node_id,)).fetchone()
    with tempfile.TemporaryDirectory() as folder:
        for file in (journal, journal.with_name(f"{journal.name}-wal")):
            with suppress(FileNotFoundError):
                shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / journal.name)) as copy:
            try:
                row = copy.execute("SELECT revision FROM journal").fetchone()
            except (sqlite3.DatabaseError, UnicodeDecodeError):  # the second: of its words for the first
                return True
    return row is None or row[0] < heard


def was_left_stopped(damage: str, deed: Deed, activity: Activity, new: Sequence[Birth], alive: Sequence[Birth]) -> bool:
    """Say whether a reconfigure, as its true report tells, found stopped what it had itself stopped before the damage.

    Its journal went back to a time before that stop, unseen. A reconfigure of a stopped runtime does not start it. One
    that tells of a call which acts on the runtime has a journal that knows of it, and is not excused.

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
        and set(told.get("calls", ())) <= {"switch"}
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


def _wrong_words(deed: Deed, activity: Activity, new: Sequence[Birth], alive: Sequence[Birth]) -> dict[str, object]:
    """Find what a completed one says that is not so now; that less was changed than was may be all that it knows."""
    wrong: dict[str, object] = {}
    told = activity.evidence
    after = told.get("after") or {}
    names_a_run = (deed.runs and alive) or after.get("state") == RuntimeState.RUNNING
    if names_a_run and told_run(after) not in [(run.pid, run.start_ticks) for run in alive]:
        wrong["its run"] = after
    if deed.runs and new and list(alive) != [new[-1]]:
        wrong["the last run"] = new[-1]
    if activity.changed and not deed.changed and not new:
        wrong["changed"] = activity.changed
    if told.get("killed"):
        wrong["killed"] = told["killed"]
    return wrong


def _refuse(activity: Activity, wrong: dict[str, object]) -> None:
    if wrong:
        msg = f"{activity.status}, but: {wrong}"
        raise FalseReportError(msg)
