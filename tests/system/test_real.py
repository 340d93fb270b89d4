"""The real programs under the shipped units: `make test-real`, where a systemd can be booted."""

from typing import Any

import pytest

from agent.protocol import ActivityStatus, RuntimeName
from tests.conformance.samples import SOURCE
from tests.e2e.public_api import Activity
from tests.system.node import UNIT, Node

pytestmark = pytest.mark.real

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"


async def run(node: Node, runtime: RuntimeName, action: str, *, within: float = 30) -> Activity:
    """Run an action that has to be completed."""
    activity = await node.api.run(runtime, action, within=within)
    assert activity.status is ActivityStatus.COMPLETED, (activity.code, activity.message, activity.evidence)
    return activity


def environment(node: Node, runtime: RuntimeName) -> dict[str, str]:
    """Return what the program really got."""
    pid = node.system.show(UNIT[runtime], "MainPID")["MainPID"]
    lines = node.system.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def shipped(node: Node, runtime: RuntimeName) -> dict[str, str]:
    return node.system.show(UNIT[runtime], "User", "MemoryDenyWriteExecute", "ProtectSystem", "NoNewPrivileges")


@pytest.mark.parametrize("runtime", list(RuntimeName))
async def test_all_four_actions_under_the_shipped_unit(real_node: Node, runtime: RuntimeName) -> None:
    node = real_node
    if runtime is CONNECTORS:
        node.system.write("etc/iggy/connectors/random.toml", SOURCE)
        await run(node, IGGY, "start")
    user = UNIT[runtime].removesuffix(".service")
    assert shipped(node, runtime) == {
        "User": user,
        "MemoryDenyWriteExecute": "yes",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
    }
    runs = []
    for action in ("start", "start", "restart", "stop", "start"):
        done = await run(node, runtime, action)
        if action != "stop":
            assert done.evidence["probe"]["ready"] is True
        runs.append(node.invocation(UNIT[runtime]))
    assert runs[0] == runs[1]
    assert runs[2] == runs[3]
    assert len(set(runs)) == 3, "each start and restart began one run, and nothing else did"
    name, value = (SIZE, "4 MB") if runtime is IGGY else ("IGGY_CONNECTORS_HTTP_CORS_ENABLED", "true")
    config = await node.api.create_config(runtime, "another", {name: value})
    applied = await run(node, runtime, f"reconfigure:{config}")
    assert applied.evidence["outcome"] == "applied"
    assert applied.evidence["running"]["config_sha256"] == applied.evidence["attempted"]["sha256"]
    assert environment(node, runtime)[name] == value
    assert node.system.show(UNIT[runtime], "NRestarts") == {"NRestarts": "0"}


async def test_a_config_that_iggy_refuses_is_rolled_back(real_node: Node) -> None:
    node = real_node
    await run(node, IGGY, "start")
    good = await node.api.create_config(IGGY, "good", {SIZE: "5 MB"})
    await run(node, IGGY, f"reconfigure:{good}")
    tiny = await node.api.create_config(IGGY, "tiny", {"IGGY_SYSTEM_MEMORY_POOL_SIZE": "1 MiB"})
    refused = await node.api.run(IGGY, f"reconfigure:{tiny}", within=60)
    assert (refused.status, refused.code) == (ActivityStatus.REJECTED, "rolled_back"), refused.message
    assert refused.evidence["running"]["current"]["config_id"] == good
    tail: list[Any] = refused.evidence["log_tail"]
    assert tail, "what Iggy said of it"
    assert environment(node, IGGY)[SIZE] == "5 MB"
    assert "IGGY_SYSTEM_MEMORY_POOL_SIZE" not in {
        name for name, value in environment(node, IGGY).items() if value == "1 MiB"
    }
