import time

import pytest

from agent.protocol import RuntimeName
from tests.e2e.waiting import until
from tests.system.node import UNIT, Node

IGGY = RuntimeName.IGGY
RUNTIMES = pytest.mark.parametrize("runtime", list(RuntimeName))
ODD = 'it\'s "quoted" `id` $HOME ${PATH} %n %% # x ; -y \\ é 日 '


@RUNTIMES
async def test_all_four_actions(node: Node, runtime: RuntimeName) -> None:
    await node.api.run(runtime, "stop")
    if runtime is not IGGY:
        await node.api.run(IGGY, "start")
    before = len(node.births(runtime))
    runs = []
    for action in ("start", "start", "restart", "stop", "stop", "start"):
        activity = await node.api.run(runtime, action)
        assert activity.status == "completed", f"{action}: {activity.code} {activity.message} {activity.evidence}"
        runs.append(node.invocation(UNIT[runtime]))
    name = "IGGY_CONNECTORS_LOGGING_NOTE" if runtime is not IGGY else "IGGY_SYSTEM_LOGGING_NOTE"
    config = await node.api.create_config(runtime, "all-four", {name: ODD})
    activity = await node.api.run(runtime, f"reconfigure:{config}")
    assert activity.status == "completed", f"{activity.code} {activity.message} {activity.evidence}"
    assert activity.evidence["running"]["config_sha256"] == activity.evidence["attempted"]["sha256"]
    runs.append(node.invocation(UNIT[runtime]))
    assert runs[0] == runs[1], "a runtime that ran already was started"
    assert runs[2] == runs[3] == runs[4], "systemd forgot the run of a stopped unit"
    assert len(set(runs)) == 4
    assert len(node.births(runtime)) - before == 4
    pid = node.system.show(UNIT[runtime], "MainPID")["MainPID"]
    environ = node.system.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
    assert f"{name}={ODD}" in environ


async def test_a_config_that_iggy_refuses_is_rolled_back(node: Node) -> None:
    await node.api.run(IGGY, "start")
    good = await node.api.create_config(IGGY, "good", {"IGGY_SYSTEM_LOGGING_NOTE": "good"})
    assert (await node.api.run(IGGY, f"reconfigure:{good}")).status == "completed"
    bad = await node.api.create_config(IGGY, "bad", {"IGGY_SYSTEM_MEMORY_POOL_SIZE": "1 MiB"})
    activity = await node.api.run(IGGY, f"reconfigure:{bad}", within=60)
    assert (activity.status, activity.code) == ("rejected", "rolled_back"), activity.message
    assert activity.evidence["running"]["current"]["config_id"] == good
    pid = node.system.show(UNIT[IGGY], "MainPID")["MainPID"]
    environ = node.system.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
    assert "IGGY_SYSTEM_LOGGING_NOTE=good" in environ
    assert not any(entry == "IGGY_SYSTEM_MEMORY_POOL_SIZE=1 MiB" for entry in environ)


async def test_a_crash_is_seen_by_the_supervisor_within_a_second(node: Node) -> None:
    await node.api.run(IGGY, "start")
    before = node.invocation(UNIT[IGGY])
    pid = node.system.show(UNIT[IGGY], "MainPID")["MainPID"]

    async def noticed() -> bool:
        seen = await node.seen(IGGY)
        return bool(seen["incarnation"] != before or seen["state"] != "running")

    node.system.run("kill", "-KILL", pid)
    began = time.monotonic()
    await until(noticed, "the Supervisor sees the crash", every=0.01)
    assert time.monotonic() - began < 2, "twice the promise: this machine may be busy"

    async def revived() -> bool:
        seen = await node.seen(IGGY)
        return bool(seen["state"] == "running" and seen["incarnation"] != before)

    await until(revived, "the Supervisor sees that systemd revived it", every=0.05)


async def test_a_crash_loop_is_visible_as_such(node: Node) -> None:
    await node.api.run(IGGY, "stop")
    node.switch_faults(IGGY, "exit_at_start:1")
    try:
        activity = await node.api.run(IGGY, "start", within=60)
        assert (activity.status, activity.code) == ("rejected", "start_failed")
        seen = await node.seen(IGGY)
        assert seen["restarts"] >= 2, seen
    finally:
        node.switch_faults(IGGY)
        await node.api.run(IGGY, "stop")
