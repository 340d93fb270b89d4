"""What a lost journal and an old copy of one cannot know."""

import pytest

from agent.protocol import ReasonCode
from tests.journal.conftest import Node, activity, reason

# --- a lost journal


@pytest.fixture
async def lost(node: Node) -> Node:
    """A node whose journal was deleted while its agent was down."""
    await node.reopen(node.path.unlink)
    assert node.journal.lost
    return node


async def test_nothing_begins_while_the_journal_is_lost(lost: Node) -> None:
    assert "journal_lost" in lost.conditions
    await lost.take(activity(1))
    assert await lost.next_id() is None
    assert not await lost.start(1)
    await lost.sweep(activity(1), last=1)
    assert "journal_lost" not in lost.conditions
    assert await lost.next_id() == 1


async def test_whatever_a_lost_journal_holds_is_not_started(node: Node) -> None:
    await node.take(activity(1))
    await node.reopen(lambda: node.edit("UPDATE journal SET lost = 1"))
    assert not (await node.row(1)).uncertain
    assert not await node.start(1)


async def test_what_the_first_sweep_lists_is_never_carried_out(lost: Node) -> None:
    await lost.sweep(activity(1), activity(2), last=2)
    row = await lost.journal.next("iggy")
    assert row is not None
    assert (row.id, row.uncertain) == (1, True)
    assert not await lost.start(1)
    assert await lost.finish(1)
    assert await lost.next_id() == 2


async def test_what_a_poll_lists_before_the_first_sweep_ends_counts_as_listed_by_it(lost: Node) -> None:
    token = await lost.journal.begin_sweep()
    await lost.take(activity(9))
    await lost.journal.end_sweep(token, last=3)
    assert (await lost.row(9)).uncertain
    await lost.take(activity(8))
    assert not (await lost.row(8)).uncertain, "8 is above the mark"


@pytest.mark.parametrize(("last", "listed"), [(5, 2), (2, 5), (5, 5)])
async def test_the_mark_is_the_higher_of_last_and_the_sweep(lost: Node, last: int, listed: int) -> None:
    await lost.sweep(activity(listed), last=last)
    await lost.take(activity(1), activity(4, id=104), activity(5, id=105), activity(6))
    assert {number: (await lost.row(number)).uncertain for number in (1, 104, 105, 6)} == {
        1: True,
        104: True,
        105: True,
        6: False,
    }


async def test_that_it_was_lost_and_its_mark_survive(lost: Node) -> None:
    await lost.reopen()
    assert [condition.code for condition in lost.conditions.all()] == ["journal_lost"]
    await lost.sweep(last=4)
    assert not (await lost.reopen()).lost
    await lost.take(activity(4), activity(5))
    assert [(await lost.row(number)).uncertain for number in (4, 5)] == [True, False]


async def test_the_mark_never_falls(lost: Node) -> None:
    await lost.sweep(last=9)
    await lost.journal.check_revision(1)
    await lost.sweep(last=2)
    await lost.take(activity(9))
    assert (await lost.row(9)).uncertain


async def test_a_sweep_of_a_journal_that_is_not_lost_sets_no_mark(node: Node) -> None:
    await node.sweep(activity(5), last=9)
    await node.take(activity(7))
    assert not (await node.row(7)).uncertain


async def test_what_is_uncertain_and_not_listed_any_more_is_not_called_without_effect(lost: Node) -> None:
    await lost.take(activity(1))
    await lost.reopen()
    assert await lost.sweep() == [1]
    assert await reason(lost, 1) == ReasonCode.OUTCOME_UNKNOWN


async def test_what_is_at_or_below_the_highest_that_was_pruned_is_uncertain(node: Node) -> None:
    await node.carry_out(2, 4)
    assert await node.journal.prune(days=0, count=0) == 2
    await node.take(activity(1), activity(4), activity(5))
    assert {n: (await node.row(n)).uncertain for n in (1, 4, 5)} == {1: True, 4: True, 5: False}


async def test_what_was_here_before_the_pruning_stays_certain(node: Node) -> None:
    await node.sweep(activity(1), activity(2))
    await node.start(2)
    await node.finish(2)
    await node.report(2)
    assert await node.journal.prune(days=0, count=0) == 1
    await node.take(activity(1))
    assert not (await node.row(1)).uncertain
    assert await node.start(1)


# --- an old copy


async def put_back(node: Node) -> None:
    """A copy is made with 1 received; 1 is carried out; the copy is put back."""
    await node.take(activity(1))
    await node.close()
    copy = node.copy()
    await node.open()
    await node.carry_out(1)
    assert node.journal.revision == 1
    await node.reopen(lambda: copy.replace(node.path))
    assert (node.journal.lost, node.journal.revision) == (False, 0)


async def test_a_revision_that_was_sent_before_makes_an_old_copy_a_lost_journal(node: Node) -> None:
    await put_back(node)
    assert await node.journal.check_revision(1)
    assert (node.journal.lost, node.journal.revision) == (True, 1)
    assert "journal_lost" in node.conditions
    assert not await node.journal.check_revision(1)
    await node.reopen()
    assert (node.journal.lost, node.journal.revision) == (True, 1)


async def test_a_revision_that_is_not_higher_changes_nothing(node: Node) -> None:
    await node.carry_out(1)
    assert not await node.journal.check_revision(1)
    assert not await node.journal.check_revision(0)
    assert not node.journal.lost


async def test_what_an_old_copy_holds_as_received_is_not_carried_out_again(node: Node) -> None:
    """The Supervisor forgot the report, and lists it again."""
    await put_back(node)
    await node.journal.check_revision(1)
    await node.sweep(activity(1), last=1)
    row = await node.journal.next("iggy")
    assert row is not None
    assert row.uncertain
    assert not await node.start(1)


async def test_what_an_old_copy_holds_and_nobody_lists_gets_an_unknown_outcome(node: Node) -> None:
    await put_back(node)
    await node.journal.check_revision(1)
    assert await node.sweep(last=1) == [1]
    assert await reason(node, 1) == ReasonCode.OUTCOME_UNKNOWN


async def test_a_sweep_that_began_before_the_journal_turned_out_old_frees_nothing(node: Node) -> None:
    """The first page is journaled, then a heartbeat's answer shows the revision, and the sweep goes on regardless."""
    await put_back(node)
    token = await node.journal.begin_sweep()
    await node.journal.take([activity(1)], sweep=token)
    assert await node.next_id() == 1
    await node.journal.check_revision(1)
    assert not await node.start(1)
    await node.journal.take([activity(2)], sweep=token)
    await node.journal.end_sweep(token, last=2)
    for number in (1, 2):
        assert (await node.row(number)).uncertain
        assert not await node.start(number)


async def test_an_old_copy_goes_on_from_the_revision_that_was_sent(node: Node) -> None:
    await put_back(node)
    await node.journal.check_revision(7)
    await node.sweep(last=1)
    await node.sweep(activity(2))
    assert await node.start(2)
    assert node.journal.revision == 8


async def test_a_started_one_stays_the_work_of_recovery_when_the_journal_turns_out_old(node: Node) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    await node.journal.check_revision(9)
    assert await node.sweep(last=1) == []
    assert [row.id for row in await node.journal.unfinished()] == [1]


@pytest.mark.parametrize(("change", "uncertain"), [("mark = 1", [True, False]), ("lost = 1", [True, True])])
async def test_what_is_known_is_judged_again_when_it_is_listed(node: Node, change: str, uncertain: list[bool]) -> None:
    """Whatever made the journal doubtful, each listing is judged by what it knows then."""
    await node.take(activity(1), activity(2))
    await node.reopen(lambda: node.edit(f"UPDATE journal SET {change}"))
    await node.take(activity(1), activity(2))
    assert [(await node.row(number)).uncertain for number in (1, 2)] == uncertain
