"""What the node survives in the middle of each action: one effect, one report, and the report is true.

Both runtimes are in the middle of the same action when it happens, each in its own lane.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.system.node import UNIT, Node

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
ACTIONS = pytest.mark.parametrize("action", ["start", "stop", "restart", "reconfigure"])
CALL = {"start": "start", "stop": "stop", "restart": "restart", "reconfigure": "restart"}
"""The decisive call of each."""
NOTE = {IGGY: "IGGY_SYSTEM_LOGGING_NOTE", CONNECTORS: "IGGY_CONNECTORS_LOGGING_NOTE"}


Begun = Callable[[], Awaitable[None]]
"""Returns when the runs that the action brings up have begun; at once for a stop."""
Interruption = Callable[[Node, Begun], Awaitable[None]]


async def restart_the_agent(node: Node, _begun: Begun) -> None:
    await asyncio.to_thread(node.system.run, "systemctl", "restart", "iggy-agent")


async def kill_the_agent(node: Node, _begun: Begun) -> None:
    node.system.run("kill", "-KILL", node.agent("MainPID")["MainPID"])


async def crash_iggy(node: Node, begun: Begun) -> None:
    await begun()
    node.system.run("kill", "-KILL", str(node.births(IGGY)[-1].pid))


async def restart_the_bus(node: Node, _begun: Begun) -> None:
    node.system.run("systemctl", "restart", "dbus.service")


async def reexec_systemd(node: Node, _begun: Begun) -> None:
    node.system.run("systemctl", "daemon-reexec")


async def reboot(node: Node, begun: Begun) -> None:
    await begun()
    await asyncio.to_thread(node.system.shut_down)
    release(node)
    node.system.boot()


async def cut_power(node: Node, begun: Begun) -> None:
    await begun()
    node.system.cut_power()
    release(node)
    node.system.boot()


def hold(node: Node, action: str) -> None:
    """Keep what begins now in its middle: nothing gets ready until it is released, and what stops takes its time."""
    for runtime in RuntimeName:
        node.switch_faults(runtime, "slow_drain:1.5" if action == "stop" else "ping_503")


def release(node: Node) -> None:
    for runtime in RuntimeName:
        node.switch_faults(runtime)


@pytest_asyncio.fixture(loop_scope="session")
async def whole(node: Node) -> AsyncIterator[Node]:
    """A node that is let go, and up, after the test."""
    yield node
    release(node)
    await node.until_up()


async def run_both(node: Node, action: str) -> None:
    ends = await asyncio.gather(*(node.api.run(runtime, action) for runtime in RuntimeName))
    assert [end.status for end in ends] == ["completed", "completed"], [end.message for end in ends]


async def interrupted(node: Node, action: str, interruption: Interruption) -> dict[RuntimeName, Activity]:
    """Dispatch an action for both, interrupt it once both calls are journaled, and return how each ended."""
    verb = dict.fromkeys(RuntimeName, action)
    if action == "reconfigure":
        for runtime in RuntimeName:
            config = await node.api.create_config(runtime, "interrupted", {NOTE[runtime]: interruption.__name__})
            verb[runtime] = f"reconfigure:{config}"
    runs = {runtime: len(node.births(runtime)) for runtime in RuntimeName}

    async def begun() -> None:
        await until(
            lambda: action == "stop" or all(len(node.births(runtime)) > runs[runtime] for runtime in RuntimeName),
            "both new runs have begun",
        )

    hold(node, action)
    dispatched = {runtime: await node.api.dispatch(runtime, verb[runtime]) for runtime in RuntimeName}
    for activity in dispatched.values():
        await node.until_called(activity.id, CALL[action])
    await interruption(node, begun)
    release(node)
    finished = {runtime: await node.api.finished(one.id, within=60) for runtime, one in dispatched.items()}
    listed = {one.id: one.status for one in await node.api.activities()}
    for one in finished.values():
        assert listed[one.id] == one.status, "its report is its only one"
        assert one.status is ActivityStatus.COMPLETED, f"{one.code} {one.message} {one.evidence}"
    return finished


def states(node: Node) -> list[str]:
    return [node.system.show(UNIT[runtime], "ActiveState")["ActiveState"] for runtime in RuntimeName]


async def had_one_effect(
    node: Node, action: str, interruption: Interruption, *, more_runs: int = 0, more_runs_of_connectors: int = 0
) -> dict[RuntimeName, Activity]:
    """Interrupt an action, and count: one run more each, and those that the test itself made necessary."""
    await run_both(node, "stop" if action == "start" else "start")
    before = {runtime: (len(node.births(runtime)), node.invocation(UNIT[runtime])) for runtime in RuntimeName}
    finished = await interrupted(node, action, interruption)
    more = {IGGY: more_runs, CONNECTORS: more_runs_of_connectors}
    one = 0 if action == "stop" else 1
    made = {runtime: len(node.births(runtime)) - before[runtime][0] for runtime in RuntimeName}
    assert made == {runtime: one + more[runtime] for runtime in RuntimeName}
    assert all(state in ({"inactive", "failed"} if action == "stop" else {"active"}) for state in states(node))
    if action == "stop":
        return finished
    for runtime, activity in finished.items():
        assert node.invocation(UNIT[runtime]) != before[runtime][1]
        if action == "reconfigure":
            assert activity.evidence["outcome"] == "applied"
            pid = node.system.show(UNIT[runtime], "MainPID")["MainPID"]
            environ = node.system.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
            assert f"{NOTE[runtime]}={interruption.__name__}" in environ
    return finished


@ACTIONS
@pytest.mark.parametrize("interruption", [restart_the_agent, kill_the_agent], ids=lambda value: value.__name__)
async def test_an_action_whose_agent_ends_has_its_effect_once(
    whole: Node, action: str, interruption: Interruption
) -> None:
    finished = await had_one_effect(whole, action, interruption)
    assert all(one.recovered for one in finished.values())


@ACTIONS
async def test_an_action_in_which_iggy_crashes_is_told_as_it_ended(whole: Node, action: str) -> None:
    await had_one_effect(whole, action, crash_iggy, more_runs=0 if action == "stop" else 1)


@pytest.mark.parametrize("interruption", [restart_the_bus, reexec_systemd], ids=lambda value: value.__name__)
async def test_a_restart_survives_that_the_bus_or_systemd_begins_anew(whole: Node, interruption: Interruption) -> None:
    await had_one_effect(whole, "restart", interruption)


@ACTIONS
async def test_an_action_goes_on_after_a_reboot(whole: Node, action: str) -> None:
    """Nothing is enabled but the agent: what the reboot ended, the action itself brings up once more."""
    more = 0 if action == "stop" else 1
    finished = await had_one_effect(whole, action, reboot, more_runs=more, more_runs_of_connectors=more)
    assert all(one.recovered for one in finished.values())


async def test_a_restart_goes_on_after_a_power_cut(whole: Node) -> None:
    finished = await had_one_effect(whole, "restart", cut_power, more_runs=1, more_runs_of_connectors=1)
    assert all(one.recovered for one in finished.values())
