"""What is taken in, and what is withdrawn."""

import json
from typing import Any

import pytest

from agent.journal import RowState, Taken
from agent.protocol import MAX_ID, ReasonCode, ReportStatus, Verb
from tests.journal.conftest import Node, activity, config, reason

# --- items


async def test_an_item_is_journaled_whole(node: Node) -> None:
    raw = activity(MAX_ID, sequence=7, action="reconfigure:42", config=config(42), runtime="connectors")
    assert await node.take(raw) == Taken(new=1)
    row = await node.row(MAX_ID)
    assert row.activity is not None
    assert row.activity.model_dump(mode="json") == raw
    assert (row.id, row.sequence, row.runtime, row.action) == (MAX_ID, 7, "connectors", "reconfigure:42")
    assert (row.state, row.uncertain, row.author_id) == (RowState.RECEIVED, False, 608123456789012345)
    assert row.created_at == "2026-03-16T12:00:00Z"


async def test_a_listing_twice_and_out_of_order_takes_each_in_once(node: Node) -> None:
    assert await node.take(activity(3), activity(1)) == Taken(new=2)
    assert await node.take(activity(1), activity(2), activity(3)) == Taken(new=1, known=2)
    assert await node.states() == {1: "received", 2: "received", 3: "received"}
    assert await node.next_id() == 1


BROKEN: dict[str, dict[str, Any]] = {
    "no runtime": {"runtime": None},
    "a runtime that is a list": {"runtime": [1]},
    "a time that is none": {"created_at": "yesterday"},
    "a time without a zone": {"created_at": "2026-03-16T12:00:00"},
    "a time that UTC does not have": {"created_at": "0001-01-01T00:00:00+14:00"},
    "a time far away": {"expires_at": "9999-12-31T23:59:59-14:00"},
    "a config that is a word": {"config": "main"},
    "a config without content": {"config": {"id": 1}},
    "a config whose id is too large": {"config": config(1) | {"id": 2**63}},
    "a lone surrogate": {"action": "\ud800"},
    "a lone surrogate as a key": {"config": config(1) | {"values": {"\ud800": 1}}},
    "a very long key": {"config": config(1) | {"values": {"K" * 100_000: 1}}},
    "a deep nest": {"created_at": json.loads("[" * 900 + "]" * 900)},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_an_item_that_does_not_parse_is_rejected_and_holds_up_none(node: Node, broken: dict[str, Any]) -> None:
    items = [activity(1), activity(2) | broken, activity(3)]
    assert await node.take(*items) == Taken(new=3, invalid=1)
    assert await node.states() == {1: "received", 2: "finished", 3: "received"}
    row = await node.row(2)
    assert (row.activity, row.status) == (None, ReportStatus.REJECTED)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.INVALID_ACTIVITY
    assert row.reason.message.startswith("cannot read the activity: ")
    assert len(row.reason.message) < 600
    assert row.report().model_dump_json()
    assert node.journal.cursor == 3
    assert await node.take(*items) == Taken(known=3)


async def test_an_invalid_one_never_begins_and_its_report_wakes_the_reporter(node: Node) -> None:
    ready = node.journal.report_ready.subscribe()
    await node.sweep(activity(1, runtime=5))
    await ready.wait()
    assert await node.next_id("5") is None
    assert await node.journal.next_foreign([]) is None
    assert not await node.start(1)
    assert [report.activity_id for report in await node.journal.outbox(10)] == [1]


NOT_ANSWERABLE: list[Any] = [
    None,
    5,
    "activity",
    [activity(1)],
    {},
    activity(1) | {"id": True},
    activity(1) | {"id": "1"},
    activity(1) | {"id": 1.0},
    activity(1) | {"id": 0},
    activity(1) | {"id": -1},
    activity(1) | {"id": 2**63},
    activity(1) | {"id": 2**200},
    activity(1) | {"sequence": True},
    activity(1) | {"sequence": "1"},
    activity(1) | {"sequence": 2**63},
    activity(1) | {"sequence": None},
]


@pytest.mark.parametrize("item", NOT_ANSWERABLE, ids=lambda item: repr(item)[:60])
async def test_an_item_without_id_or_sequence_is_skipped_and_holds_up_none(node: Node, item: Any) -> None:
    assert await node.take(item, activity(2)) == Taken(new=1, skipped=1)
    assert await node.states() == {2: "received"}


@pytest.mark.parametrize(
    "item", [{"id": "unusable"}, {"action": "stop"}, {}], ids=["without an id", "a conflict", "known with another one"]
)
async def test_what_is_not_journaled_does_not_move_the_cursor(node: Node, item: dict[str, Any]) -> None:
    """A poll from its sequence would see nothing of what comes."""
    await node.take(activity(1), activity(3))
    await node.take(activity(1, sequence=MAX_ID) | item)
    assert node.journal.cursor == 3


async def test_a_sequence_above_what_was_ever_given_is_answered_and_moves_no_cursor_and_no_mark(node: Node) -> None:
    await node.journal.take([activity(1), activity(2, sequence=MAX_ID), activity(3)], sweep=None, last=3)
    assert node.journal.cursor == 3
    assert await node.states() == {1: "received", 2: "received", 3: "received"}
    await node.reopen(lambda: node.edit("UPDATE journal SET lost = 1"))
    token = await node.journal.begin_sweep()
    await node.journal.take([activity(2, sequence=MAX_ID)], sweep=token, last=3)
    await node.journal.end_sweep(token, last=3)
    await node.take(activity(4))
    assert (await node.row(2)).uncertain
    assert not (await node.row(4)).uncertain


async def test_where_nothing_was_ever_given_no_sequence_moves_the_cursor(node: Node) -> None:
    """It would hide from the polls all that comes, for good: the cursor is kept."""
    await node.journal.take([activity(1, sequence=MAX_ID)], sweep=None, last=0)
    assert node.journal.cursor == 0
    assert await node.states() == {1: "received"}


async def test_an_author_that_no_database_can_hold_is_left_out(node: Node) -> None:
    assert await node.take(activity(1, author_id=2**70), activity(2, author_id=None)) == Taken(new=2)
    assert [(await node.row(number)).author_id for number in (1, 2)] == [None, None]


async def test_ten_activities_with_configs_of_400_kib_are_taken_in_at_once(node: Node) -> None:
    items = [activity(n, action=f"reconfigure:{n}", config=config(n, size=400 * 1024)) for n in range(1, 11)]
    assert await node.take(*items) == Taken(new=10)
    row = await node.journal.next("iggy")
    assert row is not None
    assert row.activity is not None
    assert row.activity.config is not None
    assert len(row.activity.config.values["IGGY_SYSTEM_PATH"]) == 400 * 1024
    await node.start(1, Verb.RECONFIGURE)
    await node.finish(1)
    assert (await node.row(1)).activity is None, "what may hold secrets is forgotten"


# --- the same id again


@pytest.mark.parametrize(
    "other",
    [
        {"runtime": "connectors"},
        {"action": "stop"},
        {"config": config(1, sha256="1" * 64)},
        {"created_at": "2026-03-16T12:00:01Z"},
        {"runtime": None},
    ],
    ids=lambda other: next(iter(other)),
)
@pytest.mark.parametrize("state", ["received", "reported"])
async def test_the_same_id_with_another_content_is_not_taken_in(node: Node, other: dict[str, Any], state: str) -> None:
    first = activity(1, config=config(1))
    await node.sweep(first)
    if state == "reported":
        await node.start(1)
        await node.finish(1)
        await node.report(1)
    before = await node.row(1)
    assert await node.take(first | other | {"sequence": 5}) == Taken(conflicts=[1])
    assert await node.row(1) == before
    assert "activity_conflict" in node.conditions


async def test_a_conflict_is_shown_until_a_complete_sweep_lists_none(node: Node) -> None:
    """Then whoever gave the id twice does so no more."""
    await node.sweep(activity(1))
    other = activity(1, action="stop")
    await node.take(other)
    assert "activity_conflict" in node.conditions
    await node.sweep(activity(2), other)
    assert "activity_conflict" in node.conditions, "it is still listed"
    token = await node.journal.begin_sweep()
    await node.journal.take([activity(2)], sweep=token)
    assert "activity_conflict" in node.conditions, "the sweep has not ended"
    await node.journal.end_sweep(token, last=2)
    assert node.conditions.all() == []
    await node.take(other)
    assert "activity_conflict" in node.conditions


async def test_what_does_not_change_the_content_is_no_conflict(node: Node) -> None:
    await node.take(activity(1))
    again = activity(1, created_at="2026-03-16T13:00:00+01:00", author_id=1, expires_at=None, sequence=8, more="new")
    assert await node.take(again) == Taken(known=1)
    assert (await node.row(1)).sequence == 1
    assert node.conditions.all() == []


async def test_what_an_older_agent_could_not_parse_is_the_same_item_for_a_newer_one(node: Node) -> None:
    await node.take(activity(1, expires_at="soon"))
    assert await node.take(activity(1)) == Taken(known=1)


@pytest.mark.parametrize("state", ["finished", "reported"])
async def test_what_is_finished_and_listed_is_reported_again(node: Node, state: str) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    await node.finish(1)
    first = (await node.row(1)).report()
    if state == "reported":
        await node.report(1)
        assert await node.journal.outbox(10) == []
    ready = node.journal.report_ready.subscribe()
    assert await node.take(activity(1)) == Taken(known=1, again=int(state == "reported"))
    assert await node.journal.outbox(10) == [first]
    row = await node.row(1)
    assert (row.reported_at, row.outcome) == (None, None)
    if state == "reported":
        await ready.wait()


async def test_a_started_one_that_is_listed_stays_started(node: Node) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    assert await node.take(activity(1)) == Taken(known=1)
    assert await node.states() == {1: "started"}
    assert await node.next_id() is None


# --- cursor, listing


async def test_the_cursor_is_the_highest_sequence_and_survives(node: Node) -> None:
    await node.take(activity(5))
    await node.take(activity(3))
    assert node.journal.cursor == 5
    assert (await node.reopen()).cursor == 5


async def test_nothing_that_was_received_before_begins_until_it_is_listed_again(node: Node) -> None:
    await node.take(activity(1), activity(2), activity(3, runtime="other"))
    await node.reopen()
    assert await node.next_id() is None
    assert await node.journal.next_foreign(["iggy"]) is None
    ready = node.journal.work_ready.subscribe()
    await node.take(activity(2))
    await ready.wait()
    assert await node.next_id() == 2


# --- withdrawal


async def test_a_row_that_a_complete_sweep_does_not_list_is_withdrawn(node: Node) -> None:
    await node.take(activity(1), activity(2))
    ready = node.journal.report_ready.subscribe()
    assert await node.sweep(activity(2)) == [1]
    await ready.wait()
    row = await node.row(1)
    assert (row.state, row.status, row.changed) == (RowState.FINISHED, ReportStatus.REJECTED, False)
    assert (await reason(node, 1), row.started_at) == (ReasonCode.WITHDRAWN, None)
    assert not await node.start(1)
    assert not await node.finish(1)
    assert await node.next_id() == 2


async def test_an_id_that_is_listed_with_another_content_is_not_withdrawn_but_does_not_begin_by_it(node: Node) -> None:
    await node.take(activity(1))
    await node.reopen()
    assert await node.sweep(activity(1, action="stop")) == []
    assert await node.states() == {1: "received"}
    assert await node.next_id() is None
    assert await node.sweep(activity(1)) == []
    assert await node.next_id() == 1


async def test_a_row_that_came_after_the_sweep_began_is_not_withdrawn_by_it(node: Node) -> None:
    token = await node.journal.begin_sweep()
    await node.take(activity(1))
    assert await node.journal.end_sweep(token, last=1) == []
    assert await node.next_id() == 1


async def test_each_page_of_a_sweep_counts(node: Node) -> None:
    await node.take(activity(1), activity(2), activity(3))
    token = await node.journal.begin_sweep()
    await node.journal.take([activity(1)], sweep=token)
    await node.journal.take([activity(3)], sweep=token)
    assert await node.journal.end_sweep(token, last=3) == [2]


@pytest.mark.parametrize("state", ["started", "finished", "reported"])
async def test_only_what_is_received_is_withdrawn(node: Node, state: str) -> None:
    """Begun while the sweep was under way, so that its token holds it."""
    await node.take(activity(1))
    token = await node.journal.begin_sweep()
    await node.start(1)
    if state != "started":
        await node.finish(1)
    if state == "reported":
        await node.report(1)
    assert await node.journal.end_sweep(token, last=1) == []
    assert await node.states() == {1: state}


async def test_a_withdrawn_one_that_is_listed_again_stays_finished_and_is_reported_again(node: Node) -> None:
    await node.take(activity(1))
    assert await node.sweep() == [1]
    await node.report(1)
    assert await node.take(activity(1)) == Taken(known=1, again=1)
    assert await reason(node, 1) == ReasonCode.WITHDRAWN
    assert await node.next_id() is None
    assert not await node.start(1)


async def test_an_answer_that_could_not_be_journaled_does_not_count_as_listed(node: Node) -> None:
    await node.take(activity(1))
    token = await node.journal.begin_sweep()
    await node.close()
    with pytest.raises(Exception, match="closed"):
        await node.journal.take([activity(1)], sweep=token)
    assert (token.listed, token.highest) == (set(), 0)
