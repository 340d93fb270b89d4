"""How long a restart takes with Docker: a bare Engine API client, `docker restart`, and the agent, to `completed`.

All three act on the same container, which ends at once when told, in turns. The agent runs in a container of its own;
what it weighs there is said too, before and after.
"""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

from agent.protocol import RuntimeName
from tests.bench.dispatched import Dispatcher
from tests.bench.figures import Series, kept, table
from tests.runtimes.engine_rig import RealEngine, missing, running_engine
from tests.sidecar import images
from tests.sidecar.node import Sidecar, sidecar_on
from tests.system.node import wheelhouse_is_there

TIMES, TURNS = 50, 5
BUDGET = 1.2
MEMORY_BUDGET = 63e6
"""Bytes of RSS."""
GRACE = 10
IDLE = 6.0
"""Seconds until an agent that has nothing to do has done everything once."""


async def main() -> int:
    """Measure, and print; returns 1 when a budget is not kept, 2 when it cannot be measured here."""
    lacks = missing()
    if not wheelhouse_is_there():
        lacks.append("the wheels (make wheelhouse)")
    if lacks:
        print(f"cannot measure restarts with Docker here; missing: {', '.join(lacks)}")
        return 2
    with running_engine() as engine:
        images.make_base(engine.api)
        images.build_agent(engine.api)
        async with sidecar_on(engine) as sidecar:
            await bring_up(engine, sidecar)
            idle = resident(engine, sidecar)
            series = await measure(engine, sidecar)
            print(f"restart of a container that does nothing, Docker, {TIMES} each, milliseconds")
            print(table(series))
            after = resident(engine, sidecar)
    print(f"the agent: RSS {idle / 1e6:.1f} MB idle, {after / 1e6:.1f} MB after that; budget {MEMORY_BUDGET / 1e6:.0f}")
    return 0 if kept(series) and idle <= MEMORY_BUDGET else 1


async def bring_up(engine: RealEngine, sidecar: Sidecar) -> None:
    """Have a container that does nothing, and an agent in a container that manages it, without a probe."""
    container = sidecar.runtime(RuntimeName.IGGY)
    engine.create(container)
    socket = engine.address.removeprefix("unix://")
    group = await asyncio.to_thread(lambda: Path(socket).stat().st_gid)
    sidecar.create_agent(
        {
            "AGENT_RUNTIMES__IGGY__DRIVER": "docker",
            "AGENT_RUNTIMES__IGGY__CONTAINER": container,
            "AGENT_AGENT__LOG_LEVEL": "info",
        },
        checked_every=30,
        Binds=[f"{socket}:/var/run/docker.sock"],
        GroupAdd=[str(group), "0"],
    )
    engine.api.start(sidecar.agent)
    await sidecar.until_enrolled()
    await sidecar.completed(RuntimeName.IGGY, "start")
    await asyncio.sleep(IDLE)


async def measure(engine: RealEngine, sidecar: Sidecar) -> list[Series]:
    """Measure all three in turns, so that a busy moment of the machine hits none alone."""
    bare, command, agent = [], [], []
    each = TIMES // TURNS
    container = sidecar.runtime(RuntimeName.IGGY)
    async with Dispatcher(sidecar.outside.api, sidecar.outside.supervisor_database) as dispatcher:
        for _ in range(3):
            await dispatcher.restart()  # warm, as an agent is that runs
        for _ in range(TURNS):
            bare += await asyncio.to_thread(by_client, engine, container, each)
            command += await asyncio.to_thread(by_command, engine, container, each)
            agent += [await dispatcher.restart() for _ in range(each)]
    return [
        Series("bare Engine API stop, start", bare),
        Series("docker restart", command),
        Series("agent, POST to completed", agent, budget=BUDGET),
    ]


def by_client(engine: RealEngine, container: str, times: int) -> list[float]:
    """Stop it and start it, over a connection that is open."""
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        engine.api.stop(container, timeout=GRACE)
        engine.api.start(container)
        seconds.append(time.monotonic() - began)
    return seconds


def by_command(engine: RealEngine, container: str, times: int) -> list[float]:
    """Restart it as people do."""
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        command = ["docker", "--host", engine.address, "restart", container]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - began)
    return seconds


def resident(engine: RealEngine, sidecar: Sidecar) -> int:
    """Return the RSS in bytes of the agent, the child of its container's first process: proc_pid_smaps(5)."""
    first = engine.inspect(sidecar.agent)["State"]["Pid"]
    agent = Path(f"/proc/{first}/task/{first}/children").read_text().split()[0]
    found = re.search(r"^Rss:\s+(\d+) kB$", Path(f"/proc/{agent}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
