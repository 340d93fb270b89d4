"""Order, superseding, expiry, and answers to what cannot be carried out."""

import asyncio
import itertools
from typing import Any, NoReturn

import pytest

from agent import progress as progress_module
from agent.activities import lanes as lanes_module
from agent.activities import reconfigure
from agent.errors import JournalError, Rejection
from agent.journal import RowState
from agent.protocol import ReasonCode, ReportStatus, Verb
from tests.activities.conftest import Bench, make_config, until


@pytest.mark.parametrize("action", ["stop", "restart", "reconfigure:5"])
async def test_a_later_action_ends_the_wait_for_readiness(bench: Bench, action: str) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    first = await bench.dispatch("restart")

    async def waits() -> bool:
        return bench.world.began == 2

    await until(waits, what="the restart waits for readiness")
    more: dict[str, Any] = {"config": make_config(5)} if action.startswith("reconfigure") else {}
    second = await bench.dispatch(action, **more)
    superseded = await bench.finished(first)
    assert superseded.reason is not None
    assert (superseded.reason.code, superseded.evidence["superseded_by"]) == (ReasonCode.SUPERSEDED, second)
    bench.world.ready = True
    await bench.finished(second)


async def test_a_later_start_or_a_config_that_is_refused_ends_no_wait(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    first = await bench.dispatch("restart")
    second = await bench.dispatch("start")
    third = await bench.dispatch("reconfigure:5", config=make_config(5, PATH="/evil"))
    fourth = await bench.dispatch("explode")
    fifth = await bench.dispatch("stop", expires_at=bench.later(-5))
    bench.world.ready = True
    rows = [await bench.finished(number) for number in (first, second, third, fourth, fifth)]
    assert [row.status for row in rows[:2]] == [ReportStatus.COMPLETED, ReportStatus.COMPLETED]
    assert [row.reason and row.reason.code for row in rows[2:]] == [
        ReasonCode.CONFIG_INVALID,
        ReasonCode.UNKNOWN_ACTION,
        ReasonCode.EXPIRED,
    ]


async def test_a_superseded_reconfigure_goes_back_without_a_restart(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:7", config=make_config(7)))
    bench.world.ready = False
    first = await bench.dispatch("reconfigure:8", config=make_config(8))

    async def waits() -> bool:
        return bench.world.began == 3

    await until(waits, what="the reconfigure waits for readiness")
    second = await bench.dispatch("stop")
    row = await bench.finished(first)
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (ReasonCode.SUPERSEDED, "not_applied")
    await bench.finished(second)
    assert (bench.world.began, bench.world.running) == (3, None)
    assert await bench.current() == "7-1"


async def test_activities_of_one_runtime_run_one_at_a_time_in_order_of_sequence(bench: Bench) -> None:
    numbers = [await bench.dispatch(action) for action in ("start", "stop", "start", "stop", "restart")]
    bench.listed.reverse()
    await bench.list_again()
    await bench.run()
    rows = [await bench.finished(number) for number in numbers]
    assert {row.reason and row.reason.code for row in rows} <= {None, ReasonCode.SUPERSEDED}
    times = [(row.started_at, row.finished_at) for row in rows]
    for (_, ended), (began, _) in itertools.pairwise(times):
        assert ended is not None
        assert began is not None
        assert ended <= began
    assert (bench.world.began, bench.world.ended) == (3, 2)


async def test_what_expired_while_it_waited_is_not_begun(bench: Bench) -> None:
    await bench.run()
    expired = await bench.finished(await bench.dispatch("start", expires_at=bench.later(-0.001)))
    alive = await bench.finished(await bench.dispatch("start", expires_at=bench.later(60)))
    assert expired.reason is not None
    assert (expired.reason.code, expired.started_at) == (ReasonCode.EXPIRED, None)
    assert alive.status is ReportStatus.COMPLETED


async def test_an_expired_reconfigure_states_its_three_facts(bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5), expires_at=bench.later(-1)))
    assert row.evidence["attempted"]["config_id"] == 5
    assert row.evidence["outcome"] == "not_applied"
    assert row.evidence["running"]["state"] == "stopped"


async def test_a_runtime_that_this_node_does_not_have_is_answered(bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart", runtime="plane"))
    assert row.reason is not None
    assert (row.reason.code, "iggy only" in row.reason.message) == (ReasonCode.UNKNOWN_RUNTIME, True)


@pytest.mark.parametrize("action", ["", "explode", "reconfigure:", "reconfigure:x", "reconfigure:0", "Restart"])
async def test_an_unknown_action_is_answered(bench: Bench, action: str) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch(action))
    assert row.reason is not None
    assert (row.reason.code, row.started_at) == (ReasonCode.UNKNOWN_ACTION, None)


async def test_an_agent_that_may_not_act_begins_nothing(bench: Bench) -> None:
    await bench.run()
    bench.permitted = False
    ours, foreign = await bench.dispatch("start"), await bench.dispatch("start", runtime="plane")
    lanes = bench.lanes
    assert lanes is not None
    lanes.stop()
    assert bench.task is not None
    await bench.task
    assert {(await bench.row(number)).state for number in (ours, foreign)} == {RowState.RECEIVED}
    assert bench.world.began == 0


async def test_what_is_under_way_when_the_agent_stops_is_finished_and_nothing_more_is_begun(bench: Bench) -> None:
    bench.world.ready = False
    await bench.run()
    first, second = await bench.dispatch("start"), await bench.dispatch("start")

    async def started() -> bool:
        return bench.world.began == 1

    await until(started, what="the first is started")
    lanes = bench.lanes
    assert lanes is not None
    lanes.stop()
    bench.world.ready = True
    assert bench.task is not None
    await bench.task
    assert (await bench.row(first)).status is ReportStatus.COMPLETED
    assert (await bench.row(second)).state is RowState.RECEIVED


@pytest.mark.parametrize("method", ["next", "start", "record", "finish", "queue", "get"])
async def test_a_journal_that_cannot_be_written_for_a_while_loses_and_repeats_nothing(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "WRITE_AGAIN", 0.01)
    bench.world.begin()
    real = getattr(bench.journal, method)
    failures = 3

    async def fail_at_first(*args: object, **options: object) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            msg = "cannot use the journal: disk full"
            raise JournalError(msg)
        return await real(*args, **options)

    await bench.run()
    monkeypatch.setattr(bench.journal, method, fail_at_first)
    activity_id = await bench.dispatch("restart")

    async def finished() -> bool:
        return (await bench.journal.counts()).unreported == 1

    await until(finished, what="the restart is finished")
    monkeypatch.undo()
    row = await bench.row(activity_id)
    assert failures == 0 or method in {"queue", "get"}
    assert row.status is ReportStatus.COMPLETED
    assert (bench.world.began, bench.world.ended) == (2, 1)


async def test_a_lane_that_waits_for_a_journal_that_cannot_be_read_is_not_stuck(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "WRITE_AGAIN", 0.01)
    now, tries, late = 0.0, 0, set[str]()
    monkeypatch.setattr(progress_module, "monotonic", lambda: now)

    async def fail(*_args: object, **_options: object) -> NoReturn:
        msg = "cannot use the journal: the disk is away"
        raise JournalError(msg)

    async def fail_for_long(*_args: object) -> NoReturn:
        nonlocal now, tries
        late.update(bench.progress.late())
        now += lanes_module.LONGEST_STEP / 2
        tries += 1
        await fail()

    await bench.run()
    with monkeypatch.context() as broken:
        broken.setattr(bench.journal, "record", fail)
        broken.setattr(bench.journal, "get", fail_for_long)
        await bench.dispatch("start")
        await until(lambda: asyncio.sleep(0, tries >= 20), what="it was tried for long")
    assert late == set()


@pytest.mark.parametrize("action", ["restart", "reconfigure:7"])
async def test_on_a_full_disk_an_activity_is_rejected_before_any_effect(
    bench: Bench, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.world.begin()
    await bench.run()
    monkeypatch.setattr(bench.journal._database.reserve, "allows", lambda *_: False)
    more: dict[str, Any] = {"config": make_config(7)} if action.startswith("reconfigure") else {}
    row = await bench.finished(await bench.dispatch(action, **more))
    assert row.reason is not None
    assert (row.reason.code, row.changed, row.started_at) == (ReasonCode.NO_SPACE, False, None)
    assert row.reason.hint == "free space on that disk, then dispatch it again"
    assert row.evidence.get("outcome") == ("not_applied" if "reconfigure" in action else None)
    assert (bench.world.began, bench.world.ended) == (1, 0)


async def test_a_foreign_activity_is_answered_also_when_the_journal_could_not_be_written_at_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "WRITE_AGAIN", 0.01)
    real = bench.journal.next_foreign
    failing = asyncio.Event()

    async def fail_once(lanes: list[str]) -> object:
        if not failing.is_set():
            failing.set()
            msg = "cannot use the journal: disk full"
            raise JournalError(msg)
        return await real(lanes)

    monkeypatch.setattr(bench.journal, "next_foreign", fail_once)
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart", runtime="plane"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.UNKNOWN_RUNTIME


async def test_an_older_activity_that_comes_late_supersedes_nothing(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    late = {"id": 1001, "sequence": 1, "runtime": "iggy", "action": "stop", "created_at": "2026-11-24T10:00:00Z"}
    bench.listed.append(late)
    newer = await bench.dispatch("restart")

    async def waits() -> bool:
        return bench.world.began == 2

    await until(waits, what="the newer one waits for readiness")
    await bench.journal.take([late], sweep=None)
    await bench.journal.queue("iggy")
    bench.world.ready = True
    assert (await bench.finished(newer)).status is ReportStatus.COMPLETED
    assert (await bench.finished(1001)).status is ReportStatus.COMPLETED


@pytest.mark.parametrize(("called", "code"), [(False, ReasonCode.UNKNOWN_RUNTIME), (True, ReasonCode.OUTCOME_UNKNOWN)])
async def test_what_was_begun_on_a_runtime_that_was_taken_out_of_the_settings_is_reported(
    bench: Bench, code: ReasonCode, *, called: bool
) -> None:
    activity_id = await bench.dispatch("restart", runtime="connectors")
    assert await bench.journal.start(activity_id, Verb.RESTART)
    if called:
        await bench.journal.record(
            activity_id, "stop", decisive=False, running=True, incarnation="a", boot_id=None, detail={}
        )
    await bench.run()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.recovered, row.changed) == (code, True, called)


async def test_a_fault_in_the_middle_of_an_answer_is_reported_and_ends_no_lane(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(lanes_module, "judge_uncertain", fail)
    await bench.run()
    first = await bench.dispatch("start")
    await bench.finished(first)
    monkeypatch.setattr(reconfigure, "facts", fail)
    row = await bench.finished(await bench.dispatch("reconfigure:5"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.INTERNAL
    assert (await bench.finished(await bench.dispatch("stop"))).status is ReportStatus.COMPLETED


async def test_what_could_not_be_tidied_up_is_shown_and_tried_again_while_the_agent_may_act(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "TIDY_AGAIN", 0.02)
    calls = 0

    async def tidy(_committed: str | None) -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot tidy up: nobody is there", hint="look there")

    async def called(times: int) -> bool:
        return calls >= times

    monkeypatch.setattr(bench.driver, "tidy", tidy)
    bench.permitted = False
    await bench.run()
    await until(lambda: called(1), what="it was tried once")
    await asyncio.sleep(0.1)
    assert calls == 1
    (condition,) = bench.conditions.all()
    assert condition.code == "iggy_not_tidied"
    assert (condition.message, condition.hint) == ("cannot tidy up: nobody is there", "look there")
    bench.permitted = True
    bench.journal.work_ready.set()
    await until(lambda: called(4), what="it was tried until it succeeded")
    await asyncio.sleep(0.1)
    assert calls == 4
    assert bench.conditions.all() == []
    assert (await bench.finished(await bench.dispatch("start"))).status == "completed"


async def test_to_a_journal_that_is_new_a_damaged_current_release_is_the_committed_one(bench: Bench) -> None:
    await asyncio.to_thread(_link_current, bench, "releases/7-3")
    bench.world.begin()
    await bench.run()
    assert (await bench.finished(await bench.dispatch("start"))).status is ReportStatus.COMPLETED
    assert await bench.journal.committed("iggy") == "7-3"


async def test_with_a_journal_that_is_new_nothing_is_begun_while_what_is_current_cannot_be_told(bench: Bench) -> None:
    await asyncio.to_thread(_link_current, bench, None)
    await bench.run()
    row = await bench.finished(await bench.dispatch("start"))
    assert row.reason is not None
    assert (row.reason.code, bench.world.began) == (ReasonCode.NOT_PERMITTED, 0)
    assert str(bench.folder / "runtimes/iggy/current") in row.reason.message
    await bench.journal.know_runtime("iggy", current="7-3")
    assert (await bench.finished(await bench.dispatch("start"))).status is ReportStatus.COMPLETED
    assert await bench.journal.committed("iggy") == "7-3"


def _link_current(bench: Bench, target: str | None) -> None:
    """Point `current` at a release; what is no link cannot be read, also by root."""
    link = bench.folder / "runtimes/iggy/current"
    link.parent.mkdir(parents=True)
    link.mkdir() if target is None else link.symlink_to(target)
