"""How long a restart takes with systemd: a bare D-Bus client, `systemctl`, and the agent from POST to `completed`.

All three act as the agent's unprivileged user on the same unit, which does nothing, in the same booted system, in
turns, with the same pause between two restarts: systemd takes about half the time for those that come back to back, as
no dispatched one does. What the agent weighs as its unit runs it is said too.
"""

import asyncio
import json
import sys
from pathlib import Path

from tests.bench.dispatched import Dispatcher
from tests.bench.figures import Series, kept, table
from tests.e2e.node_settings import Options
from tests.e2e.programs import standin_programs
from tests.system.booted import Booted, missing, system_python
from tests.system.node import Node, Outside, wheelhouse_is_there

TIMES, TURNS = 50, 5
PAUSE = 0.05
"""Seconds between two restarts."""
BUDGET = 2.0
UNIT = "iggy.service"
CLIENT = "/usr/local/lib/bare_client.py"
NO_OP = """\
[Service]
Type=exec
ExecStart=/bin/sleep infinity
EnvironmentFile=-/var/lib/iggy-agent/runtimes/iggy/current/environment
"""
SETTINGS = """\
[supervisor]
url = "{url}"
[runtimes.iggy]
driver = "systemd"
unit = "iggy.service"
[runtimes.connectors]
driver = "systemd"
unit = "iggy-connectors.service"
"""


async def main() -> int:
    """Measure, and print; returns 1 when a budget is not kept, 2 when it cannot be measured here."""
    lacks, python = missing(), system_python()
    if not wheelhouse_is_there():
        lacks.append("the wheels (make wheelhouse)")
    if lacks or python is None:
        print(f"cannot measure restarts with systemd here; missing: {', '.join(lacks) or 'a Python with venv'}")
        return 2
    system = Booted()
    try:
        system.mount()
        async with Outside(standin_programs(), Options(heartbeat_interval=15)) as supervisor:
            node = Node(system, supervisor)
            node.install(python)
            node.write(python)
            system.write("etc/systemd/system/iggy.service", NO_OP)
            system.write("etc/iggy-agent/agent.toml", SETTINGS.format(url=supervisor.supervisor_url), mode=0o640)
            system.write(CLIENT, (Path(__file__).parent / "bare_client.py").read_text())
            system.boot()
            node.start()
            await node.until_up()
            series = await measure(node, supervisor.supervisor_database)
            print(f"restart of a unit that does nothing, systemd, {TIMES} each, milliseconds")
            print(table(series))
            print(memory(node))
    finally:
        system.end()
    return 0 if kept(series) else 1


async def measure(node: Node, store: Path) -> list[Series]:
    """Measure all three in turns, so that a busy moment of the machine hits none alone."""
    bare, hasty, systemctl, agent = [], [], [], []
    each = TIMES // TURNS
    async with Dispatcher(node.api, store) as dispatcher:
        await by_agent(dispatcher, 3)  # warm, as an agent is that runs
        for _ in range(TURNS):
            bare += by_client(node, "bus", each)
            hasty += by_client(node, "bus", each, pause=0)
            systemctl += by_client(node, "systemctl", each)
            agent += await by_agent(dispatcher, each)
    return [
        Series("bare D-Bus client", bare),
        Series("the same, back to back", hasty),
        Series("systemctl restart", systemctl),
        Series("agent, POST to completed", agent, budget=BUDGET),
    ]


def by_client(node: Node, how: str, times: int, pause: float = PAUSE) -> list[float]:
    """Have the bare client restart it, as the agent's user and with the agent's own library."""
    python = "/opt/iggy-agent/current/bin/python"
    done = node.system.run(python, CLIENT, how, UNIT, str(times), str(pause), user="iggy-agent")
    seconds: list[float] = json.loads(done.stdout)
    return seconds


async def by_agent(dispatcher: Dispatcher, times: int) -> list[float]:
    """Dispatch restarts through the public API, with the same pauses."""
    seconds = []
    for _ in range(times):
        seconds.append(await dispatcher.restart())
        await asyncio.sleep(PAUSE)
    return seconds


def memory(node: Node) -> str:
    """Say what the agent weighs after all that, and what its imports alone do."""
    status = node.system.run("cat", f"/proc/{node.agent('MainPID')['MainPID']}/status").stdout
    imports = "import agent.cli.run, agent.daemon, agent.runtimes.systemd; print(open('/proc/self/status').read())"
    alone = node.system.run("/opt/iggy-agent/current/bin/python", "-I", "-c", imports).stdout
    return f"the agent: RSS {_resident(status):.1f} MB; its imports alone: {_resident(alone):.1f} MB"


def _resident(status: str) -> float:
    """Read the resident size from proc_pid_status(5), in MB; the kernel counts in units of 1024 bytes."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
