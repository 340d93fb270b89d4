"""What an idle agent costs: memory, imports, and the time to its first poll.

The figures are printed (`pytest -s`); what is asserted is the budget where it does not depend on the machine's load,
and a wide multiple of it where it does.
"""

import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.e2e.crash_node import CrashNode
from tests.e2e.fault_proxy import Exchange, FaultProxy
from tests.e2e.nursery import Nursery
from tests.e2e.ports import Ports
from tests.e2e.process import clean_environment
from tests.e2e.rig import AGENT, Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

MEMORY_BUDGET = 56e6
"""Bytes of RSS, with a driver that needs no client library."""
START_BUDGET = 0.4
"""Seconds from exec to the first poll."""
NOISE = 4
"""How many times slower a loaded machine may be."""
STARTS = 3
POLLS = 200
UNUSED = ("docker", "prometheus_client", "dbus_fast")
WITHOUT_TOOLS = (
    "import runpy, sys; sys.modules['rich'] = None; sys.argv[0] = 'iggy-agent';"
    " runpy.run_module('agent', run_name='__main__', alter_sys=True)"
)
"""Runs the agent as where only it is installed: structlog loads `rich` if it finds it, and our tools bring it along."""


def environment() -> dict[str, str]:
    """Leave out what measures coverage, for it is measured too."""
    return {name: value for name, value in clean_environment().items() if not name.startswith("COVERAGE")}


async def fast(exchange: Exchange) -> web.StreamResponse:
    """Set a pace at which many polls take little time."""
    answer = await exchange.forward()
    if exchange.path == "heartbeats" and answer.status == 200 and isinstance(answer.body, bytes):
        return web.json_response({**json.loads(answer.body), "poll_wait": 0.01})
    return answer


@asynccontextmanager
async def agent(node: CrashNode, *options: str) -> "AsyncIterator[subprocess.Popen[bytes]]":
    """Run the agent as it is run everywhere: a Python of its own."""
    log = (node.folder / "measured.log").open("wb")
    argv = [sys.executable, *options, "-c", WITHOUT_TOOLS, "run", "--config", str(node.node.settings_file)]
    process = subprocess.Popen(argv, env=environment(), cwd=node.folder, stdout=log, stderr=log)  # noqa: ASYNC220 - short
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait)
        log.close()
    assert process.returncode == 0


def resident(pid: int) -> int:
    """Return the RSS in bytes: proc_pid_smaps(5)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Rss:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def test_an_idle_agent_is_small_quick_to_start_and_loads_no_client_of_another_driver(
    rig: Rig, nursery: Nursery
) -> None:
    ports = Ports()
    async with (
        FaultProxy(rig.supervisor_url, ports.take()) as proxy,
        CrashNode(rig, nursery, "footprint", USUAL, supervisor_url=proxy.url) as node,
    ):
        await node.end()
        seconds = []
        for _ in range(STARTS):
            began = time.monotonic()
            async with agent(node):
                await until(lambda: proxy.polled_since(began), "the agent polls", every=0.002)  # noqa: B023 - at once
                seconds.append(proxy.polled_since(began)[0] - began)
        proxy.set(fast)
        began = time.monotonic()
        async with agent(node, "-X", "importtime") as process:
            await until(lambda: len(proxy.polled_since(began)) >= POLLS, f"the agent has polled {POLLS} times")
            memory = resident(process.pid)
        imported = (node.folder / "measured.log").read_text()
    ports.close()
    print(f"start to first poll {statistics.median(seconds):.2f} s, RSS after {POLLS} polls {memory / 1e6:.1f} MB")
    loaded = [name for name in UNUSED if re.search(rf"\| +{name}(\.|$)", imported, re.MULTILINE)]
    assert "aiohttp" in imported
    assert loaded == []
    assert memory <= MEMORY_BUDGET
    assert statistics.median(seconds) <= NOISE * START_BUDGET


@pytest.mark.parametrize("arguments", [("version",), ("status", "--socket", "/nonexistent/agent.sock")])
async def test_a_small_command_loads_neither_the_client_nor_the_models(arguments: tuple[str, ...]) -> None:
    argv = [sys.executable, "-X", "importtime", *AGENT[1:], *arguments]
    done = await asyncio.to_thread(
        subprocess.run, argv, env=environment(), cwd="/", capture_output=True, text=True, check=False
    )
    assert "agent.cli" in done.stderr
    assert not re.search(r"\| +(aiohttp|pydantic|docker|dbus_fast)(\.|$)", done.stderr, re.MULTILINE)
