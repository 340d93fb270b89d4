"""Each row of the network, for a short time; all at once, for most of it is waiting."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.nursery import Nursery
from tests.e2e.programs import standin_programs
from tests.e2e.rig import Rig
from tests.faults import names, outages, tokens
from tests.faults.fault import Budget, Ground
from tests.faults.network import FAULTS, OPTIONS, Play, storm_of
from tests.faults.outages import Backlog
from tests.faults.storms import storm_and_kills
from tests.faults.tally import Tally
from tests.faults.weather import KINDS

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("faults-network"),
]

PLAYS: dict[str, Play] = {
    "network.outage": partial(outages.long_outage, backlog=Backlog(size=40, seconds=0.5)),
    "network.kills": partial(storm_and_kills, nodes=1, errands=3),
    "network.token": partial(tokens.exchanged, nodes=1),
    "network.tls": names.bad_certificates,
    "network.dns": names.lost_names,
    "network.moved": names.moved,
    "network.silent": names.black_hole,
    "network.mixed": storm_of(*KINDS, nodes=2),
    **{f"network.{kind.key}": storm_of(kind, nodes=1, errands=2) for kind in KINDS},
}
ALONE: dict[str, Play] = {
    "network.supervisor": partial(outages.killed_supervisor, nodes=2),
    "network.copy": partial(outages.old_copy, nodes=1),
}
"""They end the Supervisor, so each has one of its own."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tallies(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mapping[str, Tally]]:
    """All rows, played once."""
    folder = tmp_path_factory.mktemp("network")
    async with Rig(standin_programs(), OPTIONS) as rig, Nursery(rig.folder) as nursery, asyncio.TaskGroup() as group:
        tasks = {key: group.create_task(_played(key, play, rig, nursery, folder)) for key, play in PLAYS.items()}
        tasks |= {key: group.create_task(_alone(key, play, folder)) for key, play in ALONE.items()}
    yield {key: task.result() for key, task in tasks.items()}


async def _alone(key: str, play: Play, folder: Path) -> Tally:
    async with Rig(standin_programs(), OPTIONS) as rig, Nursery(rig.folder) as nursery:
        return await _played(key, play, rig, nursery, folder)


async def _played(key: str, play: Play, rig: Rig, nursery: Nursery, folder: Path) -> Tally:
    tally, own = Tally(key), folder / key
    await asyncio.to_thread(own.mkdir)
    await play(rig, nursery, Ground(own, random.randrange(2**32)), Budget(0.0), tally)
    return tally


@pytest.mark.parametrize("key", [fault.key for fault in FAULTS])
async def test_no_effect_and_no_report_is_lost_or_repeated_or_false(key: str, tallies: Mapping[str, Tally]) -> None:
    tally = tallies[key]
    assert not tally.stories, "\n\n".join(tally.stories)
    assert tally.good, f"{key} never came"
    assert tally.effects_seen == tally.effects_expected
    assert tally.reports_seen == tally.reports_expected > 0
