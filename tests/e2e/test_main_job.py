"""The main job on real processes: what is dispatched is done once, and what is reported is true."""

import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.e2e.node_settings import Options
from tests.e2e.programs import Programs
from tests.e2e.public_api import Activity
from tests.e2e.rig import AGENT, Rig
from tests.e2e.waiting import until

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"

pytestmark = pytest.mark.timeout(120)


async def run(rig: Rig, runtime: RuntimeName, action: str) -> Activity:
    """Run an action that has to be completed."""
    activity = await rig.api.run(runtime, action)
    assert activity.status is ActivityStatus.COMPLETED, (activity.code, activity.message, activity.evidence)
    return activity


def counts(rig: Rig) -> Sequence[int]:
    return [len(rig.births(runtime)) for runtime in RuntimeName]


def names(rig: Rig, observation: dict[str, Any], runtime: RuntimeName) -> bool:
    """Tell whether an observation of the agent is about the newest run that the program itself recorded."""
    return bool(observation["pid"] == rig.last_birth(runtime).pid)


async def test_every_action_of_both_runtimes_is_done_once_and_reported_with_evidence(programs: Programs) -> None:
    async with Rig(programs) as rig:
        await rig.start_agent()
        for index, runtime in enumerate(RuntimeName):
            started = await run(rig, runtime, "start")
            assert (started.changed, counts(rig)[index]) == (True, 1)
            assert names(rig, started.evidence["after"], runtime)

            again = await run(rig, runtime, "start")
            assert (again.changed, counts(rig)[index]) == (False, 1)

            restarted = await run(rig, runtime, "restart")
            assert (restarted.changed, counts(rig)[index]) == (True, 2)
            assert restarted.evidence["before"]["incarnation"] == started.evidence["after"]["incarnation"]
            assert restarted.evidence["after"]["incarnation"] != started.evidence["after"]["incarnation"]
            assert names(rig, restarted.evidence["after"], runtime)
            assert (restarted.evidence["exit_code"], restarted.evidence["killed"]) == (0, False)

        config_id = await rig.api.create_config(IGGY, "bigger", values={SIZE: "4 MB"})
        applied = await run(rig, IGGY, f"reconfigure:{config_id}")
        assert applied.evidence["outcome"] == "applied"
        assert rig.last_birth(IGGY).environment[SIZE] == "4 MB"
        unchanged = await run(rig, IGGY, f"reconfigure:{config_id}")
        assert (unchanged.changed, counts(rig)) == (False, [3, 2])

        toml = {"config.toml": rig.node.connectors_toml(metrics=True)}
        config_id = await rig.api.create_config(CONNECTORS, "metrics", files=toml)
        await run(rig, CONNECTORS, f"reconfigure:{config_id}")
        path = rig.last_birth(CONNECTORS).environment["IGGY_CONNECTORS_CONFIG_PATH"]
        assert path == str(rig.node.state_dir / "runtimes/connectors/current/files/config.toml")

        for runtime in RuntimeName:
            stopped = await run(rig, runtime, "stop")
            assert (stopped.changed, stopped.evidence["exit_code"]) == (True, 0)
            assert not rig.last_birth(runtime).alive
            assert not (await run(rig, runtime, "stop")).changed
        assert counts(rig) == [3, 3]


async def test_a_config_that_iggy_refuses_is_rolled_back_with_what_iggy_said(programs: Programs) -> None:
    async with Rig(programs) as rig:
        await rig.start_agent()
        good = await rig.api.create_config(IGGY, "good", values={SIZE: "4 MB"})
        await run(rig, IGGY, f"reconfigure:{good}")
        assert counts(rig) == [0, 0], "a stopped runtime is not started by a reconfigure"
        await run(rig, IGGY, "start")

        tiny = await rig.api.create_config(IGGY, "tiny", values={"IGGY_SYSTEM_MEMORY_POOL_SIZE": "1 MiB"})
        refused = await rig.api.run(IGGY, f"reconfigure:{tiny}")

        assert (refused.status, refused.code) == (ActivityStatus.REJECTED, ReasonCode.ROLLED_BACK)
        assert refused.evidence["outcome"] == "rolled_back"
        assert refused.evidence["attempted"]["config_id"] == tiny
        assert refused.evidence["running"]["current"]["config_id"] == good
        assert "less than minimum" in "\n".join(refused.evidence["log_tail"])
        assert counts(rig) == [3, 0], "the first one, the refused one, the good one again"
        assert rig.last_birth(IGGY).alive
        assert rig.last_birth(IGGY).environment[SIZE] == "4 MB"


async def test_the_runtimes_survive_the_agent_and_the_next_one_manages_them(programs: Programs) -> None:
    async with Rig(programs) as rig:
        await rig.start_agent()
        for runtime in RuntimeName:
            await run(rig, runtime, "start")

        assert await rig.agent.terminate() == 0
        assert [rig.last_birth(runtime).alive for runtime in RuntimeName] == [True, True]
        await rig.start_agent()

        assert not (await run(rig, IGGY, "start")).changed
        stopped = await run(rig, IGGY, "stop")
        assert stopped.evidence["exit_code"] is None, "only its parent, which is gone, could ask for it"
        assert not rig.last_birth(IGGY).alive
        assert counts(rig) == [1, 1]


async def test_what_was_dispatched_while_the_agent_was_away_is_done_when_it_comes(programs: Programs) -> None:
    async with Rig(programs) as rig:
        dispatched = [await rig.api.dispatch(runtime, "start") for runtime in (IGGY, CONNECTORS, IGGY)]
        assert {(await rig.api.get(one.id)).status for one in dispatched} == {ActivityStatus.PROCESSING}
        await rig.start_agent()

        finished = [await rig.api.finished(activity.id) for activity in dispatched]

        assert [one.status for one in finished] == [ActivityStatus.COMPLETED] * 3
        assert ([one.changed for one in finished], counts(rig)) == ([True, True, False], [1, 1])


async def test_a_stop_does_not_wait_behind_a_start_that_never_gets_ready(programs: Programs) -> None:
    async with Rig(programs, Options(ready_timeout=90)) as rig:
        await rig.start_agent()
        silent = await rig.api.create_config(IGGY, "silent", values={"IGGY_HTTP_ENABLED": "false"})
        await run(rig, IGGY, f"reconfigure:{silent}")
        waiting = await rig.api.dispatch(IGGY, "start")
        await rig.until_born(IGGY, 1)

        await run(rig, IGGY, "stop")

        superseded = await rig.api.finished(waiting.id)
        assert (superseded.status, superseded.code) == (ActivityStatus.REJECTED, ReasonCode.SUPERSEDED)
        assert (counts(rig), rig.last_birth(IGGY).alive) == ([1, 0], False)


async def test_a_restart_goes_on_once_after_a_kill_9_in_its_middle(programs: Programs) -> None:
    async with Rig(programs) as rig:
        await rig.start_agent()
        await run(rig, IGGY, "start")
        first = rig.last_birth(IGGY)
        first.send(signal.SIGSTOP)
        activity = await rig.api.dispatch(IGGY, "restart")
        await rig.until_called(activity.id, "stop")
        rig.agent.kill()
        first.send(signal.SIGCONT)
        await rig.start_agent()

        finished = await rig.api.finished(activity.id)

        assert (finished.status, finished.recovered) == (ActivityStatus.COMPLETED, True)
        assert names(rig, finished.evidence["after"], IGGY)
        assert (counts(rig), first.alive) == ([2, 0], False)
        assert (await rig.api.activities())[0].id == activity.id


async def test_reports_survive_a_supervisor_that_is_away(programs: Programs) -> None:
    async with Rig(programs) as rig:
        await rig.start_agent()
        await run(rig, IGGY, "start")
        first = rig.last_birth(IGGY)
        first.send(signal.SIGSTOP)
        activity = await rig.api.dispatch(IGGY, "restart")
        await rig.until_called(activity.id, "stop")
        rig.supervisor.kill()
        first.send(signal.SIGCONT)
        row = await rig.until_journaled(activity.id, "finished")
        assert row["status"] == "completed"
        await rig.start_supervisor()

        finished = await rig.api.finished(activity.id)

        assert (finished.status, finished.recovered, counts(rig)) == (ActivityStatus.COMPLETED, False, [2, 0])
        assert (await rig.until_journaled(activity.id, "reported"))["outcome"] == "recorded"


async def test_the_node_and_its_runtimes_are_seen_by_the_api_the_supervisor_and_the_agent(programs: Programs) -> None:
    async with Rig(programs, Options(heartbeat_interval=0.5)) as rig:
        await rig.start_agent()
        await run(rig, IGGY, "start")

        async def beat() -> dict[str, Any] | None:
            (node,) = await rig.api.nodes()
            runtimes = {one["runtime"]: one for one in (node["heartbeat"] or {"runtimes": []})["runtimes"]}
            return node if runtimes and runtimes["iggy"]["ready"] and runtimes["iggy"]["state"] == "running" else None

        node = await until(beat, "a heartbeat says that iggy is ready")
        runtimes = {one["runtime"]: one for one in node["heartbeat"]["runtimes"]}
        assert (node["id"], runtimes["connectors"]["state"]) == (rig.node_id, "stopped")
        assert runtimes["iggy"]["pid"] == rig.last_birth(IGGY).pid
        assert (datetime.now(UTC) - datetime.fromisoformat(node["heartbeat"]["sent_at"])).total_seconds() < 60

        listed = await rig.supervisor_command("nodes", "list")
        assert [one["id"] for one in listed["items"]] == [rig.node_id]
        status = await rig.command([*AGENT, "status", "--socket", str(rig.node.socket), "--format", "json"])
        assert (status["healthy"], status["agent"]["node_id"]) == (True, rig.node_id)
        assert {one["runtime"]: one["ready"] for one in status["runtimes"]} == {"iggy": True, "connectors": False}
