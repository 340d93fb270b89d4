"""Each row of the network, for a short time."""

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.nursery import Nursery
from tests.e2e.programs import standin_programs
from tests.e2e.rig import Rig
from tests.faults import names, outages
from tests.faults.fault import Budget, Ground
from tests.faults.network import OPTIONS, Play, storm_of
from tests.faults.outages import Backlog
from tests.faults.tally import Tally
from tests.faults.weather import KINDS

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-network"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with Rig(standin_programs(), OPTIONS) as rig:
        yield rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nursery(rig: Rig) -> AsyncIterator[Nursery]:
    async with Nursery(rig.folder) as nursery:
        yield nursery


async def played(name: str, play: Play, rig: Rig, nursery: Nursery, folder: Path, rounds: int = 1) -> Tally:
    tally = Tally(name)
    ground = Ground(folder, random.randrange(2**32))
    await play(rig, nursery, ground, Budget(0.0, least=rounds, most=rounds), tally)
    return tally


def judge(*tallies: Tally) -> None:
    assert not [story for tally in tallies for story in tally.stories]
    assert [tally.fault for tally in tallies if not tally.good] == []
    for tally in tallies:
        assert tally.effects_seen == tally.effects_expected
        assert tally.reports_seen == tally.reports_expected > 0


async def test_a_storm_of_any_kind_loses_nothing_and_repeats_nothing(
    rig: Rig, nursery: Nursery, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        storms = [
            group.create_task(played(kind.key, storm_of(kind, nodes=1, errands=2), rig, nursery, tmp_path / kind.key))
            for kind in KINDS
        ]
    judge(*(storm.result() for storm in storms))


async def test_faults_of_all_kinds_at_once_lose_nothing_and_repeat_nothing(
    rig: Rig, nursery: Nursery, tmp_path: Path
) -> None:
    judge(await played("mixed", storm_of(*KINDS, nodes=2), rig, nursery, tmp_path / "mixed"))


async def test_a_backlog_of_an_outage_is_done_in_order_and_reported_once(
    rig: Rig, nursery: Nursery, tmp_path: Path
) -> None:
    play = partial(outages.long_outage, backlog=Backlog(size=40, seconds=0.5))
    judge(await played("outage", play, rig, nursery, tmp_path))


async def test_a_supervisor_that_is_killed_or_put_back_loses_nothing_and_repeats_nothing(
    rig: Rig, nursery: Nursery, tmp_path: Path
) -> None:
    judge(await played("killed", partial(outages.killed_supervisor, nodes=2), rig, nursery, tmp_path, rounds=2))
    judge(await played("copy", partial(outages.old_copy, nodes=1), rig, nursery, tmp_path))


async def test_an_agent_finds_the_supervisor_again_and_knows_it(rig: Rig, nursery: Nursery, tmp_path: Path) -> None:
    plays = {"tls": names.bad_certificates, "dns": names.lost_names, "moved": names.moved, "silent": names.black_hole}
    async with asyncio.TaskGroup() as group:
        found = []
        for name, play in plays.items():
            (tmp_path / name).mkdir()
            found.append(group.create_task(played(name, play, rig, nursery, tmp_path / name)))
    judge(*(one.result() for one in found))
