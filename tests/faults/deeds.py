"""Actions on iggy of one living agent, one after the other: dispatched at random, and judged from outside.

    async with acting(ground, tally, Options()) as actor:
        deed = await actor.begin()
        ...                                   # the fault
        await actor.end(deed, "what was done to it")

What is judged is the truth of the report: how often the runtime was started, as its own records say, which run is
alive now, what it was started with, and what became of the agent. A failure is counted, and the next deed begins.
"""

import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName, RuntimeState
from tests.e2e.births import Birth
from tests.e2e.node_settings import Options
from tests.e2e.programs import standin_programs
from tests.e2e.public_api import Activity
from tests.e2e.rig import AGENT, Rig
from tests.e2e.waiting import until
from tests.faults.fault import Ground
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

IGGY = RuntimeName.IGGY
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"
USUAL = Options(
    stable_for=0.05, attempt_timeout=1.0, ready_timeout=5.0, stop_timeout=5.0, heartbeat_interval=1.0, poll_wait=2.0
)
WITHOUT_EFFECT = {ReasonCode.EXPIRED, ReasonCode.NO_SPACE, ReasonCode.WITHDRAWN}
"""Codes with which nothing at all was done."""
DOWN = {"stopped", "failed"}
VERBS = ("start", "stop", "restart", "restart", "reconfigure")
"""What is chosen from; a restart has most that can go wrong."""
PATIENCE = 60.0
"""Seconds within which an activity has its report, and the agent nothing more to say."""
PATHS = {"PYTHONPATH": str(Path(__file__).parents[2])}
"""Where a program finds the tests, which runs the agent in its own way."""
SECOND = timedelta(seconds=1.5)
"""How far times may be apart that are told in whole seconds."""


@dataclass(frozen=True, slots=True)
class Deed:
    """An action under way, and what it comes to when it is completed.

    Attributes:
        before: The runs until now.
        living: Those of them that live.
        starts: How often it starts the runtime.
        runs: Whether the runtime runs afterwards.
        changed: Whether anything has to be done.
        size: What a reconfigure sets, by which its run is known.
        expires: When it expires, or a little before, by the monotonic clock.
    """

    activity: Activity
    before: tuple[Birth, ...]
    living: tuple[Birth, ...]
    starts: int
    runs: bool
    changed: bool
    size: str | None
    expires: float

    @property
    def action(self) -> str:
        """What was asked for."""
        return self.activity.action


@dataclass(frozen=True, slots=True)
class Terms:
    """How a report is judged; see `Actor.end`."""

    allowed: Collection[ReasonCode] = ()
    killed: Birth | None = None
    stubborn: bool = False


class Actor:
    """Dispatches to the one node of a rig, and judges.

    Args:
        rig: With an agent that runs.
        chance: Chooses.
        tally: Counts.
    """

    def __init__(self, rig: Rig, chance: random.Random, tally: Tally) -> None:
        self.rig = rig
        self.chance = chance
        self.tally = tally
        self.tolerated: Collection[str] = ()
        """Codes of conditions that a fault brings with it, for as long as it lasts."""
        self.outcomes: Counter[str] = Counter()
        """How many became what, as the reports say."""
        self._sizes = itertools.count(2)

    @property
    def pid(self) -> int:
        """The agent's."""
        return self.rig.agent.pid

    def alive(self) -> list[Birth]:
        """Return the runs of iggy that live."""
        return [birth for birth in self.rig.births(IGGY) if birth.alive]

    # --- dispatching

    async def begin(self, verb: str | None = None) -> Deed:
        """Dispatch an action, one by chance if none is named; iggy must be at rest."""
        verb = verb or self.chance.choice(VERBS)
        before = tuple(self.rig.births(IGGY))
        living = tuple(birth for birth in before if birth.alive)
        running = bool(living)
        size = None
        action = verb
        if verb == "reconfigure":
            size = f"{next(self._sizes)} MB"
            action = f"reconfigure:{await self.rig.api.create_config(IGGY, 'faults', {SIZE: size})}"
        expires = time.monotonic() + self.rig.options.activity_ttl
        activity = await self.rig.api.dispatch(IGGY, action)
        return Deed(
            activity,
            before,
            living,
            starts={"start": not running, "stop": 0, "restart": 1, "reconfigure": running}[verb],
            runs={"start": True, "stop": False, "restart": True, "reconfigure": running}[verb],
            changed={"start": not running, "stop": running}.get(verb, True),
            size=size,
            expires=expires,
        )

    async def bring_up(self) -> None:
        """See to it that iggy runs."""
        if not self.alive():
            await self.end(await self.begin("start"), "to bring it up")

    # --- judging

    async def end(
        self,
        deed: Deed,
        story: str,
        *,
        allowed: Collection[ReasonCode] = (),
        killed: Birth | None = None,
        stubborn: bool = False,
    ) -> Activity | None:
        """Wait for the report, and judge it; None when that failed, which is counted.

        Args:
            deed: What was begun.
            story: What was done to it, for people.
            allowed: Why it may be rejected, beside that it has expired, if it has; else it has to be completed.
            killed: The run that was killed meanwhile: then a start is expected where the report says that one was made.
            stubborn: Whether the runtime only ends by SIGKILL; else the report must not say so.
        """
        self.tally.cases += 1
        self.tally.reports_expected += 1
        activity: Activity | None = None
        try:
            activity = await self._finished(deed)
            if time.monotonic() >= deed.expires:
                allowed = {ReasonCode.EXPIRED, *allowed}
            terms = Terms(allowed, killed, stubborn)
            self.tally.reports_seen += 1
            self.outcomes[activity.code or activity.status] += 1
            await self._rests(deed)
            await self._judge(deed, activity, terms)
        except (AssertionError, TimeoutError) as error:
            if activity is not None:
                error.add_note(str(activity.raw))
            await self._failed(f"{deed.action}, {story}", error)
            return None
        return activity

    async def _failed(self, story: str, error: BaseException) -> None:
        error.add_note(self.rig.logs())
        self.tally.fail(story, error)
        if not self.rig.agent.alive:
            await self.rig.start_agent()

    def _require_agent(self) -> None:
        if not self.rig.agent.alive:
            msg = f"the agent ended with {self.rig.agent.exit_code}: {self.rig.agent.tail()}"
            raise FalseReportError(msg)

    async def _finished(self, deed: Deed) -> Activity:
        """Wait for the agent's own word: what the Supervisor says in its place is not it."""

        async def look() -> Activity | None:
            self._require_agent()
            found = await self.rig.api.get(deed.activity.id)
            open_still = found.status is ActivityStatus.PROCESSING or found.code == ReasonCode.NO_REPORT
            return None if open_still else found

        return await until(look, f"activity {deed.activity.id} has a report", within=PATIENCE, every=0.03)

    async def _rests(self, deed: Deed) -> None:
        """Wait until the agent knows that the report arrived, and finds nothing wrong any more."""

        async def look() -> bool:
            self._require_agent()
            row, status = await self.rig.journaled(deed.activity.id), await self.rig.ask("/v1/status")
            wrong = [found["code"] for found in status["conditions"]] if status else ["silent"]
            return row is not None and row["state"] == "reported" and set(wrong) <= set(self.tolerated)

        await until(look, "the agent is well, and has reported", within=PATIENCE, every=0.05)

    async def _judge(self, deed: Deed, activity: Activity, terms: Terms) -> None:
        new = self.rig.births(IGGY)[len(deed.before) :]
        alive = self.alive()
        completed = activity.status is ActivityStatus.COMPLETED
        exact = completed and terms.killed is None
        starts = deed.starts if exact else _starts_told(deed, activity, len(new))
        self.tally.effects_expected += starts
        self.tally.effects_seen += len(new)
        if len(new) > starts or len(alive) > 1:
            msg = f"it was started {len(new)} times instead of {starts}, and runs {len(alive)} times"
            raise RepeatedError(msg)
        if len(new) < starts:
            msg = f"it was started {len(new)} times instead of {starts}"
            raise LostError(msg)
        if (await self.rig.api.get(activity.id)).raw != activity.raw:
            msg = "the report changed after it was recorded"
            raise FalseReportError(msg)
        check_times(activity)
        if completed:
            _check_completed(deed, activity, new, alive, terms)
        else:
            check_rejected(activity, alive, terms)
            _check_undone(deed, activity, new, alive)


def check_times(activity: Activity) -> None:
    """Check that what is told of one activity is in order, and not in the future.

    Raises:
        FalseReportError: It is not.
    """
    times = {name: activity.raw.get(name) for name in ("created_at", "started_at", "finished_at")}
    told = [datetime.fromisoformat(moment) for moment in times.values() if moment]
    told.append(datetime.now(told[0].tzinfo))
    if any(later < earlier - SECOND for earlier, later in itertools.pairwise(told)):
        msg = f"its times are not in order: {times}, now {told[-1]}"
        raise FalseReportError(msg)


def _starts_told(deed: Deed, activity: Activity, seen: int) -> int:
    """Count the starts that a report says were made: in a rejected one each may have come to a run or not."""
    told: int = activity.evidence.get("calls", []).count("start")
    if activity.status is ActivityStatus.COMPLETED:
        return told
    return min(seen, told, deed.starts + (deed.size is not None))


def _check_completed(
    deed: Deed, activity: Activity, new: Sequence[Birth], alive: Sequence[Birth], terms: Terms
) -> None:
    false: dict[str, object] = {}
    if bool(alive) is not deed.runs and terms.killed is None:
        false["runs"] = bool(alive)
    if activity.changed is not deed.changed and terms.killed is None:
        false["changed"] = activity.changed
    after: Mapping[str, str] = activity.evidence.get("after") or {}
    if deed.runs and alive and told_run(after) != (alive[0].pid, alive[0].start_ticks):
        false["run"] = after
    if new and alive != [new[-1]] and new[-1] != terms.killed:
        false["alive"] = alive
    if deed.size is not None and alive and alive[0].environment.get(SIZE) != deed.size:
        false["config"] = alive[0].environment.get(SIZE)
    told = activity.evidence.get("killed")
    if terms.killed is None and told is not None and told is not terms.stubborn:
        false["killed"] = told
    if false:
        msg = f"completed, but: {false}"
        raise FalseReportError(msg)


def _check_undone(deed: Deed, activity: Activity, new: Sequence[Birth], alive: Sequence[Birth]) -> None:
    """Check that what was not done is as it was: all of it, or the config of a reconfigure.

    One that says that it changed something, as a restart whose start found no room, has to say truly what runs now.
    """
    if activity.changed:
        runs = activity.raw["evidence"].get("after", {}).get("state") == RuntimeState.RUNNING
        untrue = activity.code in WITHOUT_EFFECT and runs != bool(alive)
    else:
        untrue = activity.code in WITHOUT_EFFECT and bool(new or tuple(alive) != deed.living)
    if untrue:
        msg = f"rejected as {activity.code}, and what ran is {deed.living}, what was started {new}, what runs {alive}"
        raise FalseReportError(msg)
    if activity.code == ReasonCode.ROLLED_BACK and alive[0].environment.get(SIZE) == deed.size:
        msg = f"rolled back, and what runs has the new config: {deed.size}"
        raise FalseReportError(msg)


def check_rejected(activity: Activity, alive: Sequence[Birth], terms: Terms) -> None:
    """Check that a rejection is one that may come, in the agent's words, and true of what lives.

    Raises:
        FalseReportError: It is not.
    """
    message = activity.message or ""
    if activity.code not in terms.allowed or not message.startswith("cannot "):
        msg = f"rejected: {activity.code}: {message}"
        raise FalseReportError(msg)
    if activity.code == ReasonCode.ROLLED_BACK and len(alive) != 1:
        msg = f"rolled back, and what runs is {alive}"
        raise FalseReportError(msg)
    # What was rolled back tells in `after` how the attempt ended.
    fact = "running" if activity.code == ReasonCode.ROLLED_BACK else "after"
    after: Mapping[str, str] = activity.evidence.get(fact) or {}
    if after.get("state") in DOWN and alive:
        msg = f"rejected, and what it says is down runs: {after}, {alive}"
        raise FalseReportError(msg)
    there = [(run.pid, run.start_ticks) for run in (*alive, *([] if terms.killed is None else [terms.killed]))]
    if after.get("state") == "running" and told_run(after) not in there:
        msg = f"rejected, and the run that it says is there is not: {after}, {alive}"
        raise FalseReportError(msg)


def told_run(observation: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the pid and the start ticks of the run that a report names; None when it names none."""
    parts = (observation.get("incarnation") or "").split(".")
    return (int(parts[-2]), int(parts[-1])) if len(parts) > 2 else None


@asynccontextmanager
async def acting(
    ground: Ground,
    tally: Tally,
    options: Options = USUAL,
    *,
    program: Sequence[str] = AGENT,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Actor]:
    """Set up a Supervisor and a node whose agent lives through it all, and does not end but for a fault of its own."""
    async with Rig(standin_programs(), options, agent_program=program) as rig:
        await rig.start_agent(environment=environment)
        actor = Actor(rig, ground.chance, tally)
        yield actor
        tally.notes.append(
            "they became " + ", ".join(f"{word} {count}" for word, count in actor.outcomes.most_common())
        )
        if not rig.agent.alive:
            msg = f"the agent ended with {rig.agent.exit_code}"
            tally.fail(rig.agent.tail(), FalseReportError(msg))
