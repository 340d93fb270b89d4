"""Each row of the disk, for a few rounds; all at once, for most of it is waiting."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.faults import disk, disk_damage
from tests.faults.campaign import run
from tests.faults.fault import Budget, Fault
from tests.faults.tally import Tally

FAULTS: tuple[Fault, ...] = (*disk.FAULTS, *disk_damage.FAULTS)
ROUNDS = {"disk.full": 2, "disk.failing": 2, "disk.slow": 1, "disk.damage": 2, "disk.owner": 1, "disk.readonly": 1}

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-disk"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tallies() -> AsyncIterator[Mapping[str, Tally]]:
    """All rows that this machine can do, played once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with asyncio.TaskGroup() as group:
        tasks = {
            fault.key: group.create_task(run(fault, seed, Budget(120, most=ROUNDS[fault.key])))
            for fault in FAULTS
            if not fault.lacks()
        }
    yield {key: task.result() for key, task in tasks.items()}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
async def test_a_disk_that_is_at_fault_loses_repeats_and_belies_nothing(
    fault: Fault, tallies: Mapping[str, Tally]
) -> None:
    if lacks := fault.lacks():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {' and '.join(lacks)}")
    tally = tallies[fault.key]
    print(tally.notes)
    assert not tally.stories, "\n".join(tally.stories)
    assert tally.reports_seen == tally.reports_expected > 0
    assert tally.good
