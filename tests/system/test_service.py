import json
import time
from collections.abc import AsyncIterator

import pytest_asyncio

from agent.protocol import RuntimeName
from tests.e2e.waiting import until
from tests.faults.watchdog import hang_the_agent
from tests.system.middle import had_one_effect
from tests.system.node import UNIT, Node

IGGY = RuntimeName.IGGY
DROP_IN = "etc/systemd/system/iggy-agent.service.d/test.conf"
PROCESS = """
[supervisor]
url = "{url}"
[runtimes.iggy]
driver = "process"
command = ["iggy-server"]
"""


async def test_it_enrolled_with_the_credential_and_says_how_it_is(node: Node) -> None:
    status = await node.until_up()
    (seen,) = (await node.api.call("GET", "nodes"))["items"]
    assert status["agent"]["node_id"] == seen["id"]
    await until(lambda: node.agent("StatusText")["StatusText"] == f"node {seen['id']}", "the status is told")
    assert node.agent("User", "SubState") == {"User": "iggy-agent", "SubState": "running"}


async def test_its_operator_asks_it_by_the_command(node: Node) -> None:
    shown = json.loads(node.system.run("iggy-agent", "status", "--format", "json").stdout)
    assert shown["healthy"] is True
    assert {one["runtime"] for one in shown["runtimes"]} == {"iggy", "connectors"}
    refused = node.system.run("iggy-agent", "status", user="iggy", check=False)
    assert refused.returncode == 77, refused.stderr


async def test_a_stopped_runtime_is_remembered_also_without_the_agent(node: Node) -> None:
    await node.api.run(IGGY, "start")
    before = node.invocation(UNIT[IGGY])
    await node.api.run(IGGY, "stop")
    node.system.run("systemctl", "stop", "iggy-agent")
    node.system.run("systemctl", "daemon-reload")
    assert node.system.show(UNIT[IGGY], "InvocationID", "ActiveState", "UnitFileState") == {
        "InvocationID": before,
        "ActiveState": "inactive",
        "UnitFileState": "disabled",
    }
    node.system.run("systemctl", "start", "iggy-agent")
    await node.until_up()


async def test_stopping_and_starting_the_agent_leaves_the_runtimes_alone(node: Node) -> None:
    await node.api.run(IGGY, "start")
    before = node.invocation(UNIT[IGGY])
    node.system.run("systemctl", "restart", "iggy-agent")
    node.system.run("systemctl", "restart", "iggy-runtimes.target")
    node.system.run("systemctl", "stop", "iggy-agent", "iggy-runtimes.target")
    node.system.run("systemctl", "start", "iggy-agent")
    await node.until_up()
    assert node.invocation(UNIT[IGGY]) == before
    assert node.system.show(UNIT[IGGY], "ActiveState") == {"ActiveState": "active"}


@pytest_asyncio.fixture(loop_scope="session")
async def impatient(node: Node) -> AsyncIterator[Node]:
    """A node whose systemd wants to hear from the agent every three seconds."""
    node.system.write(DROP_IN, "[Service]\nWatchdogSec=3\nRestartSec=100ms\n")
    node.system.run("systemctl", "daemon-reload")
    node.system.run("systemctl", "restart", "iggy-agent")
    yield node
    (node.system.root / DROP_IN).unlink()
    node.system.run("systemctl", "daemon-reload")
    node.system.run("systemctl", "restart", "iggy-agent")
    await node.until_up()


async def test_an_agent_that_hangs_is_ended_and_started_again(impatient: Node) -> None:
    pid = impatient.agent("MainPID")["MainPID"]
    began = time.monotonic()
    await until(lambda: time.monotonic() - began > 4, "the watchdog's interval is over", every=0.5)
    assert impatient.agent("MainPID")["MainPID"] == pid, "a healthy agent was ended"
    impatient.system.run("kill", "-STOP", pid)
    await until(lambda: impatient.agent("MainPID")["MainPID"] not in {pid, "0"}, "systemd starts it again", every=0.05)
    await impatient.until_up()
    assert "Watchdog timeout" in impatient.system.journal("iggy-agent", lines=400)


async def test_what_an_agent_was_doing_that_hangs_is_done_once(impatient: Node) -> None:
    finished = await had_one_effect(impatient, "restart", hang_the_agent)
    assert all(one.recovered for one in finished.values())


async def test_as_a_unit_it_refuses_runtimes_that_would_end_with_it(node: Node) -> None:
    settings = "etc/iggy-agent/agent.toml"
    good = (node.system.root / settings).read_text()
    node.system.write(settings, PROCESS.format(url=node.supervisor.supervisor_url))
    try:
        refused = node.system.run("systemctl", "restart", "iggy-agent", check=False)
        assert refused.returncode != 0
        assert node.agent("ActiveState", "ExecMainStatus", "NRestarts") == {
            "ActiveState": "failed",
            "ExecMainStatus": "78",
            "NRestarts": "0",
        }
        assert "restarting the agent would kill it" in node.system.journal("iggy-agent")
    finally:
        node.system.write(settings, good, mode=0o640)
        node.system.run("systemd-tmpfiles", "--create", "iggy-agent.conf")
        node.system.run("systemctl", "restart", "iggy-agent")
    await node.until_up()
