"""How the agent begins and ends: alone on its state folder, gently on SIGTERM, and with the runtimes that it owns."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.e2e.crash_node import CrashNode
from tests.e2e.nursery import Nursery
from tests.e2e.process import clean_environment
from tests.e2e.rig import AGENT, Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]


async def command(*argv: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            argv, env=clean_environment(), capture_output=True, text=True, timeout=30, check=False, cwd="/"
        )

    return await asyncio.to_thread(run)


def run_agent(node: CrashNode) -> Sequence[str]:
    return (*AGENT, "run", "--config", str(node.node.settings_file))


async def test_a_second_agent_on_a_state_folder_refuses_and_names_the_first(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "first", USUAL) as node:
        second = await command(*run_agent(node))
        assert second.returncode == 75
        assert f"process {node.agent.pid}" in second.stderr
        await node.bring_up()
        assert len(node.births()) == 1


async def test_sigterm_lets_an_action_finish_and_report(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "gentle", USUAL) as node:
        node.switch_faults("slow_start:0.7")
        activity = await node.dispatch("start")
        await until(lambda: len(node.births()) == 1, "it is started")
        assert await node.end(signal.SIGTERM) == 0
        finished = await node.finished(activity)
        assert (finished.status, finished.recovered) == (ActivityStatus.COMPLETED, False), finished.raw
        assert len(node.births()) == len(node.alive()) == 1


async def test_what_does_not_finish_within_the_grace_is_recovered(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "impatient", replace(USUAL, shutdown_grace=0.5)) as node:
        node.switch_faults("never_ready")
        activity = await node.dispatch("start")
        await until(lambda: len(node.births()) == 1, "it is started")
        began = time.monotonic()
        assert await node.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 10
        assert len(node.alive()) == 1
        assert (await rig.api.get(activity.id)).status is ActivityStatus.PROCESSING

        await node.release()
        stopped = await node.run("stop")
        assert stopped.status is ActivityStatus.COMPLETED
        finished = await rig.api.get(activity.id)
        assert (finished.code, finished.recovered) == (ReasonCode.SUPERSEDED, True), finished.raw
        assert len(node.births()) == 1
        assert node.alive() == []


async def test_an_owned_runtime_lives_and_ends_with_the_agent_unless_it_was_stopped(rig: Rig, nursery: Nursery) -> None:
    async with CrashNode(rig, nursery, "owner", USUAL) as node:
        await node.end()
        table = f"[runtimes.{RuntimeName.IGGY}]\n"
        settings = node.node.settings_file.read_text()
        node.node.settings_file.write_text(settings.replace(table, f"{table}owned = true\n"))

        await node.release()
        await until(lambda: len(node.births()) == 1, "it is started with the agent")
        assert await node.end(signal.SIGTERM) == 0
        assert node.alive() == []

        await node.release()
        await until(lambda: len(node.births()) == 2, "it is started with the agent again")
        assert await node.end(signal.SIGKILL) == -signal.SIGKILL
        assert len(node.alive()) == 1
        await node.release()
        restarted = await node.run("restart")
        assert restarted.status is ActivityStatus.COMPLETED, restarted.raw
        assert len(node.births()) == 3

        assert (await node.run("stop")).status is ActivityStatus.COMPLETED
        assert await node.end(signal.SIGTERM) == 0
        await node.release()
        started = await node.run("start")
        assert (started.status, started.changed) == (ActivityStatus.COMPLETED, True), "it was started, though stopped"
        assert len(node.births()) == 4


async def test_the_main_process_of_a_service_refuses_runtimes_that_would_die_with_it(
    rig: Rig, nursery: Nursery
) -> None:
    async with CrashNode(rig, nursery, "service", USUAL) as node:
        await node.end()
        refused = await command("/bin/sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh", *run_agent(node))
        assert refused.returncode == 78
        assert "owned = true" in refused.stderr
        child = await command("/bin/sh", "-c", 'SYSTEMD_EXEC_PID=1 exec "$@"', "sh", sys.executable, "-c", "pass")
        assert child.returncode == 0
