"""What the node survives in the middle of each action: one effect, one report, and the report is true.

Both runtimes are in the middle of the same action when it happens, each in its own lane.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agent.protocol import RuntimeName
from tests.system.middle import ACTIONS, Begun, Interruption, had_one_effect, release
from tests.system.node import Node

IGGY = RuntimeName.IGGY
EACH_ACTION = pytest.mark.parametrize("action", ACTIONS)


async def restart_the_agent(node: Node, _begun: Begun) -> None:
    await asyncio.to_thread(node.system.run, "systemctl", "restart", "iggy-agent")


async def kill_the_agent(node: Node, _begun: Begun) -> None:
    node.system.run("kill", "-KILL", node.agent("MainPID")["MainPID"])


async def crash_iggy(node: Node, begun: Begun) -> None:
    await begun()
    node.system.run("kill", "-KILL", str(node.births(IGGY)[-1].pid))


async def restart_the_bus(node: Node, begun: Begun) -> None:
    """Not before the call has arrived: one that the bus still holds goes with it, and is truly rejected.

    The fault campaign has both (`kill.bus.systemd`).
    """
    await begun()
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


@pytest_asyncio.fixture(loop_scope="session")
async def whole(node: Node) -> AsyncIterator[Node]:
    """A node that is let go, and up, after the test."""
    yield node
    release(node)
    await node.until_up()


@EACH_ACTION
@pytest.mark.parametrize("interruption", [restart_the_agent, kill_the_agent], ids=lambda value: value.__name__)
async def test_an_action_whose_agent_ends_has_its_effect_once(
    whole: Node, action: str, interruption: Interruption
) -> None:
    finished = await had_one_effect(whole, action, interruption)
    assert all(one.recovered for one in finished.values())


@EACH_ACTION
async def test_an_action_in_which_iggy_crashes_is_told_as_it_ended(whole: Node, action: str) -> None:
    await had_one_effect(whole, action, crash_iggy, more_runs=0 if action == "stop" else 1)


@pytest.mark.parametrize("interruption", [restart_the_bus, reexec_systemd], ids=lambda value: value.__name__)
async def test_a_restart_survives_that_the_bus_or_systemd_begins_anew(whole: Node, interruption: Interruption) -> None:
    await had_one_effect(whole, "restart", interruption)


@EACH_ACTION
async def test_an_action_goes_on_after_a_reboot(whole: Node, action: str) -> None:
    """Nothing is enabled but the agent: what the reboot ended, the action itself brings up once more."""
    more = 0 if action == "stop" else 1
    finished = await had_one_effect(whole, action, reboot, more_runs=more, more_runs_of_connectors=more)
    assert all(one.recovered for one in finished.values())


async def test_a_restart_goes_on_after_a_power_cut(whole: Node) -> None:
    finished = await had_one_effect(whole, "restart", cut_power, more_runs=1, more_runs_of_connectors=1)
    assert all(one.recovered for one in finished.values())
