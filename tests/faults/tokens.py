"""A node token that is due to be exchanged while calls to exchange it fail in every way, and the agent is killed."""

import json
import random
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.e2e import fault_proxy
from tests.e2e.nursery import Nursery
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.errands import PATIENCE, judged
from tests.faults.fault import Budget, Ground
from tests.faults.storms import Station, in_parallel, killed, stations
from tests.faults.tally import Tally
from tests.faults.weather import KINDS, Weather

AGE = timedelta(days=40)
"""Of the token; it is exchanged after 30 days."""
KILLED = 0.4
"""Of the exchanges; a storm as well."""
SPOILT = (
    "drop",
    "swallow",
    "stall",
    "cut",
    "cut-request",
    "duplicate",
    "delay",
    "5xx",
    "429",
    "401",
    "garbage",
    "portal",
)


async def exchanged(
    rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally, *, nodes: int = 3
) -> None:
    """Spoil most of the calls that exchange a token, and have all tokens refused for a while once it is exchanged."""
    kinds = [kind for kind in KINDS if kind.key in SPOILT]
    async with (
        stations(rig, nursery, "token", nodes, ground.chance, tally) as placed,
        judged([one.node for one in placed]),
    ):
        weathers = [Weather(kinds, random.Random(ground.chance.random()), 0.7, only="token") for _ in placed]
        refusing = [Weather([kinds[SPOILT.index("401")]], random.Random(ground.chance.random()), 0.5) for _ in placed]
        while budget.more():
            await in_parallel(
                _round(station, spoilt, refused)
                for station, spoilt, refused in zip(placed, weathers, refusing, strict=True)
            )
        tally.injected += sum(weather.hits.total() for weather in (*weathers, *refusing))


async def _round(station: Station, spoilt: Weather, refused: Weather) -> None:
    node, file = station.node, station.node.node.node.state_dir / "identity.json"
    await node.node.end()
    _age(file)
    station.proxy.set(spoilt)
    await node.node.release()
    async with killed(node) if node.chance.random() < KILLED else nullcontext():
        await node.run(story="while its token is exchanged,")
        try:
            await until(lambda: _is_fresh(file), "the token is exchanged", within=PATIENCE, every=0.1)
        except TimeoutError as error:
            error.add_note(str(await node.node.ask("/v1/status")))
            node.tally.fail(node.node.folder.name, error)
    station.proxy.set(refused)
    await node.run(story="while its tokens are refused,")
    station.proxy.set(fault_proxy.none)
    await node.get_well()


def _age(file: Path) -> None:
    identity = json.loads(file.read_text())
    identity["token_issued_at"] = (datetime.now(UTC) - AGE).isoformat()
    file.write_text(json.dumps(identity))


def _is_fresh(file: Path) -> bool:
    issued = datetime.fromisoformat(json.loads(file.read_text())["token_issued_at"])
    return issued.timestamp() > time.time() - AGE.total_seconds() / 2
