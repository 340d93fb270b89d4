"""The receiver: cursor, sweep, and what it does with answers that are not as they should be."""

import asyncio
import time
from typing import Any

import pytest

from agent.errors import JournalError
from agent.journal import Journal
from agent.link.receiver import page_past
from agent.protocol import ReportOutcome
from tests.fakes.supervisor import FakeSupervisor, activity, altered, cut, hang, huge, plain, redirect, status
from tests.link.conftest import Node, eventually, eventually_async, gaps, running, steady

BIG = 2**63 - 1


async def test_it_sweeps_first_and_then_polls_from_the_cursor(node: Node, supervisor: FakeSupervisor) -> None:
    await supervisor.dispatch(activity(5), activity(9))
    async with running(node.receiver().run()):
        await eventually(lambda: supervisor.count("activities") == 3)
    sweep, end, poll = [call.query for call in supervisor.calls("activities")]
    assert (sweep["after"], sweep["wait"]) == ("0", "0")
    assert (end["after"], end["wait"]) == ("9", "0")
    assert (poll["after"], poll["wait"]) == ("9", "30")


async def test_a_dispatch_wakes_the_held_poll(node: Node, supervisor: FakeSupervisor) -> None:
    async with running(node.receiver().run()):
        await eventually(lambda: supervisor.count("activities") == 2)
        await supervisor.dispatch(activity(1))
        await eventually(lambda: node.journal.cursor == 1)
        await eventually(lambda: supervisor.count("activities") == 3)
    assert supervisor.calls("activities")[2].query["after"] == "1"


async def test_a_sweep_pages_to_the_end_also_past_answers_cut_by_size(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.max_answer = 2000
    await supervisor.dispatch(*[activity(number, padding="x" * 700) for number in range(1, 31)])
    receiver = node.receiver(page=10)
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1)
    assert len(await node.states()) == 30


async def test_ten_configs_of_400_kib_at_once_all_arrive(node: Node, supervisor: FakeSupervisor) -> None:
    config = {
        "id": 1,
        "kind": "iggy",
        "name": "big",
        "version": 1,
        "values": {"IGGY_X": "v" * 400 * 1024},
        "sha256": "0",
    }
    items = [activity(number, action="reconfigure:1", config=config) for number in range(1, 11)]
    await supervisor.dispatch(*items)
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1)
    assert len(await node.states()) == 10


async def test_bad_items_hold_up_no_good_ones(node: Node, supervisor: FakeSupervisor) -> None:
    bad: list[Any] = [
        {**activity(2), "created_at": "yesterday"},
        {**activity(3), "id": 2**70},
        {**activity(4), "sequence": "four"},
        "no activity at all",
        {**activity(6), "runtime": ["iggy"], "config": 7},
        {**activity(7), "author_id": 2**80},
        {**activity(8), "runtime": "\ud800"},
    ]
    await supervisor.dispatch(activity(1), *bad, activity(20))
    receiver = node.receiver()
    async with running(receiver.run(), node.reporter().run()):
        await eventually(lambda: receiver.sweeps >= 1)
        await eventually(lambda: activity(2)["id"] in supervisor.reports)
        await supervisor.dispatch(activity(21))
        await eventually(lambda: node.journal.cursor == 21)
    states = await node.states()
    assert {states[activity(number)["id"]] for number in (1, 20, 21)} == {"received"}
    assert supervisor.reports[activity(2)["id"]]["reason"]["code"] == "invalid_activity"
    assert receiver.skipped > 0


async def test_an_integer_of_absurd_length_spoils_its_own_item_only(node: Node, supervisor: FakeSupervisor) -> None:
    digits = "9" * 5000
    listed = f'{{"items": [{{"id": {digits}, "sequence": 1}}, {{"id": 7, "sequence": 2, "action": NaN}}], "last": 2}}'
    supervisor.script("activities", plain(200, listed.encode(), "application/json"))
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1)
    assert receiver.skipped == 1
    assert (await node.states())[7] == "finished"


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503, retry_after="0"),
        status(429, "rate_limited", retry_after="0"),
        status(409, "conflict"),
        cut(),
        huge(4 * 1024 * 1024),
        huge(4 * 1024 * 1024, chunked=False),
        redirect("https://elsewhere.example/agent/v1/activities"),
        plain(200, b"<html>welcome to our wifi</html>"),
        plain(200, b'{"items": 5}', "application/json"),
        plain(200, b"[" * 200_000, "application/json"),
        plain(200, b"\x1f\x8b", "application/json", {"Content-Encoding": "gzip"}),
        plain(502, b"<html>bad gateway</html>"),
        hang(),
    ],
    ids=lambda fault: fault.__qualname__.partition(".")[0],
)
async def test_after_any_failure_it_backs_off_sweeps_again_and_has_lost_nothing(
    node: Node, supervisor: FakeSupervisor, fault: Any
) -> None:
    node.pace.poll_wait = 0.1
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1)
        supervisor.script("activities", fault, fault)
        await eventually(lambda: "supervisor_unreachable" in node.conditions)
        # What a poll from the cursor would never see, because its sequence is lower.
        node.pace.poll_wait = 20
        await supervisor.dispatch(activity(7))
        await supervisor.dispatch(activity(3))
        await eventually(lambda: receiver.sweeps >= 2)
        await eventually(lambda: "supervisor_unreachable" not in node.conditions)
        await eventually_async(node.states)
    assert set(await node.states()) == {activity(7)["id"], activity(3)["id"]}
    assert receiver.status.failures == 2
    assert receiver.status.last_error is not None


async def test_a_supervisor_that_is_away_is_asked_ever_more_rarely(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.always("activities", status(500))
    async with running(node.receiver(backoff=steady(0.05)).run()):
        await eventually(lambda: supervisor.count("activities") == 5)
    for gap, least in zip(gaps(supervisor, "activities"), (0.05, 0.1, 0.2, 0.4), strict=True):
        assert gap >= least * 0.95


async def test_one_success_between_failures_does_not_speed_it_up(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.script("activities", status(500), status(500), altered(lambda answer: answer), status(500))
    async with running(node.receiver(backoff=steady(0.1)).run()):
        await eventually(lambda: supervisor.count("activities") >= 5)
    assert gaps(supervisor, "activities")[3] >= 0.4 * 0.95


async def test_retry_after_is_honoured(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.script("activities", status(429, "rate_limited", retry_after="1"))
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1)
    assert gaps(supervisor, "activities")[0] >= 1.0


async def test_a_refused_token_is_shown_and_tried_rarely(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.tokens.clear()
    async with running(node.receiver().run()):
        await eventually(lambda: "unauthorized" in node.conditions)
        await asyncio.sleep(0.3)
    assert supervisor.count("activities") == 1
    [condition] = node.conditions.all()
    assert "invalid_token" in condition.message
    assert "enroll" in str(condition.hint)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (status(409, "identity_in_use"), "identity_in_use"),
        (status(410), "decommissioned"),
        (plain(410, b""), "decommissioned"),
    ],
    ids=["409", "410", "410 without a word"],
)
async def test_a_lost_standing_ends_all_calls(node: Node, supervisor: FakeSupervisor, fault: Any, code: str) -> None:
    await node.result(1)
    node.pace.poll_wait = 0.3
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: supervisor.count("activities") >= 2)
        supervisor.always("activities", fault)
        await eventually(lambda: not node.standing.permitted)
        async with running(node.reporter().run(), node.heartbeat().run()):
            count = len(supervisor.requests)
            await asyncio.sleep(0.3)
    assert len(supervisor.requests) == count
    assert code in node.conditions
    assert "supervisor_unreachable" not in node.conditions
    assert node.standing.changed.is_set()
    assert list((await node.states()).values()) == ["finished"]


async def test_an_answer_held_while_the_standing_was_lost_is_not_taken(node: Node, supervisor: FakeSupervisor) -> None:
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: supervisor.count("activities") == 2)
        supervisor.always("heartbeats", status(409, "identity_in_use"))
        async with running(node.heartbeat().run()):
            await eventually(lambda: not node.standing.permitted)
            await supervisor.dispatch(activity(1))
            await asyncio.sleep(0.2)
    assert await node.states() == {}


async def test_an_answer_delivered_twice_and_out_of_order_is_taken_once(node: Node, supervisor: FakeSupervisor) -> None:
    def shuffle(answer: Any) -> Any:
        return {**answer, "items": [*reversed(answer["items"]), *answer["items"]]}

    supervisor.always("activities", altered(shuffle))
    await supervisor.dispatch(*[activity(number) for number in range(1, 6)])
    receiver = node.receiver(page=3)
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: len(supervisor.reports) == 5)
        await supervisor.dispatch(activity(6))
        await eventually(lambda: len(supervisor.reports) == 6)
    assert sorted(node.effects) == [activity(number)["id"] for number in range(1, 7)]


async def test_a_list_that_does_not_go_on_is_a_failure_and_no_hot_loop(node: Node, supervisor: FakeSupervisor) -> None:
    await supervisor.dispatch(activity(1))
    supervisor.always("activities", altered(lambda answer: {**answer, "items": [activity(1)]}))
    receiver = node.receiver(backoff=steady(0.2))
    async with running(receiver.run()):
        await eventually(lambda: supervisor.count("activities") >= 5)
        assert "does not go on" in node.conditions.all()[0].message
        assert receiver.sweeps == 0
        supervisor.always("activities", None)
        await eventually(lambda: "sweep_incomplete" not in node.conditions)
    # Two requests for each try; the tries are apart.
    assert gaps(supervisor, "activities")[1] >= 0.2 * 0.95
    assert gaps(supervisor, "activities")[3] >= 0.4 * 0.95
    assert await node.states() == {activity(1)["id"]: "received"}


async def test_a_poll_that_brings_nothing_new_is_no_hot_loop(node: Node, supervisor: FakeSupervisor) -> None:
    receiver = node.receiver(stall=steady(0.05, cap=0.4))
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1 and supervisor.count("activities") == 2)
        await supervisor.dispatch({"sequence": None, "id": 5})
        await eventually(lambda: supervisor.count("activities") == 6)
        # And what is good behind it gets through.
        await supervisor.dispatch(activity(6))
        await eventually(lambda: node.journal.cursor == 6)
    for gap, least in zip(gaps(supervisor, "activities")[2:5], (0.05, 0.1, 0.2), strict=True):
        assert gap >= least * 0.95


async def test_an_item_without_an_id_and_with_the_highest_sequence_hides_nothing_and_is_no_hot_loop(
    node: Node, supervisor: FakeSupervisor
) -> None:
    receiver = node.receiver(stall=steady(0.1, cap=0.8))
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1 and supervisor.count("activities") == 2)
        await supervisor.dispatch({"sequence": BIG})
        await eventually(lambda: supervisor.count("activities") >= 6)
        assert node.journal.cursor == 0
        await supervisor.dispatch(activity(5))
        await eventually(lambda: node.journal.cursor == 5)
        assert receiver.sweeps == 1, "it came by a poll"
        await supervisor.dispatch(activity(6))
        await eventually(lambda: node.journal.cursor == 6)
    assert (await node.states()).keys() == {activity(5)["id"], activity(6)["id"]}
    for gap, least in zip(gaps(supervisor, "activities")[1:5], (0.1, 0.2, 0.4, 0.8), strict=True):
        assert gap >= least * 0.95


@pytest.mark.parametrize("item", [{}, {"action": 5}], ids=["good", "not to be parsed"])
async def test_an_activity_with_a_sequence_that_was_never_given_hides_nothing_that_comes(
    node: Node, supervisor: FakeSupervisor, item: dict[str, Any]
) -> None:
    receiver = node.receiver(stall=steady(0.05, cap=0.1))
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: receiver.sweeps == 1 and supervisor.count("activities") == 2)
        supervisor.script("activities", altered(lambda answer: {**answer, "last": 4}))
        await supervisor.dispatch({**activity(4), "sequence": BIG, **item})
        supervisor.last = 4
        await eventually(lambda: len(supervisor.reports) == 1)
        await supervisor.dispatch(activity(5))
        await eventually(lambda: len(supervisor.reports) == 2)
        assert receiver.sweeps == 1, "it came by a poll"


async def test_a_poll_gets_past_pages_full_of_unusable_items(node: Node, supervisor: FakeSupervisor) -> None:
    receiver = node.receiver(page=3)
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1 and supervisor.count("activities") == 2)
        await supervisor.dispatch(*[{"sequence": number} for number in range(1, 9)], activity(9), {"sequence": BIG})
        await eventually(lambda: node.journal.cursor == 9)
        assert receiver.sweeps == 1, "it came by a poll"
        await supervisor.dispatch(activity(10))
        await eventually(lambda: node.journal.cursor == 10)
    behind = [call.query for call in supervisor.calls("activities")[1:]]
    assert [query["after"] for query in behind[:4]] == ["0", "3", "6", "9"]
    assert [query["wait"] for query in behind[:3]] == ["30", "0", "0"]


async def test_a_sweep_gets_past_pages_full_of_unusable_items(node: Node, supervisor: FakeSupervisor) -> None:
    unusable: list[Any] = [{"sequence": number} for number in range(1, 9)]
    await supervisor.dispatch(*unusable, activity(9), {"sequence": 10}, activity(11), {"sequence": BIG})
    receiver = node.receiver(page=3)
    async with running(receiver.run()):
        await eventually(lambda: receiver.sweeps == 1)
    assert node.journal.cursor == 11
    assert (await node.states()).keys() == {activity(9)["id"], activity(11)["id"]}
    assert "sweep_incomplete" not in node.conditions


async def test_a_poll_that_is_not_held_is_no_hot_loop(node: Node, supervisor: FakeSupervisor) -> None:
    receiver = node.receiver(stall=steady(0.1))
    supervisor.always("activities", plain(200, b'{"items": [], "last": 0}', "application/json"))
    async with running(receiver.run()):
        await eventually(lambda: supervisor.count("activities") == 5)
    for gap, least in zip(gaps(supervisor, "activities")[1:], (0.1, 0.2, 0.4), strict=True):
        assert gap >= least * 0.95


async def test_only_a_complete_sweep_withdraws(node: Node, supervisor: FakeSupervisor) -> None:
    items = [activity(number) for number in range(1, 7)]
    await node.journal.take(items, sweep=None)
    await supervisor.dispatch(*[item for item in items if item["sequence"] != 2])
    # The first sweep breaks after its first page, which did not list number 2.
    supervisor.script("activities", altered(lambda answer: answer), status(500))
    receiver = node.receiver(page=3, backoff=steady(0.5))
    async with running(receiver.run()):
        await eventually(lambda: receiver.status.failures == 1)
        assert (await node.states())[activity(2)["id"]] == "received"
        await eventually(lambda: receiver.sweeps == 1)
    states = await node.states()
    assert [number for number in range(1, 7) if states[activity(number)["id"]] == "finished"] == [2]


async def test_a_report_that_the_supervisor_forgot_is_sent_again(node: Node, supervisor: FakeSupervisor) -> None:
    await supervisor.dispatch(activity(1))
    node.pace.poll_wait = 0.05
    receiver = node.receiver(sweep_interval=0.2)
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: supervisor.reports)
        await supervisor.forget(activity(1))
        await eventually(lambda: supervisor.reports)
    assert node.effects == [activity(1)["id"]]


async def test_it_sweeps_again_when_the_interval_is_over(node: Node, supervisor: FakeSupervisor) -> None:
    node.pace.poll_wait = 0.05
    swept: list[float] = []
    receiver = node.receiver(sweep_interval=0.5, swept=lambda: swept.append(time.monotonic()))
    async with running(receiver.run()):
        await eventually(lambda: len(swept) == 3)
    assert swept[2] - swept[0] >= 0.85
    assert supervisor.count("activities") > 3


async def test_a_journal_put_back_from_an_old_copy_counts_as_lost_and_is_swept_anew(
    node: Node, supervisor: FakeSupervisor
) -> None:
    supervisor.revision = 41
    await supervisor.dispatch(activity(1), activity(2))
    receiver = node.receiver()
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: len(supervisor.reports) == 2)
        await supervisor.dispatch(activity(3))
        await eventually(lambda: len(supervisor.reports) == 3)
    assert node.journal.revision == 42
    assert {report["reason"]["code"] for report in list(supervisor.reports.values())[:2]} == {"outcome_unknown"}
    assert node.effects == [activity(3)["id"]]


async def test_a_poll_that_shows_an_old_journal_leads_to_a_sweep(node: Node, supervisor: FakeSupervisor) -> None:
    receiver = node.receiver()
    async with running(receiver.run()):
        await eventually(lambda: supervisor.count("activities") == 2)
        supervisor.revision = 7
        await supervisor.dispatch(activity(1))
        await eventually(lambda: receiver.sweeps == 2)
        row = await node.journal.get(activity(1)["id"])
    assert row is not None
    assert row.uncertain
    assert node.journal.revision == 7
    assert not node.journal.lost


async def test_a_revision_that_no_journal_could_go_on_from_is_not_taken_over(
    node: Node, supervisor: FakeSupervisor
) -> None:
    """SQLite has no number above it, so nothing could ever be begun again."""
    supervisor.always("activities", altered(lambda answer: {**answer, "revision": BIG}))
    await supervisor.dispatch(activity(1))
    receiver = node.receiver()
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: "supervisor_unreachable" in node.conditions)
        assert node.journal.revision == 0
        supervisor.always("activities", None)
        await eventually(lambda: activity(1)["id"] in supervisor.reports)
    assert node.effects == [activity(1)["id"]]


async def test_a_sequence_of_an_answer_that_says_that_none_was_given_hides_nothing_from_the_polls(
    node: Node, supervisor: FakeSupervisor
) -> None:
    bad = activity(1) | {"sequence": BIG}
    supervisor.script("activities", altered(lambda answer: {**answer, "items": [bad], "last": 0}))
    receiver = node.receiver()
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: receiver.sweeps >= 1)
        await supervisor.dispatch(activity(2))
        await eventually(lambda: activity(2)["id"] in supervisor.reports)
    assert node.journal.cursor == 2


async def test_a_revision_that_never_stops_growing_is_no_hot_loop(node: Node, supervisor: FakeSupervisor) -> None:
    count = 0

    def grow(answer: Any) -> Any:
        nonlocal count
        count += 10
        return {**answer, "revision": count}

    supervisor.always("activities", altered(grow))
    receiver = node.receiver(backoff=steady(0.3))
    async with running(receiver.run()):
        await eventually(lambda: supervisor.count("activities") >= 3)
    assert gaps(supervisor, "activities")[1] >= 0.3 * 0.95
    assert receiver.sweeps == 0
    assert "sweep_incomplete" in node.conditions


async def test_a_journal_that_cannot_be_written_loses_nothing(
    node: Node, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The delay of the network, long after a night without it, has nothing to do with the disk.
    receiver = node.receiver(backoff=steady(60), disk=steady(0.1))
    take = Journal.take
    failures = 0

    async def failing(self: Journal, *arguments: Any, **more: Any) -> Any:
        nonlocal failures
        if failures < 3:
            failures += 1
            msg = "cannot write the journal: disk full"
            raise JournalError(msg)
        return await take(self, *arguments, **more)

    await supervisor.dispatch(activity(1))
    monkeypatch.setattr(Journal, "take", failing)
    async with running(receiver.run()):
        await eventually(lambda: node.journal.cursor == 1)
    for gap, least in zip(gaps(supervisor, "activities"), (0.1, 0.2, 0.4), strict=False):
        assert gap >= least * 0.95


async def test_a_supervisor_that_stops_and_comes_back_is_found_again(node: Node, supervisor: FakeSupervisor) -> None:
    receiver = node.receiver()
    async with running(receiver.run(), node.lane(), node.reporter().run()):
        await eventually(lambda: receiver.sweeps == 1)
        await supervisor.stop()
        await eventually(lambda: receiver.status.failures >= 2)
        assert "no connection" in next(c.message for c in node.conditions.all() if c.code == "supervisor_unreachable")
        await supervisor.dispatch(activity(1))
        await supervisor.start()
        await eventually(lambda: activity(1)["id"] in supervisor.reports)
    assert "supervisor_unreachable" not in node.conditions


@pytest.mark.parametrize(
    ("items", "further"),
    [
        ([], 0),
        ([{"sequence": 3}, {"sequence": 7}, 5, None, {"sequence": "9"}, {"sequence": True}], 7),
        ([{"sequence": BIG + 1}], 0),
        ([{"sequence": BIG}], BIG),
        ([{"sequence": BIG}, {"sequence": 5, "id": 1}, {"sequence": 4, "id": 2}], 5),
        ([{"sequence": BIG, "id": "unusable"}, {"sequence": 2, "id": 1}], BIG),
    ],
    ids=["nothing", "the highest", "too high", "without an id", "the one with an id", "one with an id that is known"],
)
def test_only_a_usable_sequence_is_paged_past(items: list[Any], further: int) -> None:
    assert page_past(items, 2) == further


async def test_the_outcome_of_a_report_is_kept(node: Node, supervisor: FakeSupervisor) -> None:
    activity_id = await node.result(1)
    async with running(node.reporter().run()):
        await eventually_async(lambda: _reported(node, activity_id))
    row = await node.journal.get(activity_id)
    assert row is not None
    assert row.outcome is ReportOutcome.RECORDED


async def _reported(node: Node, activity_id: int) -> bool:
    return (await node.states())[activity_id] == "reported"
