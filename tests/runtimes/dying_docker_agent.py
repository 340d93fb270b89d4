"""A small agent for the tests: restarts one container, and is killed right after so many calls that change something.

python -m tests.runtimes.dying_docker_agent ADDRESS CONTAINER FOLDER DIE_AFTER JOURNAL
"""

import asyncio
import functools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.runtimes.driver import Step
from agent.runtimes.engine import Engine
from tests.runtimes.engine_rig import driver_of

CHANGING = ("create", "connect", "start", "stop", "unpause", "set_restart_policy", "rename", "remove")


def die_after(calls: int) -> None:
    """Make the Engine's adapter kill this process after so many calls, or before the first for 0."""
    made = 0

    def dying(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await method(*args, **kwargs)
            made += 1
            if made == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    for name in CHANGING:
        setattr(Engine, name, dying(getattr(Engine, name)))


async def main(address: str, container: str, folder: Path, calls: int, journal: Path) -> None:
    async def record(step: Step) -> None:
        facts = {
            "call": step.call,
            "decisive": step.decisive,
            "incarnation": step.before.incarnation if step.before else None,
            "detail": dict(step.detail),
        }
        with journal.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    die_after(calls)
    async with driver_of(address, container, folder) as driver:
        await driver.restart(record)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
