"""An activity's life in the journal: each step durable before what it announces is done."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.errors import JournalError
from agent.journal import Row, RowState, intake
from agent.protocol import Reason, ReasonCode, ReportOutcome, ReportStatus, Verb
from tests.journal.conftest import Node, activity, config

REASON = Reason(code=ReasonCode.NOT_READY, message="cannot start: it was not ready in 60 s", hint="look at its log")


async def record(node: Node, number: int, call: str, **fields: Any) -> None:
    facts: dict[str, Any] = {"decisive": False, "running": None, "incarnation": None, "boot_id": None, "detail": {}}
    await node.journal.record(number, call, **(facts | fields))


async def started(node: Node, number: int, **fields: Any) -> Row:
    await node.sweep(activity(number, **fields))
    assert await node.start(number, Verb.RECONFIGURE)
    return await node.row(number)


# --- states


async def test_each_step_of_a_life_is_on_the_disk(node: Node) -> None:
    begun = datetime.now(UTC)
    await node.sweep(activity(1))
    assert (await node.row(1)).state is RowState.RECEIVED
    assert await node.start(1)
    assert (await node.row(1)).state is RowState.STARTED
    assert await node.finish(1, evidence={"exit_code": 0}, recovered=True)
    finished = await node.row(1)
    await node.report(1)
    await node.reopen()
    row = await node.row(1)
    assert (row.state, row.outcome, row.status) == (RowState.REPORTED, ReportOutcome.RECORDED, ReportStatus.COMPLETED)
    assert (row.changed, row.recovered, row.reason, row.evidence) == (True, True, None, {"exit_code": 0})
    assert row.started_at is not None
    assert row.finished_at is not None
    assert row.reported_at is not None
    assert begun <= row.received_at <= row.started_at <= row.finished_at <= row.reported_at <= datetime.now(UTC)
    assert row.report() == finished.report()


async def test_only_what_is_received_is_started_and_only_once(node: Node) -> None:
    assert not await node.start(1), "it is not there"
    await node.sweep(activity(1))
    assert await node.start(1)
    assert not await node.start(1)
    await node.finish(1)
    assert not await node.start(1)
    await node.report(1)
    assert not await node.start(1)
    assert node.journal.revision == 1


async def test_a_result_is_written_once(node: Node) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    assert await node.finish(1, evidence={"first": True})
    assert not await node.finish(1, status=ReportStatus.REJECTED, reason=REASON)
    await node.report(1)
    assert not await node.finish(1, status=ReportStatus.REJECTED, reason=REASON)
    row = await node.row(1)
    assert (row.status, row.evidence) == (ReportStatus.COMPLETED, {"first": True})
    assert not await node.finish(99)


async def test_an_activity_may_be_refused_before_it_is_started(node: Node) -> None:
    await node.sweep(activity(1))
    assert await node.finish(1, status=ReportStatus.REJECTED, changed=False, reason=REASON)
    report = (await node.row(1)).report()
    assert (report.status, report.started_at, report.reason) == (ReportStatus.REJECTED, None, REASON)
    assert await node.next_id() is None


async def test_a_report_never_begins_after_its_end_also_when_the_clock_was_set_back(node: Node) -> None:
    await node.carry_out(1)
    await node.close()
    node.edit("UPDATE activities SET started_at = '2999-01-01T00:00:00.000000+00:00' WHERE id = 1")
    await node.open()
    report = (await node.row(1)).report()
    assert report.started_at == report.finished_at


async def test_what_is_not_finished_has_no_report(node: Node) -> None:
    row = await started(node, 1)
    with pytest.raises(ValueError, match="activity 1 is not finished"):
        row.report()


async def test_evidence_and_reason_of_any_text_can_be_read_and_sent(node: Node) -> None:
    """A log line or a file name may hold bytes that are no characters; Python carries them as lone surrogates."""
    await started(node, 1)
    await node.finish(
        1,
        status=ReportStatus.REJECTED,
        reason=Reason(code="start_failed", message="cannot read \udcff", hint="see \udcff"),
        evidence={"log": ["caf\u00e9 \udcff\0", "\U0001f600"], "at": datetime(2026, 1, 1, tzinfo=UTC)},
    )
    (report,) = await node.journal.outbox(10)
    assert report.evidence == {"log": ["caf\u00e9 ?\0", "\U0001f600"], "at": "2026-01-01 00:00:00+00:00"}
    assert report.reason == Reason(code="start_failed", message="cannot read ?", hint="see ?")
    assert report.model_dump_json()


# --- the revision


async def test_the_revision_grows_with_each_started_write_and_with_nothing_else(node: Node) -> None:
    await node.sweep(activity(1), activity(2), last=9)
    await node.journal.know_runtime("iggy", current=None)
    assert node.journal.revision == 0
    written = node.journal.started_written.subscribe()
    await node.start(1)
    assert node.journal.revision == 1
    await asyncio.wait_for(written.wait(), 5)
    await record(node, 1, "start")
    await node.journal.go_back(1, superseded=False, reason=REASON, evidence={})
    await node.finish(1)
    await node.report(1)
    await node.take(activity(1), activity(3))
    await node.journal.prune(days=0, count=0)
    assert node.journal.revision == 1
    await node.start(2)
    assert (await node.reopen()).revision == 2


async def test_a_start_that_was_refused_wakes_nobody(node: Node) -> None:
    written = node.journal.started_written.subscribe()
    assert not await node.start(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(written.wait(), 0.01)


# --- calls


async def test_each_call_is_journaled_with_a_and_its_boot(node: Node) -> None:
    await started(node, 1)
    await record(node, 1, "stop", detail={"unit": "iggy.service"})
    await record(node, 1, "start", decisive=True, running=True, incarnation="inc-1", boot_id="boot-1")
    await record(node, 1, "start", decisive=True, running=False, incarnation=None, boot_id="boot-2")
    await node.reopen()
    (row,) = await node.journal.unfinished()
    assert [(call.call, call.decisive, call.running, call.incarnation, call.boot_id) for call in row.calls] == [
        ("stop", False, None, None, None),
        ("start", True, True, "inc-1", "boot-1"),
        ("start", True, False, None, "boot-2"),
    ]
    assert row.calls[0].detail == {"unit": "iggy.service"}
    assert row.started_at is not None
    assert row.started_at <= row.calls[0].at <= row.calls[1].at
    assert row.decisive_call() == row.calls[2]


async def test_without_a_decisive_call_there_is_none(node: Node) -> None:
    row = await started(node, 1)
    assert row.decisive_call() is None
    await record(node, 1, "stop")
    assert (await node.row(1)).decisive_call() is None


async def test_the_calls_of_going_back_are_a_direction_of_their_own(node: Node) -> None:
    await started(node, 1, action="reconfigure:4", config=config(4))
    await record(node, 1, "switch")
    await record(node, 1, "restart", decisive=True, running=True, incarnation="inc-1", boot_id="boot-1")
    forth = await node.row(1)
    assert [call.call for call in forth.phase()] == ["switch", "restart"]
    assert forth.going_back is None
    await node.journal.go_back(1, superseded=True, reason=REASON, evidence={"seen": "\udcff"})
    decided = await node.row(1)
    assert decided.phase() == ()
    assert decided.decisive_call() is None, "A of the other direction must not be compared with"
    await record(node, 1, "switch")
    await node.reopen()
    back = await node.row(1)
    assert [(call.call, call.going_back) for call in back.calls] == [
        ("switch", False),
        ("restart", False),
        ("switch", True),
    ]
    assert back.phase() == back.calls[2:]
    assert back.going_back is not None
    assert (back.going_back.superseded, back.going_back.reason, back.going_back.evidence) == (
        True,
        REASON,
        {"seen": "?"},
    )


@pytest.mark.parametrize("state", ["unknown", "received", "finished"])
async def test_a_step_of_what_is_not_started_is_refused_so_that_it_is_not_made(node: Node, state: str) -> None:
    if state != "unknown":
        await node.sweep(activity(1))
    if state == "finished":
        await node.finish(1)
    with pytest.raises(JournalError, match="cannot journal a step: activity 1 is not started"):
        await record(node, 1, "start")
    with pytest.raises(JournalError, match="cannot journal a step: activity 1 is not started"):
        await node.journal.go_back(1, superseded=False, reason=REASON, evidence={})
    assert "journal_unwritable" not in node.conditions, "the disk is not at fault"


async def test_a_started_one_of_an_old_copy_goes_on_only_when_its_decisive_call_is_in_it(node: Node) -> None:
    """Without that call the copy cannot know whether it was made since; with it, recovery compares with A."""
    await node.sweep(activity(1), activity(2))
    for number in (1, 2):
        await node.start(number)
        await record(node, number, "stop")
    await record(node, 2, "start", decisive=True, running=False, boot_id="boot-1")
    await node.journal.check_revision(9)
    assert [(row.id, row.uncertain) for row in await node.journal.unfinished()] == [(1, True), (2, False)]
    with pytest.raises(JournalError, match="cannot journal a step"):
        await record(node, 1, "start", decisive=True)
    await record(node, 2, "start", decisive=True)


async def test_of_an_old_copy_what_was_begun_in_an_earlier_boot_does_not_go_on(node: Node) -> None:
    """A says nothing about the runs of this boot; a call that was made again in it does."""
    await node.sweep(activity(1), activity(2))
    for number in (1, 2):
        await node.start(number)
        await record(node, number, "start", decisive=True, running=False, boot_id="boot-1")
    node.boot_id = "boot-2"
    await node.reopen()
    await record(node, 2, "start", decisive=True, running=False, boot_id="boot-2")
    await node.journal.check_revision(9)
    assert [(row.id, row.uncertain) for row in await node.journal.unfinished()] == [(1, True), (2, False)]
    with pytest.raises(JournalError, match="cannot journal a step"):
        await record(node, 1, "start", decisive=True)


async def test_an_old_copy_does_not_know_which_release_was_committed_since(node: Node) -> None:
    await node.journal.know_runtime("iggy", current="1-1")
    await node.journal.check_revision(9)
    assert await node.journal.committed("iggy") is None
    await node.journal.know_runtime("iggy", current="2-1")
    assert await node.journal.committed("iggy") == "2-1"


@pytest.mark.parametrize("revision", [0, 9])
async def test_it_is_known_once_the_supervisor_has_told_how_far_the_journal_had_come(node: Node, revision: int) -> None:
    assert not node.journal.compared.is_set()
    await node.journal.check_revision(revision)
    assert node.journal.compared.is_set()


# --- runtimes


async def test_a_runtimes_release_is_committed_with_the_result(node: Node) -> None:
    assert await node.journal.committed("iggy") is None
    await node.journal.know_runtime("iggy", current="1-1")
    await node.journal.know_runtime("iggy", current="9-9")
    await node.journal.know_runtime("connectors", current=None)
    assert (await node.journal.committed("iggy"), await node.journal.committed("connectors")) == ("1-1", None)
    await started(node, 1)
    await node.finish(1)
    assert await node.journal.committed("iggy") == "1-1", "kept"
    await started(node, 2)
    await node.finish(2, committed="2-1")
    assert not await node.finish(2, committed="3-1")
    await node.reopen()
    assert (await node.journal.committed("iggy"), await node.journal.committed("connectors")) == ("2-1", None)
    await started(node, 3)
    await node.finish(3, committed=None)
    assert await node.journal.committed("iggy") is None


async def test_the_last_verb_is_that_of_the_last_start_stop_or_restart(node: Node) -> None:
    assert await node.journal.last_verb("iggy") is None
    await node.journal.know_runtime("iggy", current=None)
    await node.journal.know_runtime("connectors", current=None)
    assert await node.journal.last_verb("iggy") is None
    await node.sweep(*(activity(number) for number in range(1, 5)))
    for number, verb in enumerate((Verb.START, Verb.STOP, Verb.RECONFIGURE), start=1):
        assert await node.start(number, verb)
    assert not await node.start(1, Verb.RESTART)
    await node.reopen()
    assert await node.journal.last_verb("iggy") is Verb.STOP
    assert await node.journal.last_verb("connectors") is None


# --- what lanes ask for


async def test_a_lane_gets_its_lowest_sequence(node: Node) -> None:
    await node.sweep(
        activity(9, sequence=2), activity(1, sequence=3), activity(2, sequence=1, runtime="connectors"), activity(5)
    )
    assert await node.next_id() == 9
    assert await node.next_id("connectors") == 2
    assert await node.next_id("other") is None
    await node.start(9)
    assert await node.next_id() == 1
    assert [row.id for row in await node.journal.queue("iggy")] == [1, 5]


async def test_what_belongs_to_no_lane_is_found_also_while_the_journal_is_lost(node: Node) -> None:
    """It is only refused, so nothing has to be known of it."""
    await node.reopen(node.path.unlink)
    await node.take(activity(1), activity(2, runtime="redis"), activity(3, runtime="connectors"))
    foreign = await node.journal.next_foreign(["iggy", "connectors"])
    assert foreign is not None
    assert foreign.id == 2
    everything = await node.journal.next_foreign([])
    assert everything is not None
    assert everything.id == 1
    assert await node.journal.queue("iggy") == []


async def test_the_next_of_a_thousand_reads_the_body_of_one(node: Node) -> None:
    await node.sweep(*(activity(number) for number in range(1, 1001)))
    unreadable = "UPDATE activities SET body = 'unreadable' WHERE id > 1"
    await node.journal._database.write(lambda connection: connection.execute(unreadable), lambda _: None)
    statements: list[str] = []
    database = node.journal._database
    await database.read(lambda connection: connection.set_trace_callback(statements.append))
    assert await node.next_id() == 1
    await database.read(lambda connection: connection.set_trace_callback(None))
    plan = await database.read(
        lambda connection: connection.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall()[0]["detail"]
    )
    assert plan == "SEARCH activities USING COVERING INDEX activities_by_lane (state=? AND runtime=?)"


async def test_what_is_over_is_not_remembered_as_listed(node: Node) -> None:
    """An agent that runs for a year must not grow with each activity."""
    await node.sweep(*(activity(number) for number in range(1, 5)), activity(5, runtime=None))
    assert node.journal._listed == dict.fromkeys((1, 2, 3, 4), "iggy")
    await node.finish(1)
    await node.start(2)
    await node.finish(2)
    await node.sweep(activity(1), activity(4))
    assert node.journal._listed == {4: "iggy"}


# --- reports


async def test_reports_come_oldest_first_until_they_are_answered(node: Node) -> None:
    await node.sweep(activity(1), activity(2), activity(3))
    ready = node.journal.report_ready.subscribe()
    for number in (3, 1, 2):
        await node.finish(number)
    await asyncio.wait_for(ready.wait(), 5)
    assert [report.activity_id for report in await node.journal.outbox(2)] == [3, 1]
    await node.journal.reported({3: ReportOutcome.CONFLICT, 99: ReportOutcome.UNKNOWN})
    assert [report.activity_id for report in await node.journal.outbox(9)] == [1, 2]
    assert (await node.row(3)).outcome is ReportOutcome.CONFLICT


async def test_an_answer_counts_only_for_what_is_finished(node: Node) -> None:
    await node.sweep(activity(1), activity(2))
    await node.start(2)
    await node.report(1, 2)
    assert await node.states() == {1: "received", 2: "started"}


async def test_the_counts_are_of_what_is_on_its_way(node: Node) -> None:
    await node.sweep(*(activity(number) for number in range(1, 6)))
    await node.start(1)
    await node.finish(2)
    await node.finish(3)
    await node.report(3)
    counts = await node.journal.counts()
    assert (counts.waiting, counts.unreported) == (3, 1)


async def test_the_newest_are_listed_first(node: Node) -> None:
    await node.sweep(activity(1, sequence=5), activity(2), activity(3))
    assert [row.id for row in await node.journal.recent(2)] == [1, 3]
    assert await node.journal.get(99) is None


# --- retention


async def test_only_reported_ones_are_pruned_the_oldest_beyond_the_count(node: Node) -> None:
    await node.carry_out(1, 2, 3)
    await node.sweep(*(activity(number) for number in range(4, 7)))
    await node.start(4)
    await node.finish(5)
    assert await node.journal.prune(days=30, count=1) == 2
    assert await node.states() == {3: "reported", 4: "started", 5: "finished", 6: "received"}
    assert await node.journal.prune(days=30, count=1) == 0


async def test_reported_ones_are_pruned_by_age_with_their_calls(node: Node) -> None:
    await node.sweep(activity(1), activity(2))
    for number in (1, 2):
        await node.start(number)
        await record(node, number, "start")
        await node.finish(number)
        await node.report(number)
    old = (datetime.now(UTC) - timedelta(days=31)).isoformat(timespec="microseconds")
    await node.reopen(lambda: node.edit("UPDATE activities SET reported_at = ? WHERE id = 1", old))
    assert await node.journal.prune(days=30, count=10_000) == 1
    assert await node.states() == {2: "reported"}
    await node.close()
    assert node.edit("SELECT activity_id FROM calls") == [(2,)]
    assert node.edit("SELECT pruned_through FROM journal") == [(1,)]


async def test_the_highest_that_was_pruned_never_falls(node: Node) -> None:
    await node.carry_out(9)
    await node.journal.prune(days=0, count=0)
    await node.sweep(activity(1))
    await node.finish(1)
    await node.report(1)
    await node.journal.prune(days=0, count=0)
    await node.close()
    assert node.edit("SELECT pruned_through FROM journal") == [(9,)]


# --- when it cannot be written


async def test_a_journal_that_cannot_be_written_says_so_until_it_can(node: Node) -> None:
    """SQLite refuses as on a disk that may only be read: sqlite.org/pragma.html#pragma_query_only."""
    database = node.journal._database
    await node.sweep(activity(1))
    await database.read(lambda connection: connection.execute("PRAGMA query_only = 1").fetchall())
    with pytest.raises(JournalError, match="readonly") as caught:
        await node.take(activity(2))
    assert caught.value.hint == "look at the disk: is it full, read-only or failing?"
    assert "journal_unwritable" in node.conditions
    assert node.conditions.all()[0].message == caught.value.message
    assert node.journal.cursor == 1, "nothing is acknowledged that is not on the disk"
    assert await node.next_id() == 1, "what can be read is read"
    await database.read(lambda connection: connection.execute("PRAGMA query_only = 0").fetchall())
    await node.take(activity(2))
    assert "journal_unwritable" not in node.conditions
    assert node.journal.cursor == 2


async def test_a_closed_journal_refuses_everything(node: Node) -> None:
    await node.sweep(activity(7))
    await node.close()
    await node.close()
    with pytest.raises(JournalError, match="it is closed"):
        await node.take(activity(1))
    with pytest.raises(JournalError, match="it is closed"):
        await node.journal.next("iggy")


async def test_what_a_cancelled_caller_wrote_is_announced_all_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an activity would be on the disk, and no lane would know until the next sweep."""
    begun, go_on = threading.Event(), threading.Event()
    take = intake.take

    def slow(*arguments: Any, **more: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return take(*arguments, **more)

    monkeypatch.setattr(intake, "take", slow)
    work = node.journal.work_ready.subscribe()
    caller = asyncio.create_task(node.take(activity(1)))
    await asyncio.to_thread(begun.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert node.journal.cursor == 0
    go_on.set()
    await asyncio.wait_for(work.wait(), 10)
    assert (node.journal.cursor, await node.next_id()) == (1, 1)
