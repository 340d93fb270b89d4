"""A lane over a real container: what is decided there and the Docker driver fit together."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.activities import resume
from agent.activities.work import Work
from agent.conditions import Conditions
from agent.protocol import RuntimeName
from agent.redaction import Redactor
from agent.runtimes.docker import DockerDriver
from agent.runtimes.driver import Observation, read_boot_id
from agent.runtimes.probe import ProbePlan
from agent.runtimes.runtime import Runtime, Timeouts
from tests.activities.conftest import Bench, make_config, until
from tests.runtimes.engine_rig import RealEngine, a_name, running_engine

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.timeout(240)]

PROGRAM = "echo $IGGY_PATH >> /births/log; [ -z $IGGY_BAD ] || exit 3; trap 'exit 0' TERM; sleep 1000 & wait"
POLICY = {"Name": "unless-stopped", "MaximumRetryCount": 0}


@pytest.fixture(scope="module")
def engine() -> Iterator[RealEngine]:
    with running_engine() as engine:
        yield engine


class Node:
    def __init__(self, engine: RealEngine, folder: Path, bench: Bench) -> None:
        self.engine, self.bench, self.name = engine, bench, a_name()
        self.settle_pause = 0.05
        self.births_folder = folder / "births"
        self.births_folder.mkdir()
        host = {"Binds": [f"{self.births_folder}:/births"], "RestartPolicy": POLICY}
        self.id = engine.create(self.name, ("/bin/sh", "-c", PROGRAM), Env=["IGGY_PATH=original"], HostConfig=host)
        bench.make_runtime = self.make_runtime  # type: ignore[method-assign]
        bench.patience = 60.0  # containers take their time on a busy machine

    def make_runtime(self) -> Runtime:
        folder = self.bench.folder / "runtimes" / "iggy"
        driver = DockerDriver(
            runtime=RuntimeName.IGGY,
            container=self.name,
            folder=folder,
            releases=self.bench.releases,
            start_timeout=10.0,
            stop_timeout=5.0,
            address=self.engine.address,
            settle_pause=self.settle_pause,
        )
        return Runtime(
            RuntimeName.IGGY,
            driver=driver,
            releases=self.bench.releases,
            plan=ProbePlan(stable_for=0.5, ready_timeout=3),
            timeouts=Timeouts(start=2, stop=5, action=30),
            redactor=Redactor(),
        )

    def births(self) -> list[str]:
        log = self.births_folder / "log"
        return log.read_text().split() if log.exists() else []

    async def reconfigured(self, config: dict[str, Any]) -> int:
        return await self.bench.dispatch(f"reconfigure:{config['id']}", config=config)


@pytest.fixture
def node(engine: RealEngine, tmp_path: Path, bench: Bench, boot_id: Callable[[str], None]) -> Iterator[Node]:
    boot_id(read_boot_id())
    node = Node(engine, tmp_path, bench)
    yield node
    engine.clear(node.name)


async def test_a_config_is_applied_and_the_old_container_goes_with_the_commit(node: Node, bench: Bench) -> None:
    await bench.run()
    await bench.finished(await bench.dispatch("start"))
    row = await bench.finished(await node.reconfigured(make_config(7, IGGY_PATH="applied")))
    assert (row.status, row.evidence["outcome"], row.evidence["committed"]) == ("completed", "applied", True)
    assert row.evidence["calls"] == ["switch", "recreate", "stop", "start"]
    await until(lambda: only(node, node.name), what="the kept container is gone")
    assert node.engine.inspect(node.name)["Id"] != node.id
    await until(lambda: born(node, ["original", "applied"]), what="each run wrote itself down, and no other")
    restarted = await bench.finished(await bench.dispatch("restart"))
    assert restarted.evidence["calls"] == ["stop", "start"]


async def test_a_config_that_ends_it_is_rolled_back_to_the_original_container(node: Node, bench: Bench) -> None:
    await bench.run()
    await bench.finished(await bench.dispatch("start"))
    row = await bench.finished(await node.reconfigured(make_config(7, IGGY_PATH="bad", IGGY_BAD="1")))
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == ("rolled_back", "rolled_back")
    assert row.evidence["cause"]["code"] in {"start_failed", "not_ready", "unstable"}
    await until(lambda: only(node, node.name), what="nothing is left beside it")
    found = node.engine.inspect(node.name)
    assert (found["Id"], found["State"]["Running"], found["HostConfig"]["RestartPolicy"]) == (node.id, True, POLICY)


@pytest.mark.parametrize("dies", [False, True])
async def test_a_container_that_cannot_be_made_again_goes_on_or_is_brought_up_again(
    node: Node, bench: Bench, dies: bool
) -> None:
    await bench.run()
    await bench.finished(await bench.dispatch("start"))
    before = node.engine.inspect(node.name)["State"]["StartedAt"]
    taken = node.engine.create(f"{node.name}.iggy-agent-new")
    node.engine.api.start(taken)
    if dies:
        journal, record = bench.journal, bench.journal.record

        async def record_and_end_it(activity_id: int, step: str, **facts: Any) -> None:
            await record(activity_id, step, **facts)
            if step == "recreate" and not facts.get("decisive"):
                journal.record = record  # type: ignore[method-assign]
                await asyncio.to_thread(node.engine.api.stop, node.name, timeout=1)

        journal.record = record_and_end_it  # type: ignore[method-assign,assignment]
    row = await bench.finished(await node.reconfigured(make_config(7, IGGY_PATH="applied")))
    assert row.reason is not None
    assert (row.reason.code, row.evidence["outcome"]) == (
        ("rolled_back", "rolled_back") if dies else ("busy", "not_applied")
    )
    found = node.engine.inspect(node.name)
    assert (found["Id"], found["State"]["Running"], found["HostConfig"]["RestartPolicy"]) == (node.id, True, POLICY)
    assert (found["State"]["StartedAt"] == before) is not dies


async def test_a_config_for_a_stopped_container_waits_for_its_next_start(node: Node, bench: Bench) -> None:
    await bench.run()
    row = await bench.finished(await node.reconfigured(make_config(7, IGGY_PATH="applied")))
    assert (row.evidence["outcome"], row.evidence["committed"]) == ("applied", False)
    assert node.births() == []
    started = await bench.finished(await bench.dispatch("start"))
    assert started.evidence["calls"] == ["recreate", "start"]
    await until(lambda: only(node, node.name), what="the kept container is gone")
    await until(lambda: born(node, ["applied"]), what="each run wrote itself down, and no other")


@pytest.mark.parametrize("call", ["switch", "recreate", "stop", "start"])
async def test_an_agent_that_is_killed_after_it_journaled_a_call_goes_on_and_applies_it_once(
    node: Node, bench: Bench, call: str
) -> None:
    await bench.run()
    await bench.finished(await bench.dispatch("start"))
    journal, record = bench.journal, bench.journal.record
    reached = asyncio.Event()

    async def record_and_hang(activity_id: int, step: str, **facts: Any) -> None:
        await record(activity_id, step, **facts)
        if step == call:
            reached.set()
            await asyncio.Event().wait()

    journal.record = record_and_hang  # type: ignore[method-assign,assignment]
    activity = await node.reconfigured(make_config(7, IGGY_PATH="applied"))
    await asyncio.wait_for(reached.wait(), 20)
    await bench.kill()
    await bench.start_again()
    row = await bench.finished(activity)
    assert (row.status, row.recovered, row.evidence["outcome"]) == ("completed", True, "applied")
    await until(lambda: only(node, node.name), what="the kept container is gone")
    await until(lambda: born(node, ["original", "applied"]), what="each run wrote itself down, and no other")


@pytest.mark.parametrize("superseded", [False, True])
async def test_an_agent_that_is_killed_in_a_crash_loop_after_its_decision_goes_back_all_the_same(
    node: Node, bench: Bench, monkeypatch: pytest.MonkeyPatch, superseded: bool
) -> None:
    """The Engine revives it again and again, so that it never comes to rest."""
    await bench.run()
    await bench.finished(await bench.dispatch("start"))
    journal, decide = bench.journal, bench.journal.go_back
    decided = asyncio.Event()

    async def decide_and_hang(activity_id: int, **decision: Any) -> None:
        await decide(activity_id, **(decision | {"superseded": superseded}))
        decided.set()
        await asyncio.Event().wait()

    journal.go_back = decide_and_hang  # type: ignore[method-assign]
    activity = await node.reconfigured(make_config(7, IGGY_PATH="bad", IGGY_BAD="1"))
    await asyncio.wait_for(decided.wait(), 40)
    await bench.kill()
    assert await bench.current() == "7-1"
    node.settle_pause = 1.0  # more than a run of the loop takes
    settle = resume.settle

    async def settle_soon(work: Work, conditions: Conditions) -> Observation:
        timeouts = work.runtime.timeouts
        work.runtime.timeouts = replace(timeouts, action=2.5)
        try:
            return await settle(work, conditions)
        finally:
            work.runtime.timeouts = timeouts

    monkeypatch.setattr(resume, "settle", settle_soon)
    await bench.start_again()
    row = await bench.finished(activity)
    assert row.reason is not None
    outcome = "not_applied" if superseded else "rolled_back"
    assert (row.evidence["outcome"], row.recovered, await bench.current()) == (outcome, True, None)
    if superseded:
        assert (await bench.finished(await bench.dispatch("restart"))).status == "completed"
    found = node.engine.inspect(node.name)
    assert (found["Id"], found["State"]["Running"], found["HostConfig"]["RestartPolicy"]) == (node.id, True, POLICY)


async def only(node: Node, name: str) -> bool:
    return node.engine.names(node.name) == {name}


async def born(node: Node, runs: list[str]) -> bool:
    return node.births() == runs
