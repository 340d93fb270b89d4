"""A short part of the rows that kill agents of the process driver; test_crashes.py is that of each point.

All at once, for most of it is waiting; and beside them, in processes of their own, the campaign on agents that lack a
protection.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.e2e.nursery import REPOSITORY
from tests.faults import away, campaign, kills, mutations
from tests.faults.fault import Fault
from tests.faults.playing import assert_good, play
from tests.faults.tally import Tally

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-kills"),
]

ROUNDS = {"away.expiry": away.NODES, "away.withdrawn": 3}
USUAL = 8
CHOSEN = campaign.chosen(
    [*kills.FAULTS, *away.FAULTS],
    ["kill.random.process", "kill.both.process", "kill.machine.process", "kill.launcher.process", "away"],
)
MISSING = ("pid", "sweep")


@dataclass(frozen=True, slots=True)
class Played:
    """What came of all of it.

    Attributes:
        tallies: Of the rows, by key.
        lacking: What the campaign on agents without a protection ended with and said; by the protection.
    """

    tallies: Mapping[str, Tally]
    lacking: Mapping[str, tuple[int | None, str]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played() -> AsyncIterator[Played]:
    """All of it, once."""
    async with asyncio.TaskGroup() as group:
        rows = group.create_task(play(CHOSEN, ROUNDS, usual=USUAL))
        lacking = {name: group.create_task(_lacking(name)) for name in MISSING}
    yield Played(rows.result(), {name: task.result() for name, task in lacking.items()})


async def _lacking(name: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.mutations", name),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("fault", CHOSEN, ids=lambda fault: fault.key)
async def test_each_effect_comes_once_and_each_report_is_true(fault: Fault, played: Played) -> None:
    assert_good(played.tallies[fault.key])


@pytest.mark.parametrize("name", MISSING)
async def test_the_campaign_notices_a_missing_protection(name: str, played: Played) -> None:
    code, said = played.lacking[name]
    (mutation,) = (mutation for mutation in mutations.MUTATIONS if mutation.name == name)
    assert f"| {mutation.protection} | {', '.join(fault.key for fault in mutation.rows())} |" in said
    assert code == 0, said


async def test_a_mutation_changes_nothing_where_it_is_not_asked_for() -> None:
    names = [mutation.name for mutation in mutations.MUTATIONS]
    assert len(set(names)) == len(names)
