"""What one node is given to do while the network is bad: some activities at once, and then the judge looks at them.

The judge knows how the runtime was before and what was dispatched, so it knows how often the runtime had to be started:
once for each start of a stopped one, each restart, and each reconfigure of a running one, and once more for going back.
An activity whose wait was ended by a later one has had its effect too. Starts are counted as the runtime records them;
one that was ended before it could record itself is known by the report that names it, and not counted.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from agent.protocol import ActivityStatus, ReasonCode
from tests.e2e.births import Birth
from tests.e2e.crash_node import IGGY, CrashNode
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.faults.deeds import SIZE, told_run
from tests.faults.deeds import USUAL as DEEDS
from tests.faults.tally import FalseReportError, LostError, RepeatedError, Tally

USUAL = replace(DEEDS, ready_timeout=15.0, stop_timeout=15.0)
PATIENCE = 90.0
"""Seconds within which everything has its report, also in a storm."""
SUPERSEDING = ("stop", "restart", "good", "bad")
BAD = {"IGGY_SYSTEM_MEMORY_POOL_SIZE": "1 MiB"}
"""A config that the runtime refuses, and ends."""


@dataclass(frozen=True, slots=True)
class Errand:
    """One activity, and what it comes to.

    Attributes:
        verb: `start`, `stop`, `restart`, or a reconfigure with a `good` or a `bad` config.
        starts: How often it starts the runtime.
        runs: Whether the runtime runs afterwards.
        changed: Whether anything has to be done.
        last: Whether nothing comes later that may end its wait.
    """

    verb: str
    starts: int
    runs: bool
    changed: bool
    last: bool


def plan(verbs: Sequence[str], *, runs: bool) -> list[Errand]:
    """Say what activities come to that are dispatched one after the other.

    Args:
        verbs: In order; a reconfigure is the last, if there is one.
        runs: Whether the runtime runs before.
    """
    errands = []
    for number, verb in enumerate(verbs):
        starts = {"start": not runs, "stop": 0, "restart": 1, "good": runs, "bad": 2 * runs}[verb]
        changed = {"start": not runs, "stop": runs}.get(verb, True)
        runs = {"start": True, "stop": False, "restart": True}.get(verb, runs)
        last = not any(later in SUPERSEDING for later in verbs[number + 1 :])
        errands.append(Errand(verb, starts, runs, changed, last))
    return errands


class Node:
    """A node that is given errands.

    Args:
        node: With an agent that is kept alive.
        chance: Chooses what is done.
        tally: Counts.
        quiet: Held by whoever must not be disturbed: a dispatch, or a restart of the Supervisor.
    """

    def __init__(self, node: CrashNode, chance: random.Random, tally: Tally, quiet: asyncio.Lock | None = None) -> None:
        self.node = node
        self.chance = chance
        self.tally = tally
        self.quiet = quiet or asyncio.Lock()
        self.reported: list[Activity] = []
        """As they were when they were judged."""
        self.forgotten: list[Activity] = []
        """Those that a Supervisor that was put back does not know any more."""
        self.size: str | None = None
        """What a run is known by that has the config which is in use; None while it is the one of the start."""
        self.committed: str | None = None
        """The same of the one that was last seen ready, to which one that fails goes back."""
        self._wanted: str | None = None
        self._sizes = itertools.count(2)

    # --- dispatching

    def choose(self) -> list[str]:
        """Choose one to four verbs."""
        verbs = [
            self.chance.choice(("start", "restart", "restart", "stop"))
            for _ in range(self.chance.choice((0, 1, 1, 2, 3)))
        ]
        runs = plan(verbs, runs=bool(self.node.alive()))[-1].runs if verbs else bool(self.node.alive())
        if not verbs or self.chance.random() < 0.3:
            verbs.append("bad" if runs and self.chance.random() < 0.3 else "good")
        return verbs

    async def dispatch(self, verbs: Sequence[str]) -> list[Activity]:
        """Dispatch them at once."""
        actions = [verb if verb in {"start", "stop", "restart"} else await self._config(verb) for verb in verbs]
        return [await self.node.dispatch(action) for action in actions]

    async def _config(self, verb: str) -> str:
        self._wanted = f"{next(self._sizes)} MB"
        values = {SIZE: self._wanted, **(BAD if verb == "bad" else {})}
        return f"reconfigure:{await self.node.rig.api.create_config(IGGY, self.node.folder.name, values)}"

    async def run(self, verbs: Sequence[str] | None = None, story: str = "") -> list[Activity]:
        """Dispatch, wait, and judge; what is wrong is counted."""
        async with self.quiet:
            verbs = verbs or self.choose()
            before = self.node.births()
            errands = plan(verbs, runs=bool(self.node.alive()))
            activities = await self.dispatch(verbs)
        return await self.end(before, errands, activities, story)

    async def end(
        self, before: Sequence[Birth], errands: Sequence[Errand], activities: Sequence[Activity], story: str = ""
    ) -> list[Activity]:
        """Wait for what was dispatched, and judge; returns what was reported."""
        self.tally.cases += len(activities)
        self.tally.reports_expected += len(activities)
        found: list[Activity] = []
        try:
            found = [await self.finished(activity) for activity in activities]
            self.reported += found
            self.tally.reports_seen += len(found)
            await self.node.rest()
        except TimeoutError as error:
            error.add_note(self._log())
            self.tally.fail(self._tell(errands, story), error)
        try:
            self._judge(before, errands, found)
        except AssertionError as error:
            error.add_note("\n".join(str(activity.raw) for activity in found))
            error.add_note(self._log())
            self.tally.fail(self._tell(errands, story), error)
        return found

    def _tell(self, errands: Sequence[Errand], story: str) -> str:
        return f"{story} {' '.join(errand.verb for errand in errands[:20])} on {self.node.folder.name}".strip()

    def _log(self) -> str:
        return "\n".join((self.node.folder / "agent.log").read_text(errors="replace").splitlines()[-25:])

    async def finished(self, activity: Activity) -> Activity:
        """Wait until an activity is finished, also while the Supervisor is away."""

        async def look() -> Activity | None:
            try:
                found = await self.node.rig.api.get(activity.id)
            except (aiohttp.ClientError, TimeoutError):
                return None
            return None if found.status is ActivityStatus.PROCESSING else found

        return await until(look, f"activity {activity.id} ({activity.action}) is finished", within=PATIENCE, every=0.1)

    # --- judging

    def _judge(self, before: Sequence[Birth], errands: Sequence[Errand], found: Sequence[Activity]) -> None:
        new, alive = self.node.births()[len(before) :], self.node.alive()
        if len(alive) > 1:
            msg = f"{len(alive)} run"
            raise RepeatedError(msg)
        if len(found) < len(errands):
            return
        effects = list(_assign(errands, found, [_run(birth) for birth in new], _run(before[-1]) if before else None))
        expected = sum(starts for starts, _ in effects)
        self.tally.effects_expected += expected
        self.tally.effects_seen += len(new)
        if len(new) != expected:
            msg = f"it was started {len(new)} times instead of {expected}"
            raise (RepeatedError if len(new) > expected else LostError)(msg)
        if bool(alive) is not errands[-1].runs:
            msg = f"it {'runs' if alive else 'does not run'}"
            raise FalseReportError(msg)
        self._follow_configs(errands, found)
        if alive and alive[0].environment.get(SIZE) != self.size:
            msg = f"it runs with {alive[0].environment.get(SIZE)}, and not with {self.size}"
            raise FalseReportError(msg)
        for errand, activity, (_, run) in zip(errands, found, effects, strict=True):
            _check(errand, activity, run)

    def _follow_configs(self, errands: Sequence[Errand], found: Sequence[Activity]) -> None:
        """Follow which config is in use: with a run that was seen ready it becomes the one to go back to."""
        for errand, activity in zip(errands, found, strict=True):
            completed = activity.status is ActivityStatus.COMPLETED
            if errand.verb == "good":
                self.size = self._wanted
            elif errand.verb == "bad":
                self.size = self.committed
            if completed and errand.runs:
                self.committed = self.size

    async def check_again(self) -> None:
        """Check that no report changed since it was judged."""
        for activity in self.reported:
            again = await self.node.rig.api.get(activity.id)
            if again.raw != activity.raw:
                msg = f"the report changed after it was recorded: {activity.raw}, {again.raw}"
                self.tally.fail(self.node.folder.name, FalseReportError(msg))
        self.reported.clear()

    async def is_well(self) -> bool:
        """Whether the agent finds nothing wrong any more.

        Raises:
            FalseReportError: It has another report for an activity than the Supervisor, which nothing heals.
        """
        status = await self.node.ask("/v1/status")
        codes = {condition["code"] for condition in status["conditions"]} if status else {"no answer"}
        if "report_conflict" in codes:
            msg = f"the agent reported something else before: {status}"
            raise FalseReportError(msg)
        return not codes

    async def get_well(self, within: float = PATIENCE) -> None:
        """Wait until it is well again by itself."""
        try:
            await until(self.is_well, f"the agent of {self.node.folder.name} is well", within=within, every=0.1)
        except (AssertionError, TimeoutError) as error:
            error.add_note(str(await self.node.conditions()))
            error.add_note(self._log())
            self.tally.fail("after the fault", error)


Run = tuple[int, int]
"""A pid, and when it began."""


def _run(birth: Birth) -> Run:
    return birth.pid, birth.start_ticks


def _facts(errand: Errand, activity: Activity) -> Mapping[str, Any]:
    """Return what a report says of the runtime as the activity left it."""
    return activity.evidence.get("running" if errand.verb in {"good", "bad"} else "after") or {}


def _assign(
    errands: Sequence[Errand], found: Sequence[Activity], new: Sequence[Run], last: Run | None
) -> Iterator[tuple[int, Run | None]]:
    """Say of each activity how many of the new runs are its own, and which is the newest after it.

    Args:
        errands: In order.
        found: What was reported of them.
        new: The runs that were recorded meanwhile.
        last: The newest one before.

    Raises:
        LostError: One whose wait was ended names no run of its own: it has to have started one, or it had no wait.
    """
    left = list(new)
    for errand, activity in zip(errands, found, strict=True):
        told = told_run(_facts(errand, activity))
        if errand.starts and activity.code == ReasonCode.SUPERSEDED and told not in left[:1]:
            if told in {None, last}:
                msg = f"{errand.verb} was superseded, and names no run that it started: {told}"
                raise LostError(msg)
            last = told
            yield 0, last
        else:
            own, left = left[: errand.starts], left[errand.starts :]
            last = own[-1] if own else last
            yield errand.starts, last


def _check(errand: Errand, activity: Activity, run: Run | None) -> None:
    """Check that a report is true.

    Args:
        errand: What it was to do.
        activity: As it was reported.
        run: The newest run after it.
    """
    false: dict[str, object] = {}
    if errand.verb == "bad" and errand.starts:
        if activity.code != ReasonCode.ROLLED_BACK:
            false["code"] = activity.code
    elif activity.status is ActivityStatus.REJECTED:
        if errand.last or activity.code != ReasonCode.SUPERSEDED:
            false["code"] = f"{activity.code}: {activity.message}"
    elif activity.changed is not errand.changed:
        false["changed"] = activity.changed
    facts = _facts(errand, activity)
    if errand.runs and told_run(facts) != run:
        false["run"] = facts
    if activity.status is ActivityStatus.COMPLETED and (facts.get("state") == "running") is not errand.runs:
        false["state"] = facts.get("state")
    if activity.evidence.get("killed"):
        false["killed"] = True
    if false:
        msg = f"the report on {errand.verb} is not true: {false}"
        raise FalseReportError(msg)


@asynccontextmanager
async def judged(nodes: Sequence[Node]) -> AsyncIterator[None]:
    """Judge at the end what every row has in common: all are well, nothing is open, and no report changed."""
    yield
    for node in nodes:
        await node.get_well()
        await node.check_again()
    ids = {node.node.node_id for node in nodes}
    left = [found for found in await nodes[0].node.rig.api.activities() if found.node_id in ids]
    for activity in left:
        if activity.status is ActivityStatus.PROCESSING:
            nodes[0].tally.fail("at the end", LostError(f"it is still processing: {activity.raw}"))
