"""Faults of the agent's own: each is reported with what was done, ends no lane, and leaves nothing half done."""

import asyncio
from typing import Any, NoReturn

import pytest

from agent.activities import lanes as lanes_module
from agent.activities import reconfigure
from agent.activities.work import Work
from agent.errors import Rejection
from agent.protocol import ReasonCode, ReportStatus, Verb
from agent.runtimes.driver import Call
from agent.runtimes.runtime import Runtime
from tests.activities.conftest import BOOT, Bench, make_config, until


def no_thread(*_args: object, **_options: object) -> NoReturn:
    msg = "can't start new thread"
    raise RuntimeError(msg)


async def never_looks(*_args: object, **_options: object) -> NoReturn:
    no_thread()


def blind_from(bench: Bench, call: Call) -> None:
    """Have the agent fail at a call, and at each look from then on."""

    async def fail(made: Call) -> None:
        if made is call:
            bench.driver.observe = never_looks  # type: ignore[method-assign]
            no_thread()

    bench.driver.before_call = fail


async def test_a_restart_that_a_fault_ends_between_its_calls_tells_what_was_done(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    blind_from(bench, Call.START)
    row = await bench.finished(await bench.dispatch("restart"))
    assert row.reason is not None
    assert (row.reason.code, row.changed, row.evidence["calls"]) == (ReasonCode.INTERNAL, True, ["stop", "start"])
    assert row.evidence["after"] == {"unreadable": "cannot look at it: a fault of the agent, see its log"}
    assert bench.world.running is None


async def test_a_reconfigure_that_a_fault_ends_goes_back_and_states_its_facts(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    blind_from(bench, Call.START)
    row = await bench.finished(await bench.dispatch("reconfigure:7", config=make_config(7)))
    assert row.reason is not None
    assert (row.reason.code, row.changed, row.evidence["outcome"]) == ("rollback_failed", True, "rollback_failed")
    assert row.evidence["attempted"]["config_id"] == 7
    assert row.evidence["running"] == {
        "current": None,
        "unreadable": "cannot look at it: a fault of the agent, see its log",
    }
    assert row.evidence["cause"]["code"] == ReasonCode.INTERNAL
    assert row.evidence["calls"] == ["switch", "stop", "start", "switch"]
    assert await bench.current() is None


async def test_a_fault_in_reading_the_log_is_told_and_hides_no_verdict(bench: Bench) -> None:
    bench.world.starts_fail = True
    bench.driver.log_tail = never_looks  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(await bench.dispatch("start"))
    assert row.reason is not None
    assert (row.reason.code, row.changed) == (ReasonCode.START_FAILED, True)
    assert row.evidence["log_tail_missing"] == "cannot read it: a fault of the agent, see its log"


@pytest.mark.parametrize(("action", "done"), [("restart", "completed"), ("reconfigure:7", "completed")])
async def test_what_a_fault_outside_of_the_action_cut_short_is_recovered_as_after_a_crash(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str, done: str
) -> None:
    bench.world.begin()
    await bench.run()
    real = Work.explain

    async def fail_once(_work: Work, _rejection: Rejection) -> None:
        monkeypatch.setattr(Work, "explain", real)
        no_thread()

    async def fail(made: Call) -> None:
        if made is Call.START:
            bench.driver.before_call = None
            no_thread()

    monkeypatch.setattr(Work, "explain", fail_once)
    bench.driver.before_call = fail
    more: dict[str, Any] = {"config": make_config(7)} if action.startswith("reconfigure") else {}
    row = await bench.finished(await bench.dispatch(action, **more))
    assert (row.status, row.recovered, row.changed) == (done, True, True)
    assert (bench.world.began, bench.world.ended, bench.world.running) == (2, 1, 2)
    assert (await bench.finished(await bench.dispatch("stop"))).status is ReportStatus.COMPLETED


@pytest.mark.parametrize(("action", "calls"), [
    ("restart", ["stop", "start"]),
    ("reconfigure:7", ["switch", "stop", "start"]),
])  # fmt: skip
async def test_a_fault_that_recovery_runs_into_as_well_is_reported_with_the_calls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str, calls: list[str]
) -> None:
    bench.world.begin()
    await bench.run()
    blind_from(bench, Call.START)
    monkeypatch.setattr(Work, "explain", never_looks)
    more: dict[str, Any] = {"config": make_config(7)} if action.startswith("reconfigure") else {}
    row = await bench.finished(await bench.dispatch(action, **more))
    assert row.reason is not None
    assert (row.reason.code, row.changed, row.recovered) == (ReasonCode.INTERNAL, True, True)
    assert row.evidence["calls"] == calls
    assert bench.world.running is None
    if more:
        assert row.evidence["attempted"]["config_id"] == 7
        assert row.evidence["outcome"] is None
        assert row.evidence["running"]["current"]["config_id"] == 7


@pytest.mark.parametrize(("going_back", "code"), [(False, "internal"), (True, "rollback_failed")])
async def test_a_fault_in_settling_is_reported_with_what_was_done_before_the_crash(
    bench: Bench, going_back: bool, code: str
) -> None:
    activity_id = await bench.dispatch("reconfigure:7" if going_back else "restart", config=make_config(7))
    assert await bench.journal.start(activity_id, Verb.RECONFIGURE if going_back else Verb.RESTART)
    await bench.journal.record(
        activity_id, "stop", decisive=False, running=True, incarnation="run-1", boot_id=BOOT, detail={}
    )
    if going_back:
        reason = Rejection(ReasonCode.NOT_READY, "cannot see it ready").reason()
        await bench.journal.go_back(activity_id, superseded=False, reason=reason, evidence={})
    bench.driver.settle = never_looks  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert (row.reason.code, row.recovered, row.changed) == (code, True, True)
    assert row.evidence["calls"] == ["stop"]
    assert row.evidence["after" if not going_back else "running"]["state"] == "stopped"


async def test_a_fault_in_the_check_of_a_later_config_fails_only_that_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    checked = asyncio.Event()

    async def fail(*_args: object) -> NoReturn:
        checked.set()
        raise ZeroDivisionError

    monkeypatch.setattr(reconfigure, "check", fail)
    first = await bench.dispatch("restart")
    await until(lambda: _is(bench.world.began == 2), what="the restart waits for readiness")
    second = await bench.dispatch("reconfigure:5", config=make_config(5))
    await asyncio.wait_for(checked.wait(), 10)
    bench.world.ready = True
    assert (await bench.finished(first)).status is ReportStatus.COMPLETED
    row = await bench.finished(second)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.INTERNAL


@pytest.mark.parametrize("ready", [True, False])
async def test_a_fault_in_looking_for_a_later_action_fails_no_action(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    bench.world.begin()
    bench.world.ready = ready
    await bench.run()
    looked = asyncio.Event()

    async def fail(*_args: object) -> NoReturn:
        looked.set()
        raise ZeroDivisionError

    monkeypatch.setattr(bench.journal, "queue", fail)
    activity_id = await bench.dispatch("restart")
    await asyncio.wait_for(looked.wait(), 10)
    bench.world.ready = True
    assert (await bench.finished(activity_id)).status is ReportStatus.COMPLETED


async def test_a_fault_in_tidying_up_ends_no_lane_and_is_said_until_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lanes_module, "TIDY_AGAIN", 0.02)
    fails, tries = True, 0

    async def tidy(_committed: str | None) -> None:
        nonlocal tries
        tries += 1
        if fails:
            no_thread()

    monkeypatch.setattr(bench.driver, "tidy", tidy)
    await bench.run()
    assert (await bench.finished(await bench.dispatch("start"))).status is ReportStatus.COMPLETED
    await until(lambda: _is(tries >= 4), what="it was tried again")
    (condition,) = bench.conditions.all()
    assert (condition.code, condition.message) == ("iggy_not_tidied", "cannot tidy up iggy: RuntimeError")
    assert capsys.readouterr().out.count("lane.fault") == 1
    fails = False
    await until(lambda: _is("iggy_not_tidied" not in bench.conditions), what="it is tidied up")
    assert (await bench.finished(await bench.dispatch("stop"))).status is ReportStatus.COMPLETED


async def test_a_fault_in_starting_an_owned_runtime_ends_no_lane_and_it_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "TIDY_AGAIN", 0.02)
    fails, tries, set_up = True, 0, False

    async def start(_runtime: Runtime) -> bool:
        nonlocal tries, set_up
        tries += 1
        if fails:
            no_thread()
        set_up = True
        return False

    bench.on_recovered = start
    await bench.run()
    await until(lambda: _is(tries >= 3), what="it was tried again")
    (condition,) = bench.conditions.all()
    assert (condition.code, condition.message) == ("iggy_not_started", "cannot set up iggy: RuntimeError")
    assert (await bench.finished(await bench.dispatch("stop"))).status is ReportStatus.COMPLETED
    fails = False
    await until(lambda: _is(set_up), what="it is set up")


async def _is(value: bool) -> bool:
    return value
