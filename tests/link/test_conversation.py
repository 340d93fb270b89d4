"""All loops together against a Supervisor that does everything wrong: nothing is lost, and nothing is done twice."""

import random
from typing import Any

import pytest

from tests.fakes.supervisor import FakeSupervisor, Fault, activity, altered, cut, huge, plain, redirect, status
from tests.link.conftest import Node, eventually, running


def faults(chance: random.Random) -> list[Fault]:
    def reorder(answer: Any) -> Any:
        items = [*answer.get("items", []), *answer.get("items", [])]
        chance.shuffle(items)
        return {**answer, "items": items} if "items" in answer else answer

    def forget_results(answer: Any) -> Any:
        return {**answer, "results": answer["results"][::2]} if "results" in answer else answer

    return [
        status(500),
        status(503, retry_after="0"),
        status(429, "rate_limited", retry_after="0"),
        cut(after=True),
        cut(after=False),
        huge(2 * 1024 * 1024),
        redirect("/elsewhere"),
        plain(200, b"<html>hello</html>"),
        altered(reorder),
        altered(reorder),
        altered(forget_results),
        altered(lambda answer: {**answer, "later": {"unknown": "fields"}}),
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_and_nothing_is_done_twice(node: Node, supervisor: FakeSupervisor, seed: int) -> None:
    chance = random.Random(seed)
    node.pace.poll_wait = supervisor.poll_wait = 0.2
    supervisor.heartbeat_interval = 0.5
    for path in ("activities", "reports", "heartbeats"):
        supervisor.script(path, *chance.choices(faults(chance), k=15))
    numbers = list(range(1, 41))
    order = chance.sample(numbers, k=len(numbers))
    receiver = node.receiver(page=4, sweep_interval=1.0)
    loops = (receiver.run(), node.reporter().run(), node.heartbeat().run(), node.lane())
    async with running(*loops):
        for begin in range(0, len(order), 5):
            await supervisor.dispatch(*[activity(number) for number in order[begin : begin + 5]])
            await eventually(lambda: len(supervisor.reports) > 0)
        await eventually(lambda: len(supervisor.reports) == len(numbers), seconds=40)
        forgotten = activity(order[0])
        await supervisor.forget(forgotten)
        await eventually(lambda: forgotten["id"] in supervisor.reports)
        await eventually(lambda: not supervisor.processing)
    ids = [activity(number)["id"] for number in numbers]
    assert sorted(node.effects) == ids
    assert sorted(supervisor.reports) == ids
    assert {report["status"] for report in supervisor.reports.values()} == {"completed"}
    assert node.standing.permitted
