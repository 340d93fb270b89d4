"""What the judge of a damaged journal accepts and what it does not; the runs are real processes."""

import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.protocol import ActivityStatus
from tests.e2e.births import Birth
from tests.e2e.public_api import Activity
from tests.faults.deeds import SIZE, Deed
from tests.faults.disk_judge import UNSEEN, DamagedActor, is_known_to_be_older, was_left_stopped
from tests.faults.tally import Tally

NOW = datetime.now(UTC).isoformat()
NOTICED = ("a cut journal", "an emptied journal", "a deleted journal")
MAY_REPEAT = (
    *("a cut log", "an emptied log", "a deleted log", "flipped bits in the log", "an old copy"),
    "flipped bits in the journal",
)


def status(
    *conditions: str, calls: int = 2, failures: int = 0, waiting: int = 0, unreported: int = 0
) -> dict[str, Any]:
    """Say how an agent is: by itself one that has compared its journal, and has nothing to do."""
    return {
        "link": {"activities": {"calls": calls, "failures": failures}},
        "conditions": [{"code": code} for code in conditions],
        "journal": {"waiting": waiting, "unreported": unreported},
    }


class Told:
    """Has what a rig tells, as a test puts it."""

    def __init__(self) -> None:
        self.runs: list[Birth] = []
        self.recorded: dict[str, Any] = {}
        self.row: dict[str, Any] | None = {"state": "reported"}
        self.statuses: list[dict[str, Any]] = [status()]
        """What the agent says, one after the other; the last one stays."""
        self.runs_on: Callable[[], None] = lambda: None
        """Is what a dispatch comes to."""
        self.dispatched = 0
        self.agent = SimpleNamespace(alive=True, exit_code=None, tail=str)
        self.launched = 0
        self.options = SimpleNamespace(activity_ttl=60.0)
        self.api = SimpleNamespace(get=self._get, call=self._call, dispatch=self._dispatch)
        self.processes: list[subprocess.Popen[bytes]] = []

    async def _get(self, _: int) -> Activity:
        return Activity.of(self.recorded)

    async def _call(self, *_: object) -> dict[str, Any]:
        return {}

    async def _dispatch(self, *_: object) -> Activity:
        self.dispatched += 1
        dispatched = Activity.of(raw(status="processing"))
        self.runs_on()
        return dispatched

    async def journaled(self, _: int) -> dict[str, Any] | None:
        return self.row

    async def ask(self, _: str) -> dict[str, Any]:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def births(self, _: object) -> list[Birth]:
        return list(self.runs)

    def logs(self) -> str:
        return ""

    def launch_agent(self) -> None:
        self.launched += 1
        self.agent.alive = True

    async def start_agent(self) -> None:
        self.launch_agent()

    def start(self, size: str = "1 MB") -> Birth:
        """Start a run in place of the one that is there."""
        self.stop()
        process = subprocess.Popen(["sleep", "60"], env={**os.environ, SIZE: size})
        self.processes.append(process)
        environ, deadline = Path(f"/proc/{process.pid}/environ"), time.monotonic() + 10
        while size.encode() not in environ.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.001)  # a moment after it is executed, it has none yet
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
    living = tuple(run for run in rig.runs if run.alive)
    return Deed(
        Activity.of(raw()), tuple(rig.runs), living, starts=1, runs=True, changed=True, size=None, expires=float("inf")
    )


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
    actor.damage, rig.row = "a cut log", None
    rig.recorded = report(rig.start())
    await actor.end(deed, "after it")
    assert (actor.repeated, actor.tally.wrong) == (1, 0)
    rig.recorded = report(first)
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


# --- repeats


@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("damage", ["", *NOTICED, *MAY_REPEAT])
async def test_a_repeat_is_a_note_after_a_damage_that_may_go_unseen_and_else_a_failure(
    rig: Told, actor: DamagedActor, damage: str, *, early: bool, known: bool
) -> None:
    deed, first = restart(rig), rig.start()
    rig.recorded = report(first) if early else raw(status="processing")
    await actor.look_at_death(deed)
    actor.damage, actor.known = damage, known
    again = rig.start()
    rig.recorded = report(first if early else again)
    await actor.end(deed, "after it")
    noted = damage in MAY_REPEAT and not known
    assert (actor.repeated, actor.tally.repeated, actor.tally.wrong) == (int(noted), int(not noted), int(not noted))


@pytest.mark.parametrize(
    ("revision", "content", "known"),
    [(6, b"", True), (7, b"", False), (8, b"", False), (7, b"not a database at all", True), (None, b"", True)],
    ids=["older", "the same", "newer", "unreadable", "empty"],
)
def test_a_journal_is_known_to_be_older_by_its_revision_or_when_it_cannot_be_read(
    tmp_path: Path, revision: int | None, content: bytes, *, known: bool
) -> None:
    journal, supervisor = tmp_path / "journal.db", tmp_path / "supervisor.db"
    with closing(sqlite3.connect(supervisor)) as store:
        store.executescript("CREATE TABLE nodes (id, revision); INSERT INTO nodes VALUES (3, 7), (4, 99);")
    with closing(sqlite3.connect(journal)) as made:
        made.executescript("PRAGMA journal_mode = WAL; CREATE TABLE journal (revision)")
        if revision is not None:
            made.execute("INSERT INTO journal VALUES (?)", (revision,))
            made.commit()
        if content:
            journal.write_bytes(content)
            (tmp_path / "journal.db-wal").write_bytes(b"")
        before = journal.read_bytes()
        assert is_known_to_be_older(journal, supervisor, 3) is known
        assert journal.read_bytes() == before


async def test_an_agent_that_ended_to_begin_a_new_journal_is_started_again_and_counted_and_another_end_is_false(
    rig: Told, actor: DamagedActor
) -> None:
    deed, actor.damage = restart(rig), "flipped bits in the journal"
    rig.recorded = report(rig.start())
    rig.agent.alive, rig.agent.exit_code = False, 74
    await actor.end(deed, "after it")
    assert (actor.ended, rig.launched, actor.tally.wrong) == (1, 1, 0)
    rig.agent.alive, rig.agent.exit_code = False, 70
    await actor.end(deed, "after it")
    assert (actor.ended, actor.tally.false) == (1, 1)


# --- nothing was damaged


async def test_without_a_damage_everything_is_judged_as_everywhere_and_an_early_one_counts_once(
    rig: Told, actor: DamagedActor
) -> None:
    deed = restart(rig)
    rig.recorded = report(rig.start())
    await actor.look_at_death(deed)
    assert await actor.end(deed, "killed") is not None
    assert (actor.tally.wrong, actor.tally.effects_expected, actor.tally.effects_seen) == (0, 1, 1)


async def test_without_a_damage_no_outcome_is_unknown(rig: Told, actor: DamagedActor) -> None:
    deed, reason = restart(rig), {"code": "outcome_unknown", "message": "cannot tell"}
    rig.recorded = raw(status="rejected", reason=reason)
    await actor.end(deed, "killed")
    assert actor.tally.false == 1
    actor.damage = "a cut log"
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


async def test_without_a_damage_the_journal_has_to_know_the_report(
    rig: Told, actor: DamagedActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.deeds.PATIENCE", 0.2)
    deed = restart(rig)
    rig.recorded, rig.row = report(rig.start()), None
    await actor.end(deed, "killed")
    assert actor.tally.lost == 1
    actor.damage = "a cut log"
    await actor.end(deed, "after it")
    assert actor.tally.lost == 1


# --- what a late report says


@pytest.mark.parametrize(
    "after",
    [
        {},
        {"state": "running"},
        {"state": "starting", "incarnation": "boot.1.2"},
        {"state": "stopped", "incarnation": "boot.1.2"},
    ],
    ids=["nothing", "no run", "starting", "stopped"],
)
async def test_a_completed_report_names_the_run_that_lives(
    rig: Told, actor: DamagedActor, after: dict[str, str]
) -> None:
    deed, actor.damage = restart(rig), "a cut log"
    rig.start()
    rig.recorded = raw(evidence={"after": after, "calls": ["stop", "start"]})
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


async def test_what_lives_after_a_completed_report_is_the_run_that_began_last(rig: Told, actor: DamagedActor) -> None:
    deed, actor.damage = restart(rig), "a cut log"
    rig.recorded = report(rig.start())
    rig.runs.insert(-1, Birth("iggy-server", os.getpid(), 1))
    await actor.end(deed, "after it")
    assert (actor.repeated, actor.tally.wrong) == (1, 0)
    rig.runs.reverse()
    rig.runs.insert(0, rig.runs.pop())
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


async def test_a_report_claims_no_change_that_was_not_and_no_kill(rig: Told, actor: DamagedActor) -> None:
    deed = replace(restart(rig), starts=0, changed=False)
    actor.damage = "a cut log"
    rig.recorded = report(rig.runs[-1])
    await actor.end(deed, "after it")
    assert actor.tally.false == 1
    rig.recorded["changed"] = False
    await actor.end(deed, "after it")
    assert actor.tally.false == 1
    rig.recorded["evidence"]["killed"] = True
    await actor.end(deed, "after it")
    assert actor.tally.false == 2


@pytest.mark.parametrize("moment", ["created_at", "started_at", "finished_at"])
async def test_the_times_of_a_late_report_are_in_order(rig: Told, actor: DamagedActor, moment: str) -> None:
    deed, actor.damage = restart(rig), "a cut journal"
    rig.recorded = report(rig.start()) | {moment: (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


@pytest.mark.parametrize("message", ["", "no idea"])
async def test_a_late_rejection_says_what_it_cannot_do(rig: Told, actor: DamagedActor, message: str) -> None:
    deed, actor.damage = restart(rig), "a cut journal"
    rig.recorded = raw(status="rejected", reason={"code": "outcome_unknown", "message": message})
    await actor.end(deed, "after it")
    assert actor.tally.false == 1


# --- the next one


async def test_the_next_one_is_dispatched_once_nothing_can_be_unknown_and_is_completed(
    rig: Told, actor: DamagedActor
) -> None:
    lost = status("journal_lost", waiting=1)
    waiting = [status(waiting=1), status(unreported=1)]
    unheard = [status(calls=0), status(calls=1), status(calls=2, failures=1)]
    rig.statuses = [*unheard, status(), lost, lost, *waiting, status()]
    left: list[int] = []

    def start() -> None:
        left.append(len(rig.statuses))
        rig.recorded = report(rig.start("2 MB"))

    actor.damage, rig.runs_on = "an old copy", start
    await actor.require_next("an old copy", "2 MB")
    assert (left, rig.dispatched, actor.tally.wrong, actor.tally.effects_seen) == ([1], 1, 0, 1)


async def test_an_agent_that_never_compares_its_journal_fails_and_is_given_nothing(
    rig: Told, actor: DamagedActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.disk_judge.PATIENCE", 0.2)
    for said in (status(calls=1), status("journal_lost"), status(waiting=1)):
        rig.statuses = [said]
        await actor.require_next("a cut log", None)
    assert (rig.dispatched, actor.tally.lost) == (0, 3)


@pytest.mark.parametrize("code", ["outcome_unknown", "start_failed"])
async def test_a_next_one_that_is_rejected_is_a_failure(rig: Told, actor: DamagedActor, code: str) -> None:
    rig.recorded = raw(status="rejected", reason={"code": code, "message": "cannot tell"})
    actor.damage = "a cut log"
    await actor.require_next("a cut log", None)
    assert actor.tally.false == 1


async def test_a_next_one_that_leaves_nothing_running_is_a_failure_and_no_end(rig: Told, actor: DamagedActor) -> None:
    def end() -> None:
        rig.recorded = report(rig.start())
        rig.stop()

    actor.damage, rig.runs_on = "a cut log", end
    await actor.require_next("a cut log", "2 MB")
    assert actor.tally.wrong == 1


async def test_a_next_one_that_is_done_twice_or_with_another_config_is_a_failure(
    rig: Told, actor: DamagedActor
) -> None:
    def start() -> None:
        rig.recorded = report(rig.start())

    def start_twice() -> None:
        rig.start()
        start()

    actor.damage, rig.runs_on = "a cut log", start_twice
    await actor.require_next("a cut log", None)
    assert (actor.tally.repeated, actor.tally.false) == (1, 0)
    rig.runs_on = start
    await actor.require_next("a cut log", "2 MB")
    assert (actor.tally.repeated, actor.tally.false) == (1, 1)


# --- left stopped

ACTION = "reconfigure:7"
RAN = Birth("iggy-server", os.getpid(), 1)
STOPPED = {"state": "stopped", "incarnation": incarnation(RAN)}
EVIDENCE: dict[str, Any] = {"before": STOPPED, "after": STOPPED, "running": STOPPED, "outcome": "applied", "calls": []}


def found_stopped(**more: object) -> Activity:
    return Activity.of(raw(ACTION, evidence=EVIDENCE | more))


LEFT = Deed(found_stopped(), (RAN,), (), starts=1, runs=True, changed=True, size="2 MB", expires=float("inf"))


@pytest.mark.parametrize("damage", sorted(UNSEEN))
def test_a_reconfigure_that_found_its_runtime_stopped_after_an_unseen_damage_left_it_stopped(damage: str) -> None:
    assert was_left_stopped(damage, LEFT, found_stopped(), (), ())
    assert was_left_stopped(damage, LEFT, found_stopped(calls=["switch"]), (), ())


@pytest.mark.parametrize(
    "activity",
    [
        found_stopped(calls=["switch", "start"]),
        found_stopped(calls=["switch", "stop"]),
        found_stopped(calls=["recreate"]),
        found_stopped(calls=["restart"]),
        found_stopped(before={"state": "running", "incarnation": incarnation(RAN)}),
        found_stopped(before={"state": "stopped", "incarnation": "boot.1.2"}),
        found_stopped(before={}),
        found_stopped(after={"state": "running", "incarnation": incarnation(RAN)}),
        found_stopped(running={"state": "running", "incarnation": incarnation(RAN)}),
        found_stopped(outcome="rolled_back"),
        replace(found_stopped(), status=ActivityStatus.REJECTED),
    ],
    ids=[
        "start",
        "stop",
        "recreate",
        "restart",
        "ran",
        "another",
        "unknown",
        "after",
        "running",
        "outcome",
        "rejected",
    ],
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
