"""What a journal cannot know is never carried out: it is completed if it is true, else its outcome is unknown."""

import asyncio
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from agent.activities import lanes as lanes_module
from agent.protocol import Reason, ReasonCode, ReportStatus, Verb
from agent.runtimes.driver import Observation
from tests.activities.conftest import BOOT, Bench, make_config, open_journal


async def lose_the_journal(bench: Bench) -> None:
    await bench.kill()
    for file in bench.folder.glob("journal.db*"):
        file.unlink()
    bench.journal = await open_journal(bench.folder, bench.conditions)


@pytest.mark.parametrize(
    ("action", "running", "status"),
    [
        ("start", True, "completed"),
        ("start", False, "rejected"),
        ("stop", False, "completed"),
        ("stop", True, "rejected"),
        ("restart", True, "rejected"),
        ("restart", False, "rejected"),
        ("reconfigure:5", True, "rejected"),
    ],
)
async def test_after_a_loss_nothing_is_carried_out(bench: Bench, action: str, *, running: bool, status: str) -> None:
    if running:
        bench.world.begin()
    await lose_the_journal(bench)
    more: dict[str, Any] = {"config": make_config(5)} if action.startswith("reconfigure") else {}
    activity_id = await bench.dispatch(action, **more)
    await bench.run()
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert (row.status, row.changed, row.started_at) == (status, False, None)
    if status == "rejected":
        assert row.reason is not None
        assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert (bench.world.began, bench.world.ended) == (int(running), 0)
    if more:
        assert row.evidence["attempted"]["config_id"] == 5
        assert row.evidence["outcome"] is None


async def test_a_start_that_runs_and_is_not_ready_is_not_called_completed(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await lose_the_journal(bench)
    activity_id = await bench.dispatch("start")
    await bench.run()
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN


async def test_a_runtime_that_cannot_be_read_leaves_the_outcome_unknown(bench: Bench) -> None:
    await lose_the_journal(bench)
    activity_id = await bench.dispatch("stop")
    await bench.run()
    bench.world.unavailable = True
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert row.evidence["after"]["unreadable"].startswith("cannot look")


@pytest.mark.parametrize("action", ["stop", "reconfigure:5"])
async def test_a_fault_in_looking_at_it_leaves_the_outcome_unknown_as_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    async def never_looks() -> Observation:
        raise ZeroDivisionError

    await lose_the_journal(bench)
    more: dict[str, Any] = {"config": make_config(5)} if action.startswith("reconfigure") else {}
    activity_id = await bench.dispatch(action, **more)
    monkeypatch.setattr(bench.driver, "observe", never_looks)
    await bench.run()
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert row.evidence["after"] == {"unreadable": "cannot look at it: a fault of the agent, see its log"}
    assert row.evidence.get("outcome") is None


async def test_what_is_dispatched_after_the_loss_is_carried_out(bench: Bench) -> None:
    await lose_the_journal(bench)
    await bench.run()
    await bench.list_again()
    row = await bench.finished(await bench.dispatch("start"))
    assert (row.status, bench.world.began) == (ReportStatus.COMPLETED, 1)


async def put_an_old_copy_back(bench: Bench) -> None:
    """The Supervisor has seen a higher revision than the journal has."""
    assert await bench.journal.check_revision(bench.journal.revision + 1)


async def test_what_an_old_copy_holds_as_begun_without_its_decisive_call_is_not_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "COMPARE_PATIENCE", 10)
    bench.world.begin()
    activity_id = await bench.dispatch("restart")
    assert await bench.journal.start(activity_id, Verb.RESTART)
    await bench.journal.record(
        activity_id, "stop", decisive=False, running=True, incarnation="run-1", boot_id=None, detail={}
    )
    await bench.run()
    await put_an_old_copy_back(bench)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.recovered) == (ReasonCode.OUTCOME_UNKNOWN, True)
    assert (row.changed, row.evidence["calls"]) == (True, ["stop"])
    assert (bench.world.began, bench.world.ended) == (1, 0)


@pytest.mark.parametrize("goes_back", [False, True])
async def test_a_reconfigure_that_an_old_copy_holds_as_begun_is_not_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, goes_back: bool
) -> None:
    """It may have gone back since; then it looks as if its decisive call had had no effect."""
    monkeypatch.setattr(lanes_module, "COMPARE_PATIENCE", 10)
    bench.world.begin()
    activity_id = await bench.dispatch("reconfigure:5", config=make_config(5))
    assert await bench.journal.start(activity_id, Verb.RECONFIGURE)
    await bench.journal.record(
        activity_id, "start", decisive=True, running=False, incarnation=None, boot_id=BOOT, detail={}
    )
    reason = Reason(code=ReasonCode.NOT_READY, message="cannot see it ready")
    if goes_back:
        await bench.journal.go_back(activity_id, superseded=False, reason=reason, evidence={})
    waits, wait = asyncio.Event(), bench.journal.compared.wait

    async def wait_for_the_supervisor() -> bool:
        waits.set()
        return await wait()

    monkeypatch.setattr(bench.journal.compared, "wait", wait_for_the_supervisor)
    await bench.run()
    await asyncio.wait_for(waits.wait(), 10)
    await put_an_old_copy_back(bench)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.recovered) == (ReasonCode.OUTCOME_UNKNOWN, True)
    assert (bench.world.began, bench.world.ended) == (1, 0)


async def begun_in(bench: Bench, boot: str, action: str) -> int:
    """Have an activity begun with its decisive call, before which a run had ended."""
    activity_id = await bench.dispatch(action)
    assert await bench.journal.start(activity_id, Verb(action))
    await bench.journal.record(
        activity_id, action, decisive=True, running=action == "stop", incarnation="run-1", boot_id=boot, detail={}
    )
    return activity_id


@pytest.mark.parametrize(("action", "began", "ended"), [("start", 2, 2), ("stop", 3, 2), ("restart", 2, 2)])
async def test_what_an_old_copy_holds_as_begun_in_an_earlier_boot_is_not_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str, began: int, ended: int
) -> None:
    """It was finished, and something else came after it; A tells nothing of that in another boot."""
    monkeypatch.setattr(lanes_module, "COMPARE_PATIENCE", 10)
    activity_id = await begun_in(bench, "an earlier boot", action)
    for _ in range(2):
        bench.world.begin()
        bench.world.end()
    if action == "stop":
        bench.world.begin()
    await bench.run()
    await put_an_old_copy_back(bench)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.recovered) == (ReasonCode.OUTCOME_UNKNOWN, True)
    assert (bench.world.began, bench.world.ended) == (began, ended)


async def test_what_is_true_already_is_completed_with_what_an_old_copy_knows_was_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "COMPARE_PATIENCE", 10)
    activity_id = await begun_in(bench, "an earlier boot", "start")
    bench.world.begin()
    await bench.run()
    await put_an_old_copy_back(bench)
    row = await bench.finished(activity_id)
    assert (row.status, row.recovered) == (ReportStatus.COMPLETED, True)
    assert (row.changed, row.evidence["calls"]) == (True, ["start"])


@pytest.mark.parametrize("begun", ["not at all", "in an earlier boot"])
async def test_an_answer_that_comes_in_the_middle_of_such_a_recovery_stops_it(bench: Bench, begun: str) -> None:
    bench.world.begin()
    if begun == "not at all":
        activity_id = await bench.dispatch("stop")
        assert await bench.journal.start(activity_id, Verb.STOP)
    else:
        activity_id = await begun_in(bench, "an earlier boot", "stop")
    real = bench.driver.settle

    async def settle_while_the_supervisor_answers() -> Observation:
        seen = await real()
        await put_an_old_copy_back(bench)
        return seen

    bench.driver.settle = settle_while_the_supervisor_answers  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, bench.world.ended) == (ReasonCode.OUTCOME_UNKNOWN, 0)


async def test_what_an_old_copy_holds_as_begun_in_this_boot_is_told_by_a(bench: Bench) -> None:
    """It is recovered at once, and the answer changes nothing: the stop did not hit the run that was A."""
    bench.world.begin()
    activity_id = await begun_in(bench, BOOT, "stop")
    await put_an_old_copy_back(bench)
    await bench.run()
    row = await bench.finished(activity_id)
    assert (row.status, row.changed, bench.world.ended) == (ReportStatus.COMPLETED, True, 1)


async def test_what_a_told_about_it_does_not_tell_any_more_once_the_machine_boots(
    bench: Bench, boot_id: Callable[[str], None]
) -> None:
    """The journal turned out to be old in one boot, and the activity is recovered in the next."""
    bench.world.begin()
    activity_id = await begun_in(bench, BOOT, "stop")
    await put_an_old_copy_back(bench)
    await bench.kill()
    boot_id("another boot")
    bench.world.end()
    bench.world.begin()
    await bench.start_again()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, bench.world.ended) == (ReasonCode.OUTCOME_UNKNOWN, 1)


async def test_in_an_old_copy_what_is_current_counts_as_committed(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    await put_an_old_copy_back(bench)
    await bench.list_again()
    bench.world.never_ready_with = {make_config(6)["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:6", config=make_config(6)))
    assert (row.evidence["outcome"], await bench.current()) == ("rolled_back", "5-1")


async def test_a_release_is_not_forgotten_while_the_committed_one_is_missing(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    await asyncio.to_thread(shutil.rmtree, bench.folder / "runtimes/iggy/releases/5-1")
    bench.world.never_ready_with = {make_config(6)["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:6", config=make_config(6)))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.ROLLBACK_FAILED
    assert row.reason.hint == "look at the runtime's log; its current config is 6 now"
