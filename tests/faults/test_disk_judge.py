"""What the judge of a damaged journal accepts and what it does not; the runs are real processes."""

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.protocol import ActivityStatus
from tests.e2e.births import Birth
from tests.e2e.public_api import Activity
from tests.faults.deeds import Deed
from tests.faults.disk_judge import UNSEEN, DamagedActor, was_left_stopped
from tests.faults.tally import Tally

NOW = datetime.now(UTC).isoformat()


class Told:
    """Has what a rig tells, as a test puts it."""

    def __init__(self) -> None:
        self.runs: list[Birth] = []
        self.recorded: dict[str, Any] = {}
        self.agent = SimpleNamespace(alive=True)
        self.api = SimpleNamespace(get=self._get, call=self._call)
        self.processes: list[subprocess.Popen[bytes]] = []

    async def _get(self, _: int) -> Activity:
        return Activity.of(self.recorded)

    async def _call(self, *_: object) -> dict[str, Any]:
        return {}

    async def journaled(self, _: int) -> None:
        return None

    async def ask(self, _: str) -> dict[str, Any]:
        return {"conditions": []}

    def births(self, _: object) -> list[Birth]:
        return list(self.runs)

    def logs(self) -> str:
        return ""

    def start(self) -> Birth:
        """Start a run in place of the one that is there."""
        self.stop()
        process = subprocess.Popen(["sleep", "60"])
        self.processes.append(process)
        ticks = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        self.runs.append(Birth("iggy-server", process.pid, ticks))
        return self.runs[-1]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def rig() -> Iterator[Told]:
    """A node with one run."""
    told = Told()
    told.start()
    yield told
    told.stop()


@pytest.fixture
def actor(rig: Told) -> DamagedActor:
    return DamagedActor(rig, random.Random(1), Tally("a row"))  # type: ignore[arg-type]  # as far as it is asked


def raw(action: str = "restart", status: str = "completed", **more: object) -> dict[str, Any]:
    times = {"created_at": NOW, "started_at": NOW, "finished_at": NOW}
    return (
        {"id": 1, "runtime": "iggy", "action": action, "node_id": 1, "status": status, "changed": True} | times | more
    )


def incarnation(run: Birth) -> str:
    return f"boot.{run.pid}.{run.start_ticks}"


def report(run: Birth) -> dict[str, Any]:
    """Tell of a restart that ended with this run."""
    return raw(evidence={"after": {"state": "running", "incarnation": incarnation(run)}, "calls": ["stop", "start"]})


def restart(rig: Told) -> Deed:
    return Deed(Activity.of(raw()), tuple(rig.runs), starts=1, runs=True, changed=True, size=None, expires=float("inf"))


async def test_what_was_reported_before_the_damage_is_judged_by_what_ran_then_and_a_repeat_is_counted(
    rig: Told, actor: DamagedActor
) -> None:
    deed = restart(rig)
    rig.recorded = report(rig.start())
    await actor.look_at_death(deed)
    actor.damage = "flipped bits in the log"
    rig.start()
    assert await actor.end(deed, "after it") is not None
    assert (actor.repeated, actor.tally.wrong, actor.tally.effects_seen) == (1, 0, 1)


async def test_what_was_false_before_the_damage_stays_false_also_when_it_comes_true(
    rig: Told, actor: DamagedActor
) -> None:
    deed, other = restart(rig), Birth("iggy-server", os.getpid(), 1)
    rig.start()
    rig.recorded = report(other)
    await actor.look_at_death(deed)
    assert actor.tally.false == 1
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


async def test_a_report_that_changes_after_the_damage_is_false(rig: Told, actor: DamagedActor) -> None:
    deed = restart(rig)
    rig.recorded = report(rig.start())
    await actor.look_at_death(deed)
    rig.recorded = report(rig.start())
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


async def test_what_is_reported_after_the_damage_is_judged_by_what_runs_now(rig: Told, actor: DamagedActor) -> None:
    deed = restart(rig)
    first = rig.start()
    rig.recorded = raw(status="processing")
    await actor.look_at_death(deed)
    rig.recorded = report(rig.start())
    await actor.end(deed, "after it")
    assert (actor.repeated, actor.tally.wrong) == (1, 0)
    rig.recorded = report(first)
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


# --- left stopped

ACTION = "reconfigure:7"
RAN = Birth("iggy-server", os.getpid(), 1)
STOPPED = {"state": "stopped", "incarnation": incarnation(RAN)}
EVIDENCE: dict[str, Any] = {"before": STOPPED, "after": STOPPED, "running": STOPPED, "outcome": "applied", "calls": []}


def found_stopped(**more: object) -> Activity:
    return Activity.of(raw(ACTION, evidence=EVIDENCE | more))


LEFT = Deed(found_stopped(), (RAN,), starts=1, runs=True, changed=True, size="2 MB", expires=float("inf"))


@pytest.mark.parametrize("damage", sorted(UNSEEN))
def test_a_reconfigure_that_found_its_runtime_stopped_after_an_unseen_damage_left_it_stopped(damage: str) -> None:
    assert was_left_stopped(damage, LEFT, found_stopped(), (), ())
    assert was_left_stopped(damage, LEFT, found_stopped(calls=["switch"]), (), ())


@pytest.mark.parametrize(
    "activity",
    [
        found_stopped(calls=["switch", "start"]),
        found_stopped(before={"state": "running", "incarnation": incarnation(RAN)}),
        found_stopped(before={"state": "stopped", "incarnation": "boot.1.2"}),
        found_stopped(before={}),
        found_stopped(after={"state": "running", "incarnation": incarnation(RAN)}),
        found_stopped(running={"state": "running", "incarnation": incarnation(RAN)}),
        found_stopped(outcome="rolled_back"),
        replace(found_stopped(), status=ActivityStatus.REJECTED),
    ],
    ids=["start", "ran", "another", "unknown", "after", "running", "outcome", "rejected"],
)
def test_a_report_that_does_not_say_all_of_it_is_no_excuse(activity: Activity) -> None:
    assert not was_left_stopped("a cut log", LEFT, activity, (), ())


def test_nothing_else_is_left_stopped() -> None:
    for damage in ("", "a cut journal", "an emptied journal", "a deleted journal", "flipped bits in the journal"):
        assert not was_left_stopped(damage, LEFT, found_stopped(), (), ())
    assert not was_left_stopped("a cut log", replace(LEFT, size=None), found_stopped(), (), ())
    assert not was_left_stopped("a cut log", replace(LEFT, starts=0), found_stopped(), (), ())
    assert not was_left_stopped("a cut log", LEFT, found_stopped(), (RAN,), ())
    assert not was_left_stopped("a cut log", LEFT, found_stopped(), (), (RAN,))


async def test_a_runtime_that_was_left_stopped_is_counted_and_is_lost_where_no_damage_explains_it(
    rig: Told, actor: DamagedActor
) -> None:
    rig.stop()
    rig.runs, rig.recorded = [Birth("iggy-server", RAN.pid, RAN.start_ticks)], found_stopped().raw
    actor.damage = "a cut log"
    await actor.end(LEFT, "after it")
    assert (actor.left_stopped, actor.tally.wrong) == (1, 0)
    actor.damage = "a cut journal"
    await actor.end(LEFT, "after it")
    assert (actor.left_stopped, actor.tally.lost) == (1, 1)
