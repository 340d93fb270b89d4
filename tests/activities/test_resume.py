"""An agent that dies in the middle of an action, and the next one: one effect, one verdict, and it is true."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.activities import resume
from agent.activities.work import Work
from agent.conditions import Conditions
from agent.errors import Rejection
from agent.journal import RowState
from agent.protocol import ReasonCode, ReportStatus, RuntimeState, Verb
from agent.runtimes.driver import Call, Observation, Outcome, Recorder
from tests.activities.conftest import BOOT, Bench, make_config, open_journal, until

NEVER = 10**6


async def die_at(bench: Bench, call: Call, *, effect: bool, number: int = 1) -> None:
    """Let the agent die at a call: just before its effect, or just after it."""
    seen = 0
    dead = asyncio.Event()

    async def hook(made: Call) -> None:
        nonlocal seen
        seen += made is call
        if made is call and seen == number:
            if effect and made is Call.STOP:
                bench.world.end()
            elif effect:
                bench.world.begin(await asyncio.to_thread(bench.driver.config))
            dead.set()
            await asyncio.sleep(NEVER)

    bench.driver.before_call = hook
    async with asyncio.timeout(10):
        await dead.wait()
    await bench.kill()
    bench.driver.before_call = None


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize(("action", "call", "began", "ended"), [
    ("start", Call.START, 1, 0),
    ("stop", Call.STOP, 1, 1),
    ("restart", Call.STOP, 2, 1),
    ("restart", Call.START, 2, 1),
    ("reconfigure:5", Call.STOP, 2, 1),
    ("reconfigure:5", Call.START, 2, 1),
])  # fmt: skip
async def test_a_crash_around_a_call_neither_repeats_nor_loses_its_effect(
    bench: Bench, action: str, call: Call, began: int, ended: int, *, effect: bool
) -> None:
    if action != "start":
        bench.world.begin()
    await bench.run()
    more: dict[str, Any] = {"config": make_config(5)} if action.startswith("reconfigure") else {}
    activity_id = await bench.dispatch(action, **more)
    await die_at(bench, call, effect=effect)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert (row.status, row.changed, row.recovered) == (ReportStatus.COMPLETED, True, True)
    assert (bench.world.began, bench.world.ended) == (began, ended)
    if more:
        assert row.evidence["outcome"] == "applied"
        assert await bench.journal.committed("iggy") == "5-1"


async def test_recovery_goes_on_while_the_supervisor_is_away_but_begins_nothing_new(bench: Bench) -> None:
    await bench.run()
    first = await bench.dispatch("start")
    second_hook = die_at(bench, Call.START, effect=False)
    second = await bench.dispatch("stop")
    await second_hook
    await bench.start_again(listed=False)
    await bench.finished(first)
    assert (await bench.row(second)).state is RowState.RECEIVED
    await bench.list_again()
    await bench.finished(second)


@pytest.mark.parametrize("action", ["start", "restart"])
async def test_a_run_that_began_and_ended_meanwhile_is_start_failed(bench: Bench, action: str) -> None:
    await bench.run()
    activity_id = await bench.dispatch(action)
    await die_at(bench, Call.START, effect=True)
    bench.world.end(7)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, "exit code 7" in row.reason.message) == (ReasonCode.START_FAILED, True)
    assert row.evidence["recovery"]["decision"] == "start_failed"
    assert bench.world.began == 1


async def test_a_start_is_completed_by_the_run_that_was_on_its_way_up_when_it_was_called(bench: Bench) -> None:
    """A boot or an operator had begun it: the call joined that, and the run that is A now is the one it waits for."""
    activity_id = await bench.dispatch("start")
    assert await bench.journal.start(activity_id, Verb.START)
    await bench.journal.record(
        activity_id, Call.START, decisive=True, running=True, incarnation="run-1", boot_id=BOOT, detail={}
    )
    bench.world.begin()
    await bench.run()
    row = await bench.finished(activity_id)
    assert (row.status, row.evidence["recovery"]["decision"]) == (ReportStatus.COMPLETED, "wait")
    assert (bench.world.began, bench.world.ended) == (1, 0)


async def test_a_stop_after_which_somebody_started_it_again_has_an_unknown_outcome(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    activity_id = await bench.dispatch("stop")
    await die_at(bench, Call.STOP, effect=True)
    bench.world.begin()
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert bench.world.ended == 1


async def test_in_a_new_boot_a_stop_is_made_again(bench: Bench, boot_id: Callable[[str], None]) -> None:
    bench.world.begin()
    await bench.run()
    activity_id = await bench.dispatch("stop")
    await die_at(bench, Call.STOP, effect=True)
    bench.world.begin()
    boot_id("another boot")
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert (row.status, bench.world.ended) == (ReportStatus.COMPLETED, 2)


async def test_in_a_new_boot_a_run_that_ended_is_started_once_more(
    bench: Bench, boot_id: Callable[[str], None]
) -> None:
    bench.world.begin()
    await bench.run()
    activity_id = await bench.dispatch("restart")
    await die_at(bench, Call.START, effect=True)
    bench.world.end(137)
    boot_id("another boot")
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert (row.status, bench.world.began) == (ReportStatus.COMPLETED, 3)


async def test_a_stop_made_again_hits_only_the_run_that_was_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between recovery's look and its call somebody replaces the run: that one is not stopped."""
    bench.world.begin()
    await bench.run()
    activity_id = await bench.dispatch("stop")
    await die_at(bench, Call.STOP, effect=False)
    real = resume.settle

    async def settle_then_replace(*args: object) -> object:
        seen = await real(*args)  # type: ignore[arg-type]
        bench.world.end()
        bench.world.begin()
        return seen

    monkeypatch.setattr(resume, "settle", settle_then_replace)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert bench.world.running == 2


async def test_what_was_started_and_not_called_is_looked_at_for_its_expiry_again(bench: Bench) -> None:
    await bench.run()

    async def hang() -> object:
        await asyncio.sleep(NEVER)
        return None

    real, bench.driver.observe = bench.driver.observe, hang  # type: ignore[method-assign,assignment]
    activity_id = await bench.dispatch("start", expires_at=bench.later(60))

    async def started() -> bool:
        return (await bench.row(activity_id)).state is RowState.STARTED

    await until(started, what="it is started")
    await bench.kill()
    bench.driver.observe = real  # type: ignore[method-assign]
    bench.now = bench.now.replace(year=bench.now.year + 1)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, bench.world.began) == (ReasonCode.EXPIRED, 0)


async def test_what_was_begun_by_an_agent_that_knew_more_actions_is_told_as_unknown(bench: Bench) -> None:
    activity_id = await bench.dispatch("drain")
    assert await bench.journal.start(activity_id, Verb.STOP)
    await bench.run()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.recovered) == (ReasonCode.UNKNOWN_ACTION, True)


async def test_what_was_begun_is_finished_also_after_its_expiry(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    activity_id = await bench.dispatch("restart", expires_at=bench.later(60))
    await die_at(bench, Call.STOP, effect=True)
    bench.now = bench.now.replace(year=bench.now.year + 1)
    await bench.start_again(listed=False)
    assert (await bench.finished(activity_id)).status is ReportStatus.COMPLETED


async def test_recovery_waits_for_a_driver_that_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "ASK_AGAIN", 0.01)
    await bench.run()
    activity_id = await bench.dispatch("start")
    await die_at(bench, Call.START, effect=False)
    bench.world.unavailable = True
    await bench.start_again(listed=False)

    async def said() -> bool:
        return "recovery_waits_iggy" in bench.conditions

    await until(said, what="the condition says that recovery waits")
    bench.world.unavailable = False
    assert (await bench.finished(activity_id)).status is ReportStatus.COMPLETED
    assert "recovery_waits_iggy" not in bench.conditions


@pytest.mark.parametrize("code", [ReasonCode.TIMEOUT, ReasonCode.NOT_PERMITTED])
async def test_that_recovery_waits_is_not_said_any_more_when_it_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: ReasonCode
) -> None:
    """The driver is back, and the runtime never comes to rest, or may not be looked at."""
    monkeypatch.setattr(resume, "ASK_AGAIN", 0.01)
    bench.action_timeout = 0.1
    await bench.run()
    activity_id = await bench.dispatch("start")
    await die_at(bench, Call.START, effect=False)
    real, away = bench.driver.settle, True

    async def settle() -> Observation:
        if away:
            raise Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot look: the engine is away")
        if code is not ReasonCode.TIMEOUT:
            raise Rejection(code, "cannot look: the engine refuses")
        await asyncio.sleep(NEVER)
        return await real()

    monkeypatch.setattr(bench.driver, "settle", settle)
    await bench.start_again(listed=False)

    async def said() -> bool:
        return "recovery_waits_iggy" in bench.conditions

    await until(said, what="the condition says that recovery waits")
    away = False
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, "recovery_waits_iggy" in bench.conditions) == (code, False)


async def test_a_runtime_that_never_comes_to_rest_ends_recovery_with_the_time(bench: Bench) -> None:
    bench.action_timeout = 0.1
    await bench.run()
    activity_id = await bench.dispatch("start")
    await die_at(bench, Call.START, effect=False)

    async def never() -> object:
        await asyncio.sleep(NEVER)
        return None

    bench.driver.settle = never  # type: ignore[method-assign,assignment]
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, bench.world.began) == (ReasonCode.TIMEOUT, 0)


# --- reconfigure


async def test_a_stopped_runtime_is_not_started_by_the_recovery_of_a_reconfigure(bench: Bench) -> None:
    await bench.run()
    real = bench.journal.record

    async def die_after(*args: object, **options: object) -> None:
        await real(*args, **options)  # type: ignore[arg-type]
        await asyncio.sleep(NEVER)

    bench.journal.record = die_after  # type: ignore[method-assign]
    activity_id = await bench.dispatch("reconfigure:5", config=make_config(5))

    async def switch_is_journaled() -> bool:
        return bool((await bench.row(activity_id)).calls)

    await until(switch_is_journaled, what="the switch is journaled")
    await bench.kill()
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert (row.status, row.evidence["outcome"], row.evidence["committed"]) == ("completed", "applied", False)
    assert (bench.world.began, await bench.current()) == (0, "5-1")


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize("call", [Call.STOP, Call.START])
async def test_a_crash_while_going_back_only_goes_back(bench: Bench, call: Call, *, effect: bool) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))

    bench.world.never_ready_with = {make_config(6)["sha256"]}
    activity_id = await bench.dispatch("reconfigure:6", config=make_config(6))
    await die_at(bench, call, effect=effect, number=2)
    assert (await Bench.row(await reopened(bench), activity_id)).going_back is not None
    await bench.run()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"], row.recovered) == ("rolled_back", "rolled_back", True)
    assert row.evidence["cause"]["code"] == ReasonCode.NOT_READY
    assert (await bench.current(), bench.world.runs_with) == ("5-1", make_config(5)["sha256"])
    assert (bench.world.began, bench.world.ended) == (4, 3)


def hang_after_the_decision(bench: Bench) -> None:
    real = bench.journal.go_back

    async def hang_after(*args: object, **options: object) -> None:
        await real(*args, **options)  # type: ignore[arg-type]
        await asyncio.sleep(NEVER)

    bench.journal.go_back = hang_after  # type: ignore[method-assign]


async def die_after_the_decision(bench: Bench, activity_id: int) -> None:
    async def decided() -> bool:
        return (await bench.row(activity_id)).going_back is not None

    await until(decided, what="the decision to go back is journaled")
    await bench.kill()


async def reopened(bench: Bench) -> Bench:
    bench.journal = await open_journal(bench.folder, bench.conditions)
    return bench


@pytest.mark.parametrize("number", [1, 2])
async def test_a_crash_loop_does_not_keep_recovery_from_going_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It never comes to rest; the agent died before it switched back, or with the start of going back under way."""
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    bench.world.never_ready_with = {make_config(6)["sha256"]}
    if number == 1:
        hang_after_the_decision(bench)
    activity_id = await bench.dispatch("reconfigure:6", config=make_config(6))
    if number == 1:
        await die_after_the_decision(bench, activity_id)
    else:
        await die_at(bench, Call.START, effect=True, number=number)
    assert await bench.current() == ("6-1" if number == 1 else "5-1")
    began = bench.world.began
    real_settle, real_timeouts = resume.settle, bench.runtime.timeouts

    async def settle_soon(work: Work, conditions: Conditions) -> Observation:
        work.runtime.timeouts = replace(real_timeouts, action=0.1)
        try:
            return await real_settle(work, conditions)
        finally:
            work.runtime.timeouts = real_timeouts

    async def never() -> Observation:
        await asyncio.sleep(NEVER)
        raise AssertionError

    monkeypatch.setattr(resume, "settle", settle_soon)
    monkeypatch.setattr(bench.driver, "settle", never)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"], row.recovered) == ("rolled_back", "rolled_back", True)
    assert (await bench.current(), bench.world.runs_with) == ("5-1", make_config(5)["sha256"])
    assert bench.world.began - began == (1 if number == 1 else 0)


async def test_a_run_that_ended_after_the_rollbacks_start_is_a_failed_rollback(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    bench.world.ready = False
    activity_id = await bench.dispatch("reconfigure:6", config=make_config(6))
    await die_at(bench, Call.START, effect=True, number=2)
    bench.world.end(3)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (ReasonCode.ROLLBACK_FAILED, "rollback_failed")
    assert (await bench.current(), bench.world.began) == (None, 3)


@pytest.mark.parametrize("settles", ["it does", "never", "a fault"])
async def test_a_crash_after_the_decision_of_a_superseded_reconfigure_only_switches_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, settles: str
) -> None:
    """It has no call under way; what came after it, and may end a crash loop, does not wait for that."""
    bench.world.begin()
    await bench.run()
    bench.world.ready = False
    activity_id = await bench.dispatch("reconfigure:6", config=make_config(6))
    hang_after_the_decision(bench)

    async def waits() -> bool:
        return bench.world.began == 2

    await until(waits, what="the reconfigure waits for readiness")
    await bench.dispatch("stop")
    await die_after_the_decision(bench, activity_id)

    async def settle() -> Observation:
        if settles == "never":
            await asyncio.sleep(NEVER)
        raise ZeroDivisionError

    if settles != "it does":
        monkeypatch.setattr(bench.driver, "settle", settle)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (ReasonCode.SUPERSEDED, "not_applied")
    assert (bench.world.began, await bench.current()) == (2, None)


@pytest.mark.parametrize(("action", "call"), [("stop", Call.STOP), ("restart", Call.START), ("start", Call.START)])
async def test_what_a_dead_run_left_behind_is_ended_before_the_verdict(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str, call: Call
) -> None:
    """The main process is gone, a child of it is not: that is neither stopped nor can a new run begin."""
    if action != "start":
        bench.world.begin()
    await bench.run()
    activity_id = await bench.dispatch(action)
    await die_at(bench, call, effect=action == "stop")
    real_settle, real_stop, real_start = bench.driver.settle, bench.driver.stop, bench.driver.start
    left_behind = True

    async def settle() -> Observation:
        seen = await real_settle()
        return replace(seen, state=RuntimeState.STOPPING) if left_behind else seen

    async def stop(record: Recorder) -> Outcome:
        nonlocal left_behind
        left_behind = False
        return await real_stop(record)

    async def restart(record: Recorder) -> Outcome:
        await stop(record)
        return await real_start(record)

    async def start(record: Recorder) -> Outcome:
        assert not left_behind
        return await real_start(record)

    for name, function in (("settle", settle), ("stop", stop), ("restart", restart), ("start", start)):
        monkeypatch.setattr(bench.driver, name, function)
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert (row.status, left_behind) == (ReportStatus.COMPLETED, False)
