"""The systemd driver against a systemd that does what a test says."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import BusType, Message, Variant
from dbus_fast.aio import MessageBus

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.driver import Call, Step, read_boot_id
from agent.runtimes.systemd import SystemdDriver
from tests.fakes.systemd import MANAGER, MANAGER_PATH, FakeSystemd, PrivateBus, refuse
from tests.runtimes.conftest import Steps, eventually
from tests.runtimes.systemd_rig import driver_of, settled_as

# --- observing


async def test_a_running_unit_is_observed_with_all_that_systemd_knows_of_it(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    run = systemd.run(NRestarts=2)
    seen = await driver.observe()
    assert (seen.state, seen.incarnation, seen.pid, seen.restarts) == ("running", run, 4242, 2)
    assert (seen.memory_bytes, seen.cpu_seconds, seen.exit_code) == (1_000_000, 1.5, None)
    assert seen.started_at is not None
    assert seen.detail == {"unit": "iggy.service", "active_state": "active", "sub_state": "running"}


@pytest.mark.parametrize(
    ("properties", "state"),
    [
        ({"ActiveState": "active"}, "running"),
        ({"ActiveState": "reloading"}, "running"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, "starting"),
        ({"ActiveState": "activating", "SubState": "start", "MainPID": 7}, "starting"),
        ({"ActiveState": "deactivating"}, "stopping"),
        ({"ActiveState": "failed"}, "failed"),
        ({"ActiveState": "inactive"}, "stopped"),
        ({"ActiveState": "inactive", "LoadState": "not-found"}, "missing"),
        ({"ActiveState": "active", "LoadState": "not-found"}, "running"),
        ({"ActiveState": "inactive", "LoadState": "masked"}, "stopped"),
    ],
)
async def test_a_state_of_systemd_is_a_state_of_ours(
    driver: SystemdDriver, systemd: FakeSystemd, properties: dict[str, Any], state: str
) -> None:
    systemd.set(**properties)
    assert (await driver.observe()).state == state


async def test_a_start_that_waits_for_another_unit_is_starting_and_a_queued_stop_is_not(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    path = systemd.new_job("start", pending=True)
    assert (await driver.observe()).state == "starting"
    systemd.job_type = "stop"
    assert (await driver.observe()).state == "stopped"
    systemd.finish_job(path)
    assert (await driver.observe()).detail.get("job") is None


async def test_the_last_run_of_a_unit_that_systemd_forgot_is_not_known(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    seen = await driver.observe()
    assert (seen.incarnation, seen.incarnation_known, seen.exit_code) == (None, False, None)
    run = systemd.run()
    systemd.end(code=1, status=3, ActiveState="failed", Result="exit-code")
    seen = await driver.observe()
    assert (seen.incarnation, seen.incarnation_known, seen.exit_code) == (run, True, 3)


async def test_the_unit_is_held_so_that_evidence_of_its_last_run_survives(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    await driver.observe()
    await driver.observe()
    assert systemd.references == 1


async def test_a_unit_that_may_not_be_held_is_managed_all_the_same(
    bus: PrivateBus, systemd: FakeSystemd, folder: Path
) -> None:
    systemd.on["RefUnit"] = refuse("org.freedesktop.DBus.Error.AccessDenied")
    async with driver_of(bus.address, folder) as driver:
        assert (await driver.observe()).state == "stopped"
        await driver.observe()
    assert systemd.calls.count("RefUnit") == 1


async def test_a_run_that_ends_by_itself_is_pushed(driver: SystemdDriver, systemd: FakeSystemd) -> None:
    systemd.run(push=False)
    assert (await driver.observe()).running
    waiting = asyncio.ensure_future(driver.wait_for_change())
    await asyncio.sleep(0)
    assert not waiting.done()
    systemd.end(ActiveState="failed", Result="signal", code=2, status=9)
    async with asyncio.timeout(5):
        await waiting
    seen = await driver.observe()
    assert (seen.exit_code, seen.detail["cause"]) == (137, "SIGKILL ended it")


async def test_what_was_told_before_is_not_pushed_again(driver: SystemdDriver, systemd: FakeSystemd) -> None:
    told: list[str] = []
    driver._unit._on_change = lambda: told.append("change")
    state = {"ActiveState": Variant("s", "active"), "SubState": Variant("s", "running")}
    for _ in range(3):
        systemd.push(state)
    systemd.push({"ActiveState": Variant("s", "deactivating")})
    systemd.push({})
    systemd.signal("Reloading", "b", True)
    await eventually(lambda: len(told) == 4)


async def test_a_unit_under_an_alias_is_heard_of_by_its_primary_name(
    bus: PrivateBus, systemd: FakeSystemd, folder: Path
) -> None:
    systemd.properties["Id"] = "iggy-server.service"
    async with driver_of(bus.address, folder) as driver:
        systemd.run()
        await settled_as(driver, "running")
        systemd.end()
        await settled_as(driver, "stopped")


async def test_a_signal_that_is_not_from_systemd_does_not_count(
    bus: PrivateBus, driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    path = systemd.new_job("start", pending=True)
    said = Message.new_signal(MANAGER_PATH, MANAGER, "JobRemoved", "uoss", [1, path, "iggy.service", "done"])
    assert driver._unit.bus._connection is not None
    said.destination = driver._unit.bus._connection.unique_name
    stranger = await MessageBus(bus.address, BusType.SYSTEM).connect()
    await stranger.send(said)
    await stranger.call(
        Message(destination=said.destination, path="/", interface="org.freedesktop.DBus.Peer", member="Ping")
    )
    stranger.disconnect()
    await stranger.wait_for_disconnect()  # type: ignore[no-untyped-call]
    assert driver._unit.jobs.result(path) is None
    systemd.finish_job(path)
    await driver.observe()
    assert driver._unit.jobs.result(path) == "done"


# --- starting


async def test_a_start_is_recorded_with_a_and_the_boot_before_it_is_made(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    seen_at_record: list[list[str]] = []
    boot_id = await asyncio.to_thread(read_boot_id)

    async def record(step: Step) -> None:
        seen_at_record.append(list(systemd.acts))
        assert (step.call, step.decisive, step.boot_id) == (Call.START, True, boot_id)
        assert step.before is not None
        assert step.before.state == "stopped"

    outcome = await driver.start(record)
    assert seen_at_record == [[]]
    assert systemd.acts == ["StartUnit fail"]
    assert outcome.calls == (Call.START,)
    assert outcome.detail["job_result"] == "done"
    assert (await driver.observe()).running


async def test_a_call_that_cannot_be_recorded_is_not_made(driver: SystemdDriver, systemd: FakeSystemd) -> None:
    async def record(_step: Step) -> None:
        msg = "the disk is full"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError):
        await driver.start(record)
    assert systemd.acts == []


async def test_what_runs_already_is_not_started(driver: SystemdDriver, systemd: FakeSystemd, steps: Steps) -> None:
    systemd.run()
    assert (await driver.start(steps)).calls == ()
    assert (steps, systemd.acts) == ([], [])


async def test_a_result_that_is_said_after_the_answer_is_waited_for(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    def answer_first(call: Message) -> Message:
        path = systemd.new_job("start", pending=True)

        def later() -> None:
            systemd.run()
            systemd.finish_job(path)

        asyncio.get_running_loop().call_later(0.05, later)
        return Message.new_method_return(call, "o", [path])

    systemd.on["StartUnit"] = answer_first
    outcome = await driver.start(steps)
    assert outcome.detail["job_result"] == "done"
    assert (await driver.observe()).running


async def test_a_result_that_is_never_said_is_seen_at_the_unit(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    def never_say(call: Message) -> Message:
        systemd.run(push=False)
        return Message.new_method_return(call, "o", [systemd.new_job("start")])

    systemd.on["StartUnit"] = never_say
    outcome = await driver.start(steps)
    assert outcome.detail["job_result"] == "not seen"


async def test_a_start_that_takes_its_time_is_handed_over_to_the_wait_for_readiness(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    def notify(call: Message) -> Message:
        systemd.run(ActiveState="activating", SubState="start")
        return Message.new_method_return(call, "o", [systemd.new_job("start", pending=True)])

    systemd.on["StartUnit"] = notify
    async with asyncio.timeout(10):
        outcome = await driver.start(steps)
    assert outcome.detail["job_result"] == "under way"
    assert (await driver.observe()).state == "starting"


async def test_what_became_of_a_start_that_was_handed_over_is_told_later(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    paths = []

    def wait(call: Message) -> Message:
        paths.append(systemd.new_job("start", pending=True))
        return Message.new_method_return(call, "o", paths)

    systemd.on["StartUnit"] = wait
    await driver.start(steps)
    systemd.finish_job(paths[0], "dependency")
    systemd.set()
    seen = await settled_as(driver, "stopped")
    assert seen.detail["cause"] == "a unit that it needs did not come up"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("org.freedesktop.systemd1.NoSuchUnit", ReasonCode.NOT_FOUND, "there is no unit iggy.service"),
        ("org.freedesktop.systemd1.UnitMasked", ReasonCode.START_FAILED, "masked"),
        ("org.freedesktop.systemd1.BadUnitSetting", ReasonCode.START_FAILED, "badly written"),
        ("org.freedesktop.systemd1.TransactionIsDestructive", ReasonCode.BUSY, "somebody else's job"),
        ("org.freedesktop.DBus.Error.AccessDenied", ReasonCode.NOT_PERMITTED, "refused it to this user"),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", ReasonCode.NOT_PERMITTED, "this user"),
        ("org.freedesktop.systemd1.OnlyByDependency", ReasonCode.START_FAILED, "by hand"),
        ("org.example.Odd", ReasonCode.START_FAILED, "systemd refused it: no"),
        ("org.freedesktop.DBus.Error.ServiceUnknown", ReasonCode.DRIVER_UNAVAILABLE, "cannot be asked"),
    ],
)
async def test_each_refusal_of_systemd_has_a_code_and_a_sentence(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, name: str, code: ReasonCode, words: str
) -> None:
    systemd.on["StartUnit"] = refuse(name)
    with pytest.raises(Rejection) as caught:
        await driver.start(steps)
    assert caught.value.code is code
    assert words in caught.value.message
    assert caught.value.hint
    assert "{" not in f"{caught.value}"


async def test_a_refused_stop_is_a_failed_stop(driver: SystemdDriver, systemd: FakeSystemd, steps: Steps) -> None:
    systemd.run()
    systemd.on["StopUnit"] = refuse("org.freedesktop.systemd1.OnlyByDependency")
    with pytest.raises(Rejection) as caught:
        await driver.stop(steps)
    assert caught.value.code is ReasonCode.STOP_FAILED


@pytest.mark.parametrize("verb", ["start", "restart"])
@pytest.mark.parametrize(
    ("properties", "code", "words"),
    [
        ({"LoadState": "not-found"}, ReasonCode.NOT_FOUND, "there is no unit iggy.service"),
        ({"LoadState": "masked"}, ReasonCode.START_FAILED, "its unit is masked"),
        (
            {"LoadState": "bad-setting", "LoadError": ["org.x", "Unit has a bad unit file setting."]},
            ReasonCode.START_FAILED,
            "badly written: Unit has a bad",
        ),
    ],
)
async def test_what_cannot_be_started_is_refused_before_anything_is_done(
    driver: SystemdDriver,
    systemd: FakeSystemd,
    steps: Steps,
    verb: str,
    properties: dict[str, Any],
    code: ReasonCode,
    words: str,
) -> None:
    systemd.set(**properties)
    with pytest.raises(Rejection) as caught:
        await getattr(driver, verb)(steps)
    assert caught.value.code is code
    assert words in caught.value.message
    assert (steps, systemd.acts) == ([], [])


async def test_a_start_whose_place_another_job_took_is_busy(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.on["StartUnit"] = systemd.job_is("start", "canceled", lambda: None)
    with pytest.raises(Rejection) as caught:
        await driver.start(steps)
    assert caught.value.code is ReasonCode.BUSY
    assert caught.value.evidence["before"]["state"] == "stopped"


@pytest.mark.parametrize("state", ["stopping", "running"])
async def test_a_restart_that_a_shutdown_cancels_is_left_to_the_next_boot(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, state: str
) -> None:
    systemd.run()
    systemd.on["RestartUnit"] = systemd.job_is("restart", "canceled", lambda: None)
    systemd.on["Get"] = lambda call: Message.new_method_return(call, "v", [Variant("s", state)])
    restart = asyncio.ensure_future(driver.restart(steps))
    if state == "running":
        with pytest.raises(Rejection, match="another job took the place of ours"):
            await restart
        return
    await eventually(lambda: "Get SystemState" in systemd.calls)
    await driver.observe()
    assert not restart.done(), "a report that blames somebody else"
    restart.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restart


async def test_the_start_limit_is_reset_before_a_start_that_it_would_refuse(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.run()
    systemd.end(ActiveState="failed", Result="start-limit-hit", status=1)
    await driver.start(steps)
    assert systemd.acts == ["ResetFailedUnit", "StartUnit fail"]
    assert steps.words() == ["start!"]


async def test_a_restart_that_ran_into_the_start_limit_is_tried_once_more(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    run = systemd.run()
    systemd.on["RestartUnit"] = systemd.job_is(
        "restart", "failed", lambda: systemd.end(ActiveState="failed", Result="start-limit-hit")
    )
    outcome = await driver.restart(steps)
    assert systemd.acts == ["RestartUnit replace", "ResetFailedUnit", "StartUnit fail"]
    assert steps.words() == ["restart!", "start!"]
    assert outcome.before.incarnation == run
    assert (await driver.observe()).running


async def test_a_start_limit_that_may_not_be_reset_is_told_as_the_cause(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.on["ResetFailedUnit"] = refuse("org.freedesktop.DBus.Error.AccessDenied")
    systemd.on["StartUnit"] = systemd.job_is(
        "start", "failed", lambda: systemd.end(ActiveState="failed", Result="start-limit-hit")
    )
    await driver.start(steps)
    assert systemd.acts.count("StartUnit fail") == 2
    assert "started too often" in (await driver.observe()).detail["cause"]


# --- stopping and restarting


async def test_a_stop_says_how_the_run_ended(driver: SystemdDriver, systemd: FakeSystemd, steps: Steps) -> None:
    run = systemd.run()
    outcome = await driver.stop(steps)
    assert (outcome.before.incarnation, outcome.exit_code, outcome.killed) == (run, 143, False)
    assert systemd.acts == ["StopUnit replace"]
    assert steps.words() == ["stop!"]
    assert (await driver.stop(steps)).calls == ()
    assert len(steps) == 1


async def test_a_stop_that_needed_a_kill_is_a_stop(driver: SystemdDriver, systemd: FakeSystemd, steps: Steps) -> None:
    systemd.run()
    systemd.on["StopUnit"] = systemd.job_is(
        "stop", "done", lambda: systemd.end(code=2, status=9, ActiveState="failed", Result="timeout")
    )
    outcome = await driver.stop(steps)
    assert (outcome.exit_code, outcome.killed) == (137, True)
    assert (await driver.observe()).state == "failed"


async def test_a_stop_of_a_unit_that_is_unloaded_at_once_has_no_evidence_of_how_it_ended(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.run()
    systemd.on["StopUnit"] = systemd.job_is("stop", "done", lambda: systemd.end(InvocationID=b""))
    outcome = await driver.stop(steps)
    assert (outcome.calls, outcome.exit_code, outcome.killed) == ((Call.STOP,), None, None)


async def test_a_missing_unit_cannot_be_stopped(driver: SystemdDriver, systemd: FakeSystemd, steps: Steps) -> None:
    systemd.set(LoadState="not-found")
    with pytest.raises(Rejection) as caught:
        await driver.stop(steps)
    assert caught.value.code is ReasonCode.NOT_FOUND


async def test_a_unit_that_is_about_to_be_revived_is_stopped_by_a_call(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.run()
    systemd.end(ActiveState="activating", SubState="auto-restart")
    await driver.stop(steps)
    assert systemd.acts == ["StopUnit replace"]


@pytest.mark.parametrize(
    ("result", "code"),
    [("canceled", ReasonCode.BUSY), ("failed", ReasonCode.STOP_FAILED), ("done", ReasonCode.STOP_FAILED)],
)
async def test_a_stop_that_left_the_run_running_has_failed(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, result: str, code: ReasonCode
) -> None:
    systemd.run()
    systemd.on["StopUnit"] = systemd.job_is("stop", result, lambda: None)
    with pytest.raises(Rejection) as caught:
        await driver.stop(steps)
    assert caught.value.code is code


@pytest.mark.parametrize("verb", ["stop", "restart"])
async def test_a_run_that_does_not_go_in_time_is_a_failed_stop(
    bus: PrivateBus, systemd: FakeSystemd, folder: Path, steps: Steps, verb: str
) -> None:
    def hang(call: Message) -> Message:
        systemd.set(ActiveState="deactivating", SubState="stop-sigterm")
        return Message.new_method_return(call, "o", [systemd.new_job("stop", pending=True)])

    systemd.run()
    systemd.on |= {"StopUnit": hang, "RestartUnit": hang}
    async with driver_of(bus.address, folder, stop_timeout=-4.9) as driver:
        with pytest.raises(Rejection) as caught:
            await getattr(driver, verb)(steps)
    assert caught.value.code is ReasonCode.STOP_FAILED
    assert "still deactivating" in caught.value.message


async def test_a_restart_is_one_call_that_takes_the_place_of_others(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    run = systemd.run()
    outcome = await driver.restart(steps)
    seen = await driver.observe()
    assert (systemd.acts, steps.words()) == (["RestartUnit replace"], ["restart!"])
    assert outcome.before.incarnation == run != seen.incarnation


async def test_a_restart_waits_until_the_old_run_is_over_before_it_is_handed_over(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.run()

    def slowly(call: Message) -> Message:
        systemd.set(ActiveState="deactivating")
        path = systemd.new_job("restart", pending=True)
        asyncio.get_running_loop().call_later(0.4, lambda: systemd.run(ActiveState="activating", SubState="start"))
        return Message.new_method_return(call, "o", [path])

    systemd.on["RestartUnit"] = slowly
    outcome = await driver.restart(steps)
    assert outcome.detail["job_result"] == "under way"
    seen = await driver.observe()
    assert (seen.state, seen.incarnation == outcome.before.incarnation) == ("starting", False)


async def test_a_run_on_its_way_up_is_not_taken_for_the_one_that_a_restart_begins(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    run = systemd.run(ActiveState="activating", SubState="start")
    await driver.restart(steps)
    before = steps[0].before
    assert before is not None
    assert (before.running, before.incarnation) == (True, run)
