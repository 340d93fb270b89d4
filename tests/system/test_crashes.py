"""What the node survives in the middle of an action: one effect, one report, and the report is true."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.system.node import UNIT, Node

IGGY = RuntimeName.IGGY
DROP_IN = "etc/systemd/system/iggy-agent.service.d/test.conf"
BOOT_ID = "etc/systemd/system/boot-id.service"
READ_BOOT_ID = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cat /proc/sys/kernel/random/boot_id >/run/boot-id'
"""
SHOW_BOOT_ID = """\
[Unit]
Requires=boot-id.service
After=boot-id.service
[Service]
BindReadOnlyPaths=/run/boot-id:/proc/sys/kernel/random/boot_id
"""
"""Shows the agent the boot id of the container; the /proc that its hardening mounts has the machine's."""
SLOW = "slow_start:1.5"
"""Time for the test to interrupt the wait for readiness."""


async def restart_the_agent(node: Node, _runs: int) -> None:
    await asyncio.to_thread(node.system.run, "systemctl", "restart", "iggy-agent")


async def kill_the_agent(node: Node, _runs: int) -> None:
    node.system.run("kill", "-KILL", node.agent("MainPID")["MainPID"])


async def crash_iggy(node: Node, runs: int) -> None:
    def pid() -> int:
        return int(node.system.show(UNIT[IGGY], "MainPID")["MainPID"])

    await until(lambda: len(node.births(IGGY)) > runs and pid() == node.births(IGGY)[-1].pid, "the new run has begun")
    node.system.run("kill", "-KILL", str(pid()))


async def restart_the_bus(node: Node, _runs: int) -> None:
    node.system.run("systemctl", "restart", "dbus.service")


async def reexec_systemd(node: Node, _runs: int) -> None:
    node.system.run("systemctl", "daemon-reexec")


Interruption = Callable[[Node, int], Awaitable[None]]
"""Is told how many runs of Iggy there were before the action."""


@pytest_asyncio.fixture(loop_scope="session")
async def slow(node: Node) -> AsyncIterator[Node]:
    """A node with Iggy up, whose later runs take their time to get ready."""
    await node.api.run(IGGY, "stop")
    await node.api.run(IGGY, "start")
    node.switch_faults(IGGY, SLOW)
    yield node
    node.switch_faults(IGGY)
    await node.until_up()


async def interrupted(node: Node, action: str, call: str, interruption: Interruption) -> Activity:
    """Dispatch an action, interrupt it once its call is journaled, and return its end."""
    runs = len(node.births(IGGY))
    activity = await node.api.dispatch(IGGY, action)
    await node.until_called(activity.id, call)
    await interruption(node, runs)
    finished = await node.api.finished(activity.id, within=60)
    listed = [one for one in await node.api.activities() if one.id == activity.id]
    assert [one.status for one in listed] == [finished.status], "reported once"
    return finished


@pytest.mark.parametrize(
    ("interruption", "more_runs"),
    [(restart_the_agent, 0), (kill_the_agent, 0), (restart_the_bus, 0), (reexec_systemd, 0), (crash_iggy, 1)],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_restart_that_is_interrupted_restarts_once(
    slow: Node, interruption: Interruption, more_runs: int
) -> None:
    before = len(slow.births(IGGY)), slow.invocation(UNIT[IGGY])
    finished = await interrupted(slow, "restart", "restart", interruption)
    assert finished.status is ActivityStatus.COMPLETED, f"{finished.code} {finished.message} {finished.evidence}"
    assert len(slow.births(IGGY)) - before[0] == 1 + more_runs
    assert slow.invocation(UNIT[IGGY]) != before[1]
    assert (await slow.seen(IGGY))["state"] == "running"


@pytest.mark.parametrize("interruption", [restart_the_agent, kill_the_agent], ids=lambda value: value.__name__)
async def test_a_reconfigure_that_is_interrupted_is_applied_once(slow: Node, interruption: Interruption) -> None:
    config = await slow.api.create_config(IGGY, interruption.__name__, {"IGGY_SYSTEM_LOGGING_NOTE": "interrupted"})
    before = len(slow.births(IGGY))
    finished = await interrupted(slow, f"reconfigure:{config}", "restart", interruption)
    assert finished.status is ActivityStatus.COMPLETED, f"{finished.code} {finished.message} {finished.evidence}"
    assert finished.evidence["outcome"] == "applied"
    assert len(slow.births(IGGY)) - before == 1


async def test_a_stop_that_is_interrupted_stops_once(node: Node) -> None:
    await node.api.run(IGGY, "stop")
    await node.api.run(IGGY, "start")
    node.switch_faults(IGGY, "slow_drain:1.5")
    before = len(node.births(IGGY))
    finished = await interrupted(node, "stop", "stop", kill_the_agent)
    node.switch_faults(IGGY)
    assert (finished.status, finished.recovered) == (ActivityStatus.COMPLETED, True)
    assert len(node.births(IGGY)) == before
    assert node.system.show(UNIT[IGGY], "ActiveState") == {"ActiveState": "inactive"}
    await node.until_up()


@pytest_asyncio.fixture(loop_scope="session")
async def own_boots(node: Node) -> AsyncIterator[Node]:
    """A node whose agent sees the boots of the container."""
    node.system.write(BOOT_ID, READ_BOOT_ID)
    node.system.write(DROP_IN, SHOW_BOOT_ID)
    node.system.run("systemctl", "daemon-reload")
    node.system.run("systemctl", "restart", "iggy-agent")
    await node.until_up()
    yield node
    (node.system.root / DROP_IN).unlink()
    node.system.run("systemctl", "daemon-reload")
    node.switch_faults(IGGY)
    node.system.run("systemctl", "restart", "iggy-agent")
    await node.until_up()


async def reboot(node: Node, _runs: int) -> None:
    await asyncio.to_thread(node.system.reboot)


async def cut_power(node: Node, runs: int) -> None:
    await until(lambda: len(node.births(IGGY)) > runs, "the new run has begun")
    node.system.cut_power()


@pytest.mark.parametrize("interruption", [reboot, cut_power], ids=lambda value: value.__name__)
async def test_a_restart_in_whose_middle_the_machine_reboots_is_completed(
    own_boots: Node, interruption: Interruption
) -> None:
    node = own_boots
    await node.api.run(IGGY, "start")
    node.switch_faults(IGGY, SLOW)
    before = len(node.births(IGGY))
    finished = await interrupted(node, "restart", "restart", interruption)
    assert finished.status is ActivityStatus.COMPLETED, f"{finished.code} {finished.message} {finished.evidence}"
    # Iggy is not enabled: after the power cut the action itself starts it once more. A reboot in order cancels the job,
    # or lets the agent finish before it stops the runtimes, or finds it in between.
    runs = len(node.births(IGGY)) - before
    assert (runs, finished.recovered) == (2, True) if interruption is cut_power else runs in {1, 2}
    if finished.recovered:
        assert node.system.show(UNIT[IGGY], "ActiveState") == {"ActiveState": "active"}
