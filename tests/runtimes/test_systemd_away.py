"""The systemd driver while things are under way, and while the bus is away."""

import asyncio
from pathlib import Path

import pytest
from dbus_fast import ErrorType, Message

import agent.runtimes.bus
from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.systemd import SystemdDriver
from tests.fakes.systemd import FakeSystemd, PrivateBus, refuse
from tests.runtimes.conftest import Steps, eventually
from tests.runtimes.systemd_rig import driver_of, fake_systemd, looked, settled_as, settled_as_soon_as_it_can_be_asked

# --- settling


async def test_settling_waits_for_the_job_and_for_two_looks_that_agree(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    systemd.run()
    path = systemd.new_job("restart", pending=True)
    settling = asyncio.ensure_future(driver.settle())
    await looked(systemd, 3)
    assert not settling.done()
    systemd.set(ActiveState="activating", SubState="auto-restart")
    systemd.finish_job(path)
    await looked(systemd, 3)
    assert not settling.done()
    run = systemd.run()
    assert (await settling).incarnation == run


async def test_two_looks_at_two_runs_do_not_agree(driver: SystemdDriver, systemd: FakeSystemd) -> None:
    looks = 0

    def another_run_at_the_second_look(call: Message) -> Message:
        nonlocal looks
        looks += 1
        if looks in {2, 3}:
            systemd.run()
        return systemd.get_all(call)

    systemd.run()
    systemd.on["GetAll"] = another_run_at_the_second_look
    await driver.settle()
    assert looks == 4


# --- the bus goes away


async def test_without_a_bus_the_driver_stays_open_and_says_so(tmp_path: Path, folder: Path) -> None:
    async with driver_of(f"unix:path={tmp_path}/none", folder) as driver:
        for ask in (driver.observe, driver.settle):
            with pytest.raises(Rejection) as caught:
                await ask()
            assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE
            assert "No such file" in caught.value.message


async def test_a_bus_without_systemd_is_as_good_as_none_until_it_comes(bus: PrivateBus, folder: Path) -> None:
    async with driver_of(bus.address, folder) as driver:
        with pytest.raises(Rejection) as caught:
            await driver.observe()
        assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE
        async with fake_systemd(bus) as systemd:
            await driver.wait_for_change()
            assert (await driver.observe()).state == "stopped"
            assert systemd.references == 1


async def test_a_systemd_that_starts_anew_is_subscribed_to_and_the_unit_held_again(
    bus: PrivateBus, driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    await driver.observe()
    await systemd.disconnect()
    async with fake_systemd(bus) as another:
        await settled_as_soon_as_it_can_be_asked(driver, "stopped")
        assert another.references == 1
        another.run()
        await settled_as(driver, "running")


async def test_a_bus_that_dies_is_connected_to_again(
    bus: PrivateBus, driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    systemd.run()
    await settled_as(driver, "running")
    bus.kill()
    await driver.wait_for_change()
    with pytest.raises(Rejection) as caught:
        await driver.observe()
    assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE
    bus.start()
    async with fake_systemd(bus) as another:
        another.run()
        await settled_as_soon_as_it_can_be_asked(driver, "running")
        another.end()
        await settled_as(driver, "stopped")


async def test_a_restart_whose_answer_was_lost_is_told_by_what_is_seen_after(
    bus: PrivateBus, driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    run = systemd.run()
    systemd.on["RestartUnit"] = lambda _call: None
    restarting = asyncio.ensure_future(driver.restart(steps))
    await eventually(lambda: "RestartUnit replace" in systemd.acts)
    bus.kill()
    bus.start()
    async with fake_systemd(bus) as another:
        new = another.run()
        outcome = await restarting
        assert outcome.detail["job_result"] == "not seen"
        seen = await driver.observe()
        assert (seen.incarnation, outcome.before.incarnation) == (new, run)
        assert another.acts == []


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
async def test_a_call_that_was_lost_with_the_bus_had_no_effect_and_is_not_made_again(
    bus: PrivateBus, driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, verb: str
) -> None:
    if verb != "start":
        systemd.run()
    method = f"{verb.capitalize()}Unit"
    systemd.on[method] = lambda _call: None
    acting = asyncio.ensure_future(getattr(driver, verb)(steps))
    await eventually(lambda: any(call.startswith(method) for call in systemd.acts))
    bus.kill()
    bus.start()
    async with fake_systemd(bus) as another:
        another.properties = systemd.properties
        with pytest.raises(Rejection) as caught:
            await acting
        assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE
        assert "no effect" in caught.value.message
        assert another.acts == []


async def test_what_became_of_a_lost_call_is_unknown_when_the_bus_stays_away(
    bus: PrivateBus, systemd: FakeSystemd, folder: Path, steps: Steps
) -> None:
    systemd.run()
    systemd.on["RestartUnit"] = lambda _call: None
    async with driver_of(bus.address, folder, start_timeout=0.2, stop_timeout=0.2) as driver:
        restarting = asyncio.ensure_future(driver.restart(steps))
        await eventually(lambda: "RestartUnit replace" in systemd.acts)
        bus.kill()
        with pytest.raises(Rejection) as caught:
            await restarting
    assert caught.value.code is ReasonCode.OUTCOME_UNKNOWN


async def test_a_job_goes_on_to_be_followed_after_the_bus_came_back(
    bus: PrivateBus, driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    run = systemd.run()

    def slowly(call: Message) -> Message:
        systemd.set(ActiveState="deactivating")
        return Message.new_method_return(call, "o", [systemd.new_job("stop", pending=True)])

    systemd.on["StopUnit"] = slowly
    stopping = asyncio.ensure_future(driver.stop(steps))
    await eventually(lambda: "StopUnit replace" in systemd.acts)
    await looked(systemd, 2)
    bus.kill()
    bus.start()
    async with fake_systemd(bus) as another:
        another.properties = systemd.properties
        another.end(code=1, status=0, Job=[0, "/"])
        outcome = await stopping
    assert (outcome.before.incarnation, outcome.exit_code, outcome.detail["job_result"]) == (run, 0, "not seen")


async def test_cancelling_a_verb_leaves_its_job_to_systemd(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    def hang(call: Message) -> Message:
        systemd.set(ActiveState="deactivating")
        return Message.new_method_return(call, "o", [systemd.new_job("stop", pending=True)])

    systemd.run()
    systemd.on["StopUnit"] = hang
    stopping = asyncio.ensure_future(driver.stop(steps))
    await eventually(lambda: "StopUnit replace" in systemd.acts)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await driver.observe()).state == "stopping"
    assert systemd.acts == ["StopUnit replace"]


async def test_a_call_that_systemd_never_answers_is_told_by_what_is_seen_after(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act_and_say_nothing(_call: Message) -> None:
        systemd.run()

    monkeypatch.setattr(agent.runtimes.bus, "CALL_TIMEOUT", 0.2)
    systemd.on["StartUnit"] = act_and_say_nothing
    outcome = await driver.start(steps)
    assert outcome.detail["job_result"] == "not seen"
    assert (await driver.observe()).running


async def test_a_start_whose_job_waits_without_a_reason_to_be_seen_is_a_timeout(
    bus: PrivateBus, systemd: FakeSystemd, folder: Path, steps: Steps
) -> None:
    def never(call: Message) -> Message:
        return Message.new_method_return(call, "o", [systemd.new_job("verify-active", pending=True)])

    systemd.on["StartUnit"] = never
    async with driver_of(bus.address, folder, stop_timeout=-4.9) as driver:
        with pytest.raises(Rejection) as caught:
            await driver.start(steps)
    assert caught.value.code is ReasonCode.TIMEOUT


async def test_a_job_that_cannot_be_followed_in_time_is_given_up(
    bus: PrivateBus, systemd: FakeSystemd, folder: Path, steps: Steps
) -> None:
    def hang(call: Message) -> Message:
        systemd.set(ActiveState="deactivating")
        return Message.new_method_return(call, "o", [systemd.new_job("stop", pending=True)])

    systemd.run()
    systemd.on["StopUnit"] = hang
    async with driver_of(bus.address, folder, stop_timeout=-4.0) as driver:
        stopping = asyncio.ensure_future(driver.stop(steps))
        await eventually(lambda: "StopUnit replace" in systemd.acts)
        await looked(systemd, 1)
        bus.kill()
        with pytest.raises(Rejection) as caught:
            await stopping
    assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE


async def test_a_systemd_that_goes_before_the_start_limit_is_reset_is_away(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps
) -> None:
    systemd.set(ActiveState="failed", Result="start-limit-hit")
    systemd.on["ResetFailedUnit"] = refuse("org.freedesktop.DBus.Error.NoReply")
    with pytest.raises(Rejection) as caught:
        await driver.start(steps)
    assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE
    assert systemd.acts == ["ResetFailedUnit"]


async def test_a_reading_that_is_refused_says_so(driver: SystemdDriver, systemd: FakeSystemd) -> None:
    systemd.on["GetAll"] = refuse("org.freedesktop.DBus.Error.AccessDenied")
    with pytest.raises(Rejection, match="systemd refused to say") as caught:
        await driver.observe()
    assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE


async def test_a_job_that_ends_while_it_is_looked_at_is_looked_at_again(
    driver: SystemdDriver, systemd: FakeSystemd
) -> None:
    def just_ended(call: Message) -> Message:
        systemd.finish_job(path)
        systemd.run()
        return Message.new_error(call, ErrorType.UNKNOWN_OBJECT, "it has just ended")

    path = systemd.new_job("start", pending=True)
    systemd.on["Get"] = just_ended
    assert (await driver.observe()).running


@pytest.mark.parametrize("call", ["stop", "restart"])
async def test_a_systemd_that_begins_anew_when_the_job_is_over_is_asked_again(
    driver: SystemdDriver, systemd: FakeSystemd, steps: Steps, call: str
) -> None:
    systemd.run()
    asked = 0

    def ends() -> None:
        systemd.end(Result="start-limit-hit" if call == "restart" else "success", ActiveState="failed")
        systemd.on["GetAll"] = gone_once

    def gone_once(request: Message) -> Message:
        nonlocal asked
        asked += 1
        return refuse(ErrorType.NO_REPLY.value)(request) if asked == 1 else systemd.get_all(request)

    systemd.on["StopUnit"] = systemd.job_is("stop", "done", ends)
    systemd.on["RestartUnit"] = systemd.job_is("restart", "failed", ends)
    outcome = await getattr(driver, call)(steps)
    assert outcome.calls[0] == call
    assert asked >= 2
