"""One container for the agent and the runtimes, without an Engine of the agent's: the agent is its first process."""

import asyncio
from typing import Any

import pytest

from agent.protocol import RuntimeName
from tests.e2e.waiting import until
from tests.runtimes.engine_rig import RealEngine
from tests.sidecar import images
from tests.sidecar.node import Sidecar, sidecar_on

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
STOP_TIMEOUT = 40
COMMAND = {IGGY: '["iggy-server"]', CONNECTORS: '["iggy-connectors"]'}


def settings(sidecar: Sidecar) -> dict[str, str]:
    """Return settings of both runtimes as children that live and end with the agent."""
    found: dict[str, str] = {}
    for runtime in RuntimeName:
        environment = sidecar.environment(runtime) | {"STANDIN_STARTS_FILE": f"/births-of-{runtime}/starts.jsonl"}
        keys = {f"ENVIRONMENT__{name}": value.replace("/births/", "/tmp/") for name, value in environment.items()}
        found |= sidecar.settings(runtime, DRIVER="process", COMMAND=COMMAND[runtime], OWNED="true", **keys)
    return found


async def stopped(sidecar: Sidecar) -> dict[str, Any]:
    """Stop the container, as `docker stop` does, and return how it ended."""
    await asyncio.to_thread(sidecar.engine.api.stop, sidecar.agent, timeout=STOP_TIMEOUT)
    return dict(sidecar.inspect(sidecar.agent)["State"])


async def until_born(sidecar: Sidecar, *counts: int) -> None:
    await until(lambda: sidecar.births() == list(counts), f"the runtimes were started {counts} times", every=0.05)


@pytest.mark.parametrize("init", [False, True], ids=["first process", "with docker's init"])
async def test_both_live_and_end_with_the_container_unless_an_action_stopped_them(
    engine: RealEngine, init: bool
) -> None:
    async with sidecar_on(engine) as sidecar:
        births = [f"{sidecar.folder}/{runtime}:/births-of-{runtime}" for runtime in RuntimeName]
        tmpfs = {"/run/iggy-agent": "uid=10001,mode=0755", "/tmp": ""}
        sidecar.create_agent(settings(sidecar), image=images.BOTH, Binds=births, Init=init, Tmpfs=tmpfs)
        engine.api.start(sidecar.agent)
        await sidecar.until_enrolled()
        await until_born(sidecar, 1, 1)
        restarted = await sidecar.completed(IGGY, "restart")
        assert restarted.evidence["exit_code"] == 0
        await sidecar.completed(CONNECTORS, "start")

        state = await stopped(sidecar)
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
        ended = [[one["exit_code"] for one in sidecar.records(runtime, "end")] for runtime in RuntimeName]
        assert ended == [[0, 0], [0]], "each was stopped gracefully"

        engine.api.start(sidecar.agent)
        await until_born(sidecar, 3, 2)
        assert not (await sidecar.completed(CONNECTORS, "start")).changed  # it is ready, and takes signals
        assert (await sidecar.completed(CONNECTORS, "stop")).evidence["exit_code"] == 0
        assert (await stopped(sidecar))["ExitCode"] == 0
        engine.api.start(sidecar.agent)
        await until_born(sidecar, 4, 2)
        assert (await sidecar.completed(CONNECTORS, "start")).changed
        await until_born(sidecar, 4, 3)


async def test_orphans_of_the_container_are_reaped_and_exit_codes_stay_known(engine: RealEngine) -> None:
    async with sidecar_on(engine) as sidecar:
        births = [f"{sidecar.folder}/{runtime}:/births-of-{runtime}" for runtime in RuntimeName]
        tmpfs = {"/run/iggy-agent": "uid=10001,mode=0755", "/tmp": ""}
        sidecar.create_agent(settings(sidecar), image=images.BOTH, Binds=births, Tmpfs=tmpfs)
        engine.api.start(sidecar.agent)
        await sidecar.until_enrolled()
        await until_born(sidecar, 1, 1)
        made = engine.api.exec_create(sidecar.agent, ["/bin/sh", "-c", "for i in 1 2 3 4 5; do sleep 0.3 & done"])
        await asyncio.to_thread(engine.api.exec_start, made["Id"])
        activity = await sidecar.completed(IGGY, "restart")
        assert activity.evidence["exit_code"] == 0

        def processes() -> list[str]:
            top: Any = engine.api.top(sidecar.agent, "-eo pid,stat,args")
            return [f"{row[1]} {row[2]}" for row in top["Processes"]]

        async def none_is_left() -> bool:
            return not any("Z" in row.split()[0] or "sleep" in row for row in await asyncio.to_thread(processes))

        await until(none_is_left, "no orphan is left, dead or alive", every=0.1)
