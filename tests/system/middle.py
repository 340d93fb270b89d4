"""An action of both runtimes at once, held in its middle while something happens to the node; and what came of it."""

import asyncio
from collections.abc import Awaitable, Callable

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.system.node import UNIT, Node

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
ACTIONS = ("start", "stop", "restart", "reconfigure")
CALL = {"start": "start", "stop": "stop", "restart": "restart", "reconfigure": "restart"}
"""The decisive call of each."""
NOTE = {IGGY: "IGGY_SYSTEM_LOGGING_NOTE", CONNECTORS: "IGGY_CONNECTORS_LOGGING_NOTE"}

Begun = Callable[[], Awaitable[None]]
"""Returns when the runs that the action brings up have begun; at once for a stop."""
Interruption = Callable[[Node, Begun], Awaitable[None]]


def hold(node: Node, action: str) -> None:
    """Keep what begins now in its middle: nothing gets ready until it is released, and what stops takes its time."""
    for runtime in RuntimeName:
        node.switch_faults(runtime, "slow_drain:1.5" if action == "stop" else "ping_503")


def release(node: Node) -> None:
    for runtime in RuntimeName:
        node.switch_faults(runtime)


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
    node: Node,
    action: str,
    interruption: Interruption,
    *,
    more_runs: int = 0,
    more_runs_of_connectors: int = 0,
    before_it: Callable[[], Awaitable[None]] | None = None,
) -> dict[RuntimeName, Activity]:
    """Interrupt an action, and count: one run more each, and those that the test itself made necessary."""
    await run_both(node, "stop" if action == "start" else "start")
    before = {runtime: (len(node.births(runtime)), node.invocation(UNIT[runtime])) for runtime in RuntimeName}
    if before_it is not None:
        await before_it()
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
