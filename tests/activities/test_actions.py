"""The four actions through their lane: effect, verdict and evidence."""

import asyncio
from dataclasses import replace

import pytest

from agent.protocol import ReasonCode, ReportStatus, RuntimeState
from agent.runtimes.driver import Call, Incarnation, Observation, Outcome, Recorder
from tests.activities.conftest import Bench, make_config, until


async def test_a_start_brings_a_stopped_runtime_up(bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch("start"))
    assert (row.status, row.changed, row.recovered) == (ReportStatus.COMPLETED, True, False)
    assert row.evidence["before"]["state"] == "stopped"
    assert row.evidence["after"].pop("started_at") is not None
    assert row.evidence["after"] == {"state": "running", "incarnation": "run-1", "pid": 1001}
    assert row.evidence["calls"] == ["start"]
    assert bench.world.began == 1


async def test_a_start_of_what_is_ready_changes_nothing(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    row = await bench.finished(await bench.dispatch("start"))
    assert (row.status, row.changed, bench.world.began) == (ReportStatus.COMPLETED, False, 1)
    assert row.calls == ()


async def test_a_start_of_what_runs_and_never_gets_ready_is_not_ready(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    row = await bench.finished(await bench.dispatch("start"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.NOT_READY
    assert "it says no" in row.reason.message
    assert row.evidence["log_tail"] == ["last words of run-1"]


async def test_a_stop_reports_the_exit_code_and_that_nothing_had_to_be_killed(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    row = await bench.finished(await bench.dispatch("stop"))
    assert (row.status, row.changed) == (ReportStatus.COMPLETED, True)
    assert (row.evidence["exit_code"], row.evidence["killed"]) == (0, False)
    assert row.evidence["after"]["state"] == "stopped"


async def test_a_stop_of_what_is_down_changes_nothing(bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch("stop"))
    assert (row.status, row.changed, bench.world.ended) == (ReportStatus.COMPLETED, False, 0)
    assert "exit_code" not in row.evidence


async def test_a_restart_ends_one_run_and_begins_one(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart"))
    assert (row.status, row.changed) == (ReportStatus.COMPLETED, True)
    assert (bench.world.began, bench.world.ended) == (2, 1)
    assert row.evidence["before"]["incarnation"] == "run-1"
    assert row.evidence["after"]["incarnation"] == "run-2"


async def test_a_restart_of_what_is_down_starts_it(bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart"))
    assert (row.status, bench.world.began, bench.world.ended) == (ReportStatus.COMPLETED, 1, 0)


async def test_a_run_that_ends_while_starting_is_start_failed_with_what_it_logged(bench: Bench) -> None:
    bench.world.starts_fail = True
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.START_FAILED
    assert row.evidence["log_tail"] == ["last words of run-1"]
    assert row.evidence["after"]["exit_code"] == 1


async def test_a_driver_that_is_away_is_said_so(bench: Bench) -> None:
    bench.world.unavailable = True
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart"))
    assert row.reason is not None
    assert (row.reason.code, row.reason.hint) == (ReasonCode.DRIVER_UNAVAILABLE, "start it")
    assert row.evidence["after"]["unreadable"].startswith("cannot look")


async def test_an_action_ends_with_its_time(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    bench.action_timeout = 0.25
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.TIMEOUT
    assert bench.world.began == 2


async def test_a_fault_of_the_agent_is_reported_and_ends_no_lane(bench: Bench) -> None:
    async def fail(_call: object) -> None:
        msg = "a bug"
        raise ZeroDivisionError(msg)

    bench.driver.before_call = fail
    await bench.run()
    row = await bench.finished(await bench.dispatch("start"))
    assert row.reason is not None
    assert (row.reason.code, "ZeroDivisionError" in row.reason.message) == (ReasonCode.INTERNAL, True)
    bench.driver.before_call = None
    assert (await bench.finished(await bench.dispatch("start"))).status is ReportStatus.COMPLETED


async def test_a_reconfigure_restarts_with_the_config_and_commits_it(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    config = make_config(7)
    row = await bench.finished(await bench.dispatch("reconfigure:7", config=config))
    assert (row.status, row.changed) == (ReportStatus.COMPLETED, True)
    assert row.evidence["attempted"] == {"config_id": 7, "version": 1, "sha256": config["sha256"]}
    assert (row.evidence["outcome"], row.evidence["committed"]) == ("applied", True)
    assert row.evidence["running"]["config_sha256"] == config["sha256"]
    assert bench.world.runs_with == config["sha256"]
    assert await bench.journal.committed("iggy") == "7-1"


async def test_a_reconfigure_with_what_runs_already_changes_nothing(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:7", config=make_config(7)))
    row = await bench.finished(await bench.dispatch("reconfigure:7", config=make_config(7)))
    assert (row.status, row.changed, bench.world.began) == (ReportStatus.COMPLETED, False, 2)


async def test_a_stopped_runtime_only_gets_the_config_and_commits_it_when_it_was_seen_ready(bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:7", config=make_config(7)))
    assert (row.status, row.evidence["outcome"], row.evidence["committed"]) == ("completed", "applied", False)
    assert (bench.world.began, await bench.journal.committed("iggy")) == (0, None)
    await bench.finished(await bench.dispatch("start"))
    assert await bench.journal.committed("iggy") == "7-1"


async def test_a_config_that_does_not_get_ready_is_rolled_back(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:7", config=make_config(7)))

    bench.world.never_ready_with = {make_config(8)["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.ROLLED_BACK
    assert row.evidence["cause"]["code"] == ReasonCode.NOT_READY
    assert (row.evidence["attempted"]["config_id"], row.evidence["outcome"]) == (8, "rolled_back")
    assert row.evidence["running"]["current"]["config_id"] == 7
    assert row.evidence["log_tail"] == ["last words of run-3"]
    assert await bench.journal.committed("iggy") == "7-1"
    assert bench.world.runs_with == make_config(7)["sha256"]


async def test_the_first_config_is_rolled_back_to_none(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()

    bench.world.never_ready_with = {make_config(8)["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.evidence["outcome"] == "rolled_back"
    assert row.evidence["running"]["current"] is None
    assert bench.world.runs_with is None


async def test_a_rollback_that_fails_says_both_causes(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    bench.world.ready = False
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.ROLLBACK_FAILED
    assert row.evidence["outcome"] == "rollback_failed"
    assert row.evidence["cause"]["code"] == ReasonCode.NOT_READY
    assert row.evidence["rollback"]["reason"]["code"] == ReasonCode.NOT_READY
    assert await bench.current() is None


async def test_a_config_that_breaks_a_rule_touches_nothing(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    config = make_config(9, LD_PRELOAD="evil.so")
    row = await bench.finished(await bench.dispatch("reconfigure:9", config=config))
    assert row.reason is not None
    assert (row.reason.code, row.started_at, row.changed) == (ReasonCode.CONFIG_INVALID, None, False)
    assert row.evidence["outcome"] == "not_applied"
    assert row.evidence["running"]["state"] == "running"
    assert (bench.world.began, await bench.current()) == (1, None)


async def test_a_reconfigure_needs_the_config_that_it_names(bench: Bench) -> None:
    await bench.run()
    missing = await bench.finished(await bench.dispatch("reconfigure:9"))
    other = await bench.finished(await bench.dispatch("reconfigure:9", config=make_config(10)))
    wrong = await bench.finished(
        await bench.dispatch(
            "reconfigure:9", config={**make_config(9), "sha256": "0" * 64}, created_at="2026-11-24T10:00:01Z"
        )
    )
    assert [row.reason and row.reason.code for row in (missing, other, wrong)] == [
        ReasonCode.CONFIG_MISSING,
        ReasonCode.CONFIG_INVALID,
        ReasonCode.CONFIG_CHECKSUM,
    ]


async def test_a_reconfigure_of_what_is_not_there_is_not_found(bench: Bench) -> None:
    bench.world.missing = True
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:9", config=make_config(9)))
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (ReasonCode.NOT_FOUND, "not_applied")
    assert await bench.current() is None


async def test_a_rollback_is_not_interrupted_by_the_time_of_the_action(bench: Bench) -> None:
    bench.world.begin()
    bench.action_timeout = 0.25
    await bench.run()

    bench.world.never_ready_with = {make_config(8)["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.evidence["outcome"] == "rolled_back"
    assert row.evidence["cause"]["code"] == ReasonCode.TIMEOUT


async def test_a_current_action_is_shown_while_it_runs(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    activity_id = await bench.dispatch("restart")
    lanes = bench.lanes
    assert lanes is not None

    async def shown() -> bool:
        return lanes.current(bench.make_runtime().name) == activity_id

    await until(shown, what="the lane shows its activity")
    bench.world.ready = True
    await bench.finished(activity_id)


async def test_releases_that_nothing_can_go_back_to_are_removed(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    for number in (5, 6, 7):
        await bench.finished(await bench.dispatch(f"reconfigure:{number}", config=make_config(number)))
    bench.world.never_ready_with = {make_config(8)["sha256"]}
    await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    folder = bench.folder / "runtimes/iggy/releases"

    async def only_the_committed_one() -> bool:
        return await asyncio.to_thread(lambda: [item.name for item in folder.iterdir()]) == ["7-1"]

    await until(only_the_committed_one, what="only the committed release is left")


@pytest.mark.parametrize("state", [RuntimeState.RUNNING, RuntimeState.STARTING])
async def test_a_restart_after_which_the_old_run_is_the_one_that_is_ready_is_busy(
    bench: Bench, state: RuntimeState
) -> None:
    """The driver says that it restarted it; the run that was up, or on its way up, is not what a restart begins."""
    bench.world.begin()
    before = replace(await bench.driver.observe(), state=state)

    async def restart(record: Recorder) -> Outcome:
        return Outcome(before, (Call.RESTART,))

    bench.driver.restart = restart  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(await bench.dispatch("restart"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.BUSY


async def test_a_stop_after_which_it_runs_again_has_failed(bench: Bench) -> None:
    bench.world.begin()
    real = bench.driver.stop

    async def stop(record: Recorder) -> Outcome:
        outcome = await real(record)
        bench.world.begin()
        return outcome

    bench.driver.stop = stop  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(await bench.dispatch("stop"))
    assert row.reason is not None
    assert (row.reason.code, row.evidence["exit_code"]) == (ReasonCode.STOP_FAILED, 0)


async def test_a_stop_is_completed_also_when_the_driver_is_away_for_a_moment_after_the_call(bench: Bench) -> None:
    bench.world.begin()
    real = bench.driver.stop

    async def stop(record: Recorder) -> Outcome:
        outcome = await real(record)
        bench.world.unavailable = True
        asyncio.get_running_loop().call_later(0.1, setattr, bench.world, "unavailable", False)
        return outcome

    bench.driver.stop = stop  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(await bench.dispatch("stop"))
    assert (row.status, row.changed, row.evidence["after"]["state"]) == (ReportStatus.COMPLETED, True, "stopped")


async def test_a_run_with_another_config_commits_nothing(bench: Bench) -> None:
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    bench.world.begin("somebody else's")
    row = await bench.finished(await bench.dispatch("start"))
    assert (row.status, await bench.journal.committed("iggy")) == (ReportStatus.COMPLETED, None)


async def test_a_config_that_the_new_run_was_not_started_with_is_not_called_applied(bench: Bench) -> None:
    bench.world.begin()
    real = bench.driver.restart

    async def restart(record: Recorder) -> Outcome:
        outcome = await real(record)
        if bench.world.runs_with == make_config(5)["sha256"]:
            bench.world.runs_with = "somebody else's"
        return outcome

    bench.driver.restart = restart  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    assert row.reason is not None
    assert (row.reason.code, row.evidence["cause"]["code"]) == (ReasonCode.ROLLED_BACK, ReasonCode.START_FAILED)


async def test_a_runtime_on_its_way_is_looked_at_again_until_it_rests(bench: Bench) -> None:
    bench.world.begin()
    real = bench.driver.observe
    looks = 0

    async def observe() -> Observation:
        nonlocal looks
        seen = await real()
        looks += 1
        return replace(seen, state=RuntimeState.STOPPING) if bench.world.running is None and looks < 5 else seen

    bench.driver.observe = observe  # type: ignore[method-assign]
    await bench.run()
    row = await bench.finished(await bench.dispatch("stop"))
    assert (row.status, row.evidence["after"]["state"], looks >= 5) == (ReportStatus.COMPLETED, "stopped", True)


async def test_a_rollback_that_cannot_be_called_is_a_failed_one(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    bench.world.never_ready_with = {make_config(8)["sha256"]}
    real = bench.driver.restart

    async def restart(record: Recorder) -> Outcome:
        if await bench.current() is None:
            bench.world.unavailable = True
        return await real(record)

    bench.driver.restart = restart  # type: ignore[method-assign]
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.ROLLBACK_FAILED
    assert row.evidence["rollback"]["reason"]["code"] == ReasonCode.DRIVER_UNAVAILABLE
    assert "unreadable" in row.evidence["running"]


async def test_a_later_action_ends_the_wait_of_a_rollback_too(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    bench.world.ready = False
    first = await bench.dispatch("reconfigure:8", config=make_config(8))

    async def rolls_back() -> bool:
        return bench.world.began == 3

    await until(rolls_back, what="the rollback waits for readiness")
    second = await bench.dispatch("stop")
    row = await bench.finished(first)
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (ReasonCode.SUPERSEDED, "not_applied")
    assert (await bench.finished(second)).status is ReportStatus.COMPLETED
    assert await bench.current() is None


async def test_a_fault_of_the_agent_in_a_check_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_config: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.driver, "check_config", fail)
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (ReasonCode.INTERNAL, "not_applied")


async def test_no_report_shows_a_secret(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()

    async def log_tail(incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        return ["the key is hunter22hunter22"]

    bench.driver.log_tail = log_tail  # type: ignore[method-assign]
    bench.runtime.redactor.add(["hunter22hunter22", "it says no"])
    row = await bench.finished(await bench.dispatch("restart"))
    assert row.reason is not None
    assert "it says no" not in row.reason.message
    assert row.evidence["log_tail"] == ["the key is [redacted]"]
    assert "it says no" not in str(row.evidence)


async def test_a_stop_of_what_is_not_there_is_not_found(bench: Bench) -> None:
    bench.world.missing = True
    await bench.run()
    row = await bench.finished(await bench.dispatch("stop"))
    assert row.reason is not None
    assert row.reason.code == ReasonCode.NOT_FOUND


async def test_a_damaged_current_release_is_mended_by_another_config(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    await asyncio.to_thread((bench.folder / "runtimes/iggy/current/release.json").write_text, "{")
    refused = await bench.finished(await bench.dispatch("reconfigure:9"))
    assert refused.evidence["running"]["current"] is None
    row = await bench.finished(await bench.dispatch("reconfigure:6", config=make_config(6)))
    assert (row.status, row.evidence["outcome"], await bench.current()) == ("completed", "applied", "6-1")


@pytest.mark.parametrize("damage", ["environment", "files/config.toml"])
async def test_a_damaged_current_release_is_mended_by_its_own_config_and_what_runs_is_restarted(
    bench: Bench, damage: str
) -> None:
    """It may have been started with what was damaged, which nothing tells."""
    config = make_config(5, files={"config.toml": "[tcp]\n"})
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=config))
    file = bench.folder / "runtimes/iggy/current" / damage
    whole = await asyncio.to_thread(file.read_bytes)
    await asyncio.to_thread(file.write_text, "")
    row = await bench.finished(await bench.dispatch("reconfigure:5", config=config))
    assert (row.status, row.evidence["outcome"], row.changed) == ("completed", "applied", True)
    assert bench.world.began == 3
    assert await asyncio.to_thread(file.read_bytes) == whole
    row = await bench.finished(await bench.dispatch("reconfigure:5", config=config))
    assert (row.status, row.evidence["outcome"], row.changed) == ("completed", "applied", False)


async def test_going_back_to_none_from_a_damaged_release_takes_it_away(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    bench.world.never_ready_with = {make_config(8)["sha256"]}
    real = bench.driver.restart

    async def restart(record: Recorder) -> Outcome:
        outcome = await real(record)
        file = bench.folder / "runtimes/iggy/current/release.json"
        if bench.world.runs_with == make_config(8)["sha256"]:
            await asyncio.to_thread(file.write_text, "{")
        return outcome

    bench.driver.restart = restart  # type: ignore[method-assign]
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=make_config(8)))
    assert row.evidence["outcome"] == "rolled_back"
    assert not await asyncio.to_thread((bench.folder / "runtimes/iggy/current").is_symlink)


async def test_a_damaged_current_release_is_not_taken_for_none_that_was_committed(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    releases = bench.folder / "runtimes/iggy/releases"
    await asyncio.to_thread((releases / "5-1/release.json").write_text, "{")
    bench.world.runs_with = None  # as systemd, which does not say what it gave to a run
    row = await bench.finished(await bench.dispatch("start"))
    assert (row.status, row.changed) == ("completed", False)
    assert await bench.journal.committed("iggy") == "5-1"
    bench.world.never_ready_with = {make_config(6)["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:6", config=make_config(6)))
    assert (row.evidence["outcome"], await bench.current()) == ("rollback_failed", "6-1")
    assert row.reason is not None
    assert "cannot switch iggy to config 5-1" in row.reason.message
    assert await asyncio.to_thread((releases / "5-1/environment").exists)
