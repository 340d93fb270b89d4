"""A whole agent and a Supervisor that gives it bad answers to every call, between good ones.

The agent enrols and exchanges its token in the end, takes in and answers every activity that can be answered, does the
good ones that stand between the bad ones once and reports each once, shows that the Supervisor cannot be understood
while it is so, lives, and is well afterwards.
"""

import asyncio
import itertools
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web
from hypothesis import strategies as st

from agent.protocol import MAX_BODY_BYTES, MAX_ID, Enrollment, TokenRotation
from tests.e2e.waiting import until
from tests.fakes.supervisor import Fault, Handler, altered, cut, huge, plain, redirect
from tests.faults import messages
from tests.faults.bad_answers import Parser
from tests.faults.examples import drawn, each_live
from tests.faults.fault import Budget, Ground
from tests.faults.scripted_node import ScriptedNode
from tests.faults.spoilt import bodies, spoilt, write
from tests.faults.tally import LostError, RepeatedError, Tally

FEW, MANY = 3, 20
"""Conversations of a round, and lasting faults, as there is time."""
LONG = 30.0
"""Seconds that are time for many."""
JOINING = 2
"""Bad answers to an enrolment, and to the exchange of a token."""
UNREACHABLE = "supervisor_unreachable"


@dataclass(frozen=True, slots=True)
class BadAnswer:
    """One bad answer to one kind of call."""

    path: str
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class BadItems:
    """Bad activities, which stand around the good ones of a list."""

    items: list[Any]


statuses = st.sampled_from([200, 200, 200, 201, 204, 206, 404, 418, 429, 500, 503, 599])
envelope = spoilt(messages.activities(), kept=frozenset({"revision"}))


def bad_steps(node: ScriptedNode) -> st.SearchStrategy[list[BadAnswer | BadItems]]:
    """Make what goes wrong around one good activity."""
    number = st.builds(node.number)
    item = st.one_of(number.map(messages.activity), number.map(messages.reconfigure))
    answers = {
        "activities": envelope,
        "reports": st.builds(messages.results, number).flatmap(spoilt),
        "heartbeats": st.builds(messages.pace).flatmap(spoilt),
    }
    step = st.one_of(
        st.lists(item.flatmap(lambda good: spoilt(good, kept=messages.NEVER)), min_size=1, max_size=4).map(BadItems),
        item.map(lambda good: BadItems([{**good, "sequence": MAX_ID}])),
        *(st.builds(BadAnswer, st.just(path), statuses, bodies(made)) for path, made in answers.items()),
    )
    return st.lists(step, min_size=1, max_size=5)


async def converse(node: ScriptedNode, tally: Tally, steps: list[BadAnswer | BadItems]) -> None:
    """Have one good activity done among bad answers, and check what became of all."""
    tally.injected -= 1  # each bad answer counts when it is given, and this example is none
    counted = Counted(tally)
    before = node.births()
    for step in steps:
        if isinstance(step, BadItems):
            node.supervisor.script("activities", counted.among(step.items))
        else:
            node.supervisor.script(step.path, counted.instead(step))
    tally.effects_expected += 1
    tally.reports_expected += 1
    activity_id = await node.dispatch()
    report = await node.reported(activity_id)
    assert report["status"] == "completed", report
    tally.reports_seen += 1
    tally.effects_seen += node.births() - before
    if node.births() - before != 1:
        error = RepeatedError if node.births() > before else LostError
        msg = f"the restart was done {node.births() - before} times"
        raise error(msg)
    deliveries = node.supervisor.deliveries
    await until(lambda: set(counted.answerable) <= set(deliveries), "each bad activity is answered", every=0.02)
    await node.until_well()
    assert node.births() - before == 1


class Counted:
    """Bad answers that count when they are given.

    Args:
        tally: Each is an injected fault of it.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.answerable: list[int] = []
        """Ids of the bad activities that were given, and that can be answered."""

    def instead(self, answer: BadAnswer) -> Fault:
        """Give a bad answer; what was asked for is done all the same."""

        async def fault(_request: web.Request, handler: Handler) -> web.StreamResponse:
            # An answer to a poll that nobody can read is given at once, one to a report when it was taken.
            if answer.path != "activities":
                await handler()
            self._tally.injected += 1
            return web.Response(status=answer.status, body=answer.body, content_type="application/json")

        return fault

    def among(self, items: list[Any]) -> Fault:
        """Put bad activities before, between and behind the good ones."""

        async def fault(_request: web.Request, handler: Handler) -> web.StreamResponse:
            content = (await handler()).body
            assert isinstance(content, bytes)
            answer = json.loads(content)
            self._tally.injected += len(items)
            answer["items"] = [items[0], *answer["items"], *items[1:]]
            body = write(answer).encode()
            self.answerable += _answerable(body, items)
            return web.Response(body=body, content_type="application/json")

        return fault


def _answerable(body: bytes, bad: list[Any]) -> list[int]:
    """Find the ids that have to be answered, the way any reader of JSON does; none if it cannot be read."""
    try:
        items = json.loads(body)["items"]
    except (ValueError, RecursionError):
        return []
    ours = [items[0], *items[len(items) - len(bad) + 1 :]]
    return [
        item["id"]
        for item in ours
        if isinstance(item, dict)
        and all(type(item.get(name)) is int and 1 <= item[name] <= MAX_ID for name in ("id", "sequence"))
    ]


# --- enrolment and token


def _refused(message: Any, parse: Any) -> st.SearchStrategy[bytes]:
    """Make answers that cannot be used: one that is just another good one makes the node another one."""
    parser = Parser()

    def is_bad(body: bytes) -> bool:
        return parser.read(body, parse) is None

    return bodies(st.builds(message).flatmap(spoilt)).filter(is_bad)


async def join(node: ScriptedNode, ground: Ground, tally: Tally) -> None:
    """Have the agent enrol, and exchange its token, against bad answers."""
    counted = Counted(tally)
    for path, message, parse in (
        ("enroll", messages.enrollment, Enrollment.model_validate),
        ("token", messages.rotation, TokenRotation.model_validate),
    ):
        made = await asyncio.to_thread(drawn, ground, _refused(message, parse), JOINING)
        node.supervisor.script(path, *(counted.instead(BadAnswer(path, 200, body)) for body in made))
    node.start()
    await node.until_well()
    assert node.supervisor.count("enroll") == JOINING + 1
    await node.agent.terminate()
    node.age_token()
    node.start()
    await until(lambda: node.supervisor.count("token") == JOINING + 1, "the token is exchanged in the end")
    await node.until_well()


# --- as long as it lasts


def _says(**changes: Any) -> Fault:
    return altered(lambda answer: {**answer, **changes})


def _json(body: bytes) -> Fault:
    return plain(200, body, "application/json")


ANYWHERE: tuple[Fault, ...] = (
    *(_json(body) for body in (b"", b"{", b"[]", b"null", b"0", b"\xff", b"[" * 100_000, b"NaN", b"{}" * 2)),
    *(plain(code, b"<html>no</html>") for code in (200, 404, 500, 502)),
    *(huge(2 * MAX_BODY_BYTES), huge(2 * MAX_BODY_BYTES, chunked=False), cut(after=False), redirect("//[")),
    plain(200, b"{}", "application/json", {"Content-Encoding": "gzip"}),
)
WRONG_LISTS: tuple[Any, ...] = (None, {}, "none", 5)
WRONG_NUMBERS: tuple[Any, ...] = (-1, 2**63, "x", None, [])
LASTING: dict[str, tuple[Fault, ...]] = {
    "activities": (
        *ANYWHERE,
        *(_says(items=wrong) for wrong in WRONG_LISTS),
        *(_says(last=wrong) for wrong in WRONG_NUMBERS),
        *(_says(revision=wrong) for wrong in (*WRONG_NUMBERS, 2**63 - 1)),
    ),
    "heartbeats": (
        *ANYWHERE,
        *(_says(heartbeat_interval=wrong) for wrong in (*WRONG_NUMBERS, 0, 1e308)),
        *(_says(poll_wait=wrong) for wrong in (*WRONG_NUMBERS, 56, 1e308)),
        *(_says(server_time=wrong) for wrong in (*WRONG_NUMBERS, "yesterday", "0001-01-01T00:00:00+14:00")),
    ),
    "reports": (*ANYWHERE, *(_says(results=wrong) for wrong in WRONG_LISTS)),
}


async def last(node: ScriptedNode, ground: Ground, tally: Tally) -> None:
    """Give nothing but bad answers to one kind of call, until the agent says so; then be well again."""
    path = ground.chance.choice(sorted(LASTING))
    kind = ground.chance.randrange(len(LASTING[path]))
    before = node.births()
    node.supervisor.always(path, LASTING[path][kind])
    tally.injected += 1
    tally.cases += 1
    tally.effects_expected += 1
    tally.reports_expected += 1
    try:
        activity_id = await node.dispatch()
        await node.until_shown(UNREACHABLE)
        node.supervisor.always(path, None)
        assert (await node.reported(activity_id))["status"] == "completed"
        await node.until_well()
    except BaseException as error:
        error.add_note(f"{path}, number {kind}")
        raise
    tally.reports_seen += 1
    tally.effects_seen += node.births() - before
    assert node.births() == before + 1, f"the restart was done {node.births() - before} times"


async def conversation(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Do the row."""
    count = MANY if budget.seconds > LONG else FEW
    for number in itertools.count():
        if not budget.more():
            return
        folder = ground.folder / str(number)
        folder.mkdir()
        async with ScriptedNode(folder) as node:
            try:
                await join(node, ground, tally)
                await each_live(ground, tally, "a conversation", bad_steps(node), partial(converse, node, tally), count)
                for _ in range(count):
                    await last(node, ground, tally)
            except (AssertionError, TimeoutError) as error:
                error.add_note(node.lately())
                error.add_note(node.agent.tail())
                tally.fail("a bad Supervisor", error)
