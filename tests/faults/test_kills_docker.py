"""A short part of the rows that kill agents, and the Engine, where runtimes are containers."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.containers import Containers
from tests.e2e.scenarios import Reconfigure, Restart, Scenario
from tests.faults.crashes import Stage, share, staged, unreached
from tests.faults.fault import Budget, Ground
from tests.faults.kills import at_random
from tests.faults.middlemen import CommonEnd
from tests.faults.tally import Tally
from tests.runtimes.engine_rig import running_engine

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-docker"),
]

NODES = 3
AROUND: dict[type[Scenario], tuple[str, ...]] = {
    Restart: ("after:engine.stop:1", "before:engine.start:1", "after:engine.start:1"),
    Reconfigure: (
        "after:engine.create:1",
        "after:engine.rename:1",
        "after:engine.rename:2",
        "after:engine.start:1",
        "before:engine.remove:1",
    ),
}
"""Points between two calls of the Engine; the rows have all points."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    with running_engine() as engine:
        async with staged(Containers(engine, nodes=NODES), Tally("docker")) as stage:
            yield stage


@pytest.fixture
def tally(stage: Stage) -> Tally:
    stage.tally = Tally("docker")
    return stage.tally


def judge(tally: Tally) -> None:
    assert tally.good, "\n".join(tally.stories) or "nothing was injected"
    assert (tally.effects_seen, tally.reports_seen) == (tally.effects_expected, tally.reports_expected)


async def test_kills_between_two_calls_and_at_random_leave_one_effect_and_one_true_report(
    stage: Stage, tally: Tally, tmp_path: Path
) -> None:
    async def around(kind: type[Scenario]) -> None:
        async with stage.company(kind) as nodes:
            await share(nodes, iter([(point,) for point in AROUND[kind]]), stage)

    async with asyncio.TaskGroup() as group:
        for kind in AROUND:
            group.create_task(around(kind))
        ground = Ground(tmp_path, random.randrange(2**32))
        group.create_task(at_random(stage, Restart, ground, Budget(0, least=NODES)))
    judge(tally)
    assert unreached(stage.missed) == []


async def test_an_engine_that_is_killed_with_the_agents_loses_no_container_and_repeats_nothing(
    stage: Stage, tally: Tally
) -> None:
    async with stage.company(Restart) as nodes:
        habitat = nodes[0].node.habitat
        assert isinstance(habitat, Containers)
        await CommonEnd(stage, habitat, random.Random(0)).play(nodes)
    judge(tally)
