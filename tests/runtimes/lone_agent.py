"""A small agent of its own process, for tests that kill it: it drives one runtime and dies where it is told to.

`python -m tests.runtimes.lone_agent FOLDER VERB DIE_AT COMMAND…` carries out a verb, prints what it did as a line of
JSON, and then stays until its standard input ends. DIE_AT is a function (`agent.runtimes.spawn._spawn`) at whose call
it is killed by SIGKILL, `record` to die when a step was recorded, or `-`.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
from pathlib import Path

from agent.protocol import RuntimeName
from agent.runtimes.driver import Step
from agent.runtimes.process import ProcessDriver
from agent.runtimes.releases import Releases


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(die_at: str) -> None:
    owner, _, name = die_at.rpartition(".")
    module, _, cls = owner.rpartition(":")
    target = getattr(importlib.import_module(module), cls) if module else importlib.import_module(owner)
    setattr(target, name, die)


async def run(folder: Path, verb: str, die_at: str, command: list[str]) -> None:
    driver = ProcessDriver(
        runtime=RuntimeName.IGGY,
        command=command,
        folder=folder,
        releases=Releases(folder, RuntimeName.IGGY),
        environment={},
        working_directory=None,
        stop_timeout=10,
    )

    async def record(_step: Step) -> None:
        if die_at == "record":
            die()

    await driver.open()
    if die_at not in {"-", "record"}:
        arm(die_at)
    outcome = await getattr(driver, verb)(record)
    now = await driver.observe()
    print(json.dumps({"calls": outcome.calls, "state": now.state, "incarnation": now.incarnation}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await driver.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
