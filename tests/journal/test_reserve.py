"""A full disk: what is under way can be finished, what is new is refused before any effect, and it heals by itself."""

import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import JournalDamagedError, JournalError, JournalFullError
from agent.journal import Journal, reserve
from agent.protocol import Reason, ReasonCode, ReportStatus, Verb
from tests.journal.conftest import Node, activity, codes, config
from tests.small_disk import SmallDisk

LOG_TAIL = {"log_tail": ["\x01" * 16 * 1024]}
"""Its JSON takes six times as much: the most that 16 KiB of a log can come to."""
REASON = Reason(code=ReasonCode.NOT_READY, message="cannot get ready", hint="look at its log")


@pytest.fixture
async def small(small_disk: SmallDisk) -> AsyncIterator[Node]:
    """A node on a small disk, with activity 1 under way and 2 and 3 waiting."""
    node = Node(small_disk.folder, await Journal.create(small_disk.folder))
    await node.open()
    await node.sweep(*(activity(number) for number in (1, 2, 3)))
    await node.start(1)
    yield node
    await node.close()


async def call(node: Node, number: int, name: str = "start") -> None:
    await node.journal.record(
        number, name, decisive=True, running=True, incarnation="some", boot_id="b" * 36, detail={"to": "7-1"}
    )


async def finish_everything(node: Node, number: int) -> None:
    """Write all that the longest activity writes: a reconfigure that goes back, and fails at that too."""
    for _ in range(6):
        await call(node, number)
    await node.journal.go_back(number, superseded=False, reason=REASON, evidence=LOG_TAIL)
    for _ in range(6):
        await call(node, number)
    evidence = {**LOG_TAIL, "rollback": LOG_TAIL}
    await node.finish(number, status=ReportStatus.REJECTED, reason=REASON, evidence=evidence, committed="7-1")


# --- the disk gets full


async def test_what_is_under_way_is_finished_whole(small: Node, small_disk: SmallDisk) -> None:
    small_disk.fill()
    await finish_everything(small, 1)
    assert codes(small) == []
    (report,) = await small.journal.outbox(10)
    assert report.evidence["rollback"] == LOG_TAIL
    await small.report(1)
    assert (await small.row(1)).state == "reported"


async def test_what_waits_is_refused_before_any_effect_and_can_be_rejected(small: Node, small_disk: SmallDisk) -> None:
    small_disk.fill()
    with pytest.raises(JournalFullError, match="the disk of the agent's state folder is full"):
        await small.start(2)
    assert (codes(small), small.journal.revision) == (["disk_full"], 1)
    assert await small.finish(2, status=ReportStatus.REJECTED, reason=REASON)
    assert (await small.row(2)).started_at is None


async def test_what_comes_is_rejected_as_it_is_taken_in(small: Node, small_disk: SmallDisk) -> None:
    small_disk.fill()
    ready = small.journal.report_ready.subscribe()
    taken = await small.take(activity(4), activity(5, action="reconfigure:1", config=config(1, size=90_000)))
    assert (taken.new, taken.refused, taken.invalid) == (2, 2, 0)
    await ready.wait()
    reports = await small.journal.outbox(10)
    assert [(report.activity_id, report.reason and report.reason.code) for report in reports] == [
        (4, ReasonCode.NO_SPACE),
        (5, ReasonCode.NO_SPACE),
    ]
    assert [report.started_at for report in reports] == [None, None]
    assert codes(small) == ["disk_full"]
    assert [row.id for row in await small.journal.queue("iggy")] == [2, 3]


async def test_what_cannot_be_read_is_refused_for_that(small: Node, small_disk: SmallDisk) -> None:
    small_disk.fill()
    taken = await small.take({"id": 4, "sequence": 4})
    assert (taken.invalid, taken.refused) == (1, 0)
    reason = (await small.row(4)).reason
    assert reason is not None
    assert reason.code == ReasonCode.INVALID_ACTIVITY


async def test_what_may_have_been_done_is_not_said_to_be_without_effect(small_disk: SmallDisk) -> None:
    """A lost journal's: it waits, without its content, until it was looked at."""
    node = Node(small_disk.folder, await Journal.create(small_disk.folder))
    node.edit("UPDATE journal SET lost = 1")
    await node.open()
    small_disk.fill()
    item = activity(1, action="reconfigure:1", config=config(1, size=90_000))
    await node.sweep(item, last=1)
    row = await node.journal.next("iggy")
    assert row is not None
    assert (row.id, row.uncertain, row.activity) == (1, True, None)
    assert await node.finish(1, status=ReportStatus.REJECTED, reason=REASON)
    await node.close()


async def test_hundreds_are_refused_and_the_result_still_finds_its_place(small: Node, small_disk: SmallDisk) -> None:
    """What is reported makes room in the log, again and again; the free pages of the file take it up."""
    small_disk.fill()
    for number in range(10, 310):
        assert (await small.take(activity(number))).refused == 1
        await small.report(number)
    await finish_everything(small, 1)
    assert codes(small) == ["disk_full"]


async def refuse_until_full(node: Node, first: int = 1000) -> int:
    """Take in as many as it takes; returns how many were refused."""
    for number in range(first, first + 20_000):
        try:
            await node.take(activity(number))
        except JournalFullError:
            return number - first
    raise AssertionError


async def test_past_that_they_are_left_processing_and_the_result_still_finds_its_place(
    small: Node, small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    small_disk.fill()
    refused = await refuse_until_full(small)
    assert refused > 500
    assert codes(small) == ["disk_full", "journal_unwritable"]
    assert "belongs to what is under way" in small.conditions.all()[1].message
    left_out = activity(100_000)
    for write in (small.take(left_out), small.report(1000), small.finish(2), small.journal.prune(days=0, count=0)):
        with pytest.raises(JournalFullError):
            await write
    assert await small.journal.get(100_000) is None
    assert capsys.readouterr().out.count("condition.began") == 2, "said once, not with each try"
    await finish_everything(small, 1)
    small_disk.free()
    await small.journal.mend_reserve()
    assert (await small.take(left_out)).new == 1
    assert codes(small) == []
    assert await small.start(100_000)


async def test_it_ends_by_itself_when_there_is_room(small: Node, small_disk: SmallDisk) -> None:
    small_disk.fill()
    await small.journal.mend_reserve()
    assert codes(small) == ["disk_full"], "shown before anything was dispatched"
    small_disk.free()
    await small.journal.mend_reserve()
    assert codes(small) == []
    assert await small.start(2)


async def test_a_config_that_finds_no_room_is_refused_and_leaves_none_of_it(small: Node, small_disk: SmallDisk) -> None:
    """There is room for small files, and less than the log would have to grow by."""
    small_disk.fill()
    os.truncate(small_disk.folder / "filling", (small_disk.folder / "filling").stat().st_size - 2 * reserve.ROOM)
    many = [activity(n, action="reconfigure:1", config=config(1, size=90_000)) for n in range(10, 110)]
    assert (await small.take(*many)).refused == 100
    assert await small.journal.next("iggy") is not None
    await finish_everything(small, 1)


async def test_evidence_that_finds_no_room_is_left_out_and_the_result_is_not(
    small: Node, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_disk.fill()
    evidence = {"log_tail": ["x" * reserve.SIZE], "outcome": "applied"}
    assert await small.finish(1, evidence=evidence)
    row = await small.row(1)
    assert (row.status, row.evidence) == ("completed", {"log_tail": "left out: disk full", "outcome": "applied"})


# --- how much it takes


@pytest.mark.parametrize("size", [0, 90_000, 400_000])
async def test_the_longest_activity_takes_no_more_than_is_promised_for_it(
    node: Node, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "CYCLE", 2**40)  # as where the file cannot grow: the log is never begun again
    kept = node.journal._database.reserve
    body = config(1, size=90_000)
    body["files"] = [{"path": f"{number}.toml", "content": "y" * 90_000} for number in range(size // 90_000)]
    await node.sweep(activity(1, action="reconfigure:1", config=body if size else None))
    promised = await node.journal._database.read(lambda connection: kept._promised(connection, 1))
    before = await node.journal._database.read(lambda _: kept._used())
    await node.start(1, Verb.RECONFIGURE)
    await finish_everything(node, 1)
    used = await node.journal._database.read(lambda _: kept._used()) - before
    print(f"{used:,} of {promised:,} bytes")
    assert promised / 20 < used < promised


# --- restarts while it is full


async def leave(node: Node, by: str) -> None:
    """End the agent: in order, or as kill -9 leaves the files."""
    if by == "closing":
        await node.close()
        return
    killed = {path.name: path.read_bytes() for path in node.folder.glob("journal.*")}
    inode = (node.folder / "journal.reserve").stat().st_ino
    connection = node.journal._database._connection
    assert connection is not None
    # What SQLite does not get to remove stays: a name that it does not know keeps its log from being wiped.
    os.link(node.folder / "journal.db-wal", node.folder / "kept-wal")
    os.link(node.folder / "journal.db-shm", node.folder / "kept-shm")
    await node.close()
    with (node.folder / "journal.db").open("r+b") as file:
        file.write(killed["journal.db"])
    (node.folder / "kept-wal").rename(node.folder / "journal.db-wal")
    (node.folder / "kept-shm").rename(node.folder / "journal.db-shm")
    assert (node.folder / "journal.reserve").stat().st_ino == inode


@pytest.mark.parametrize("by", ["closing", "kill -9"])
async def test_an_agent_that_starts_on_a_full_disk_finishes_what_was_under_way(
    small: Node, small_disk: SmallDisk, by: str
) -> None:
    small_disk.fill()
    await call(small, 1)
    await leave(small, by)
    small_disk.fill()  # what SQLite gave back is gone
    await small.open()
    assert codes(small) == ["disk_full"]
    assert await small.states() == {1: "started", 2: "received", 3: "received"}
    assert [journaled.call for journaled in (await small.row(1)).calls] == ["start"]
    await finish_everything(small, 1)
    await small.sweep(activity(2), activity(3))
    with pytest.raises(JournalFullError):
        await small.start(2)


async def test_without_its_reserve_it_finishes_as_soon_as_there_is_room(small: Node, small_disk: SmallDisk) -> None:
    await small.close()
    (small.folder / "journal.reserve").unlink()
    small_disk.fill()
    await small.open()
    with pytest.raises(JournalError):
        await finish_everything(small, 1)
    assert (await small.row(1)).state == "started"
    assert "journal_unwritable" in codes(small)
    small_disk.free()
    await small.journal.mend_reserve()
    assert await small.finish(1)
    assert codes(small) == []


# --- the two names of the log


def same(node: Node) -> bool:
    return (node.folder / "journal.reserve").samefile(node.folder / "journal.db-wal")


async def test_the_log_keeps_its_blocks_and_is_wiped_when_the_agent_ends(node: Node) -> None:
    assert same(node)
    await node.sweep(activity(1, action="reconfigure:1", config=config(1, size=5000)))
    kept = node.folder / "journal.reserve"
    assert b"x" * 500 in kept.read_bytes()
    await node.close()
    assert not (node.folder / "journal.db-wal").exists()
    content = kept.read_bytes()
    assert len(content) == reserve.SIZE == kept.stat().st_blocks * 512
    assert not any(content)
    await node.open()
    assert same(node)
    assert await node.states() == {1: "received"}


async def test_a_log_that_was_put_back_gets_the_name(full: Node) -> None:
    full.leave_as_if_killed("UPDATE journal SET cursor = 77")
    await full.open()
    assert full.journal.cursor == 77
    assert same(full)


async def test_a_reserve_that_was_not_wiped_is_not_read_as_a_log(full: Node) -> None:
    """The agent was killed between the two; these frames belong to a log that is over."""
    full.leave_as_if_killed("UPDATE journal SET cursor = 77")
    (full.folder / "journal.reserve").unlink()
    (full.folder / "journal.db-wal").rename(full.folder / "journal.reserve")
    await full.open()
    assert full.journal.cursor == 4


async def test_a_damaged_log_that_was_set_aside_stays_as_it_is(full: Node) -> None:
    full.leave_as_if_killed("UPDATE journal SET journal_id = 'another'")
    (full.folder / "journal.reserve").unlink()
    (full.folder / "journal.reserve").hardlink_to(full.folder / "journal.db-wal")
    content = (full.folder / "journal.db-wal").read_bytes()
    await full.open()
    (aside,) = full.set_aside()
    assert Path(f"{aside}-wal").read_bytes() == content  # noqa: ASYNC240 - a test may look
    assert same(full)


async def test_a_log_that_one_large_answer_made_long_is_short_again_after_a_restart(node: Node) -> None:
    many = [activity(n, action="reconfigure:1", config=config(1, size=90_000)) for n in range(1, 101)]
    await node.sweep(*many)
    assert (node.folder / "journal.reserve").stat().st_size > 2 * reserve.SIZE
    await node.reopen()
    assert (node.folder / "journal.reserve").stat().st_size == reserve.SIZE


# --- other file systems


def refuse(number: int) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refused


async def test_where_blocks_cannot_be_allocated_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP))
    node = Node(tmp_path, await Journal.create(tmp_path))
    await node.open()
    assert (node.folder / "journal.reserve").stat().st_blocks * 512 >= reserve.AHEAD
    await node.carry_out(1)
    await node.close()


async def test_where_there_are_no_hard_links_it_lasts_until_the_agent_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", refuse(errno.EPERM))
    node = Node(tmp_path, await Journal.create(tmp_path))
    await node.open()
    assert (node.folder / "journal.db-wal").stat().st_size >= reserve.AHEAD
    await node.carry_out(1)
    await node.close()
    assert not (tmp_path / "journal.reserve").exists()


async def test_a_share_that_is_used_up_is_a_full_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.sweep(activity(1))
    monkeypatch.setattr(node.journal._database.reserve, "_try_at", 0.0)  # a minute later
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EDQUOT))
    await node.journal.mend_reserve()
    assert codes(node) == ["disk_full"]
    with pytest.raises(JournalFullError):
        await node.start(1)
    assert (await node.take(activity(2))).refused == 1
    monkeypatch.undo()
    await node.reopen()
    await node.sweep(activity(1))
    assert await node.start(1)


async def test_a_disk_that_cannot_be_written_at_all_is_not_said_to_be_full(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.journal._database.reserve, "_try_at", 0.0)  # a minute later
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EROFS))
    with pytest.raises(JournalError, match="Read-only") as caught:
        await node.journal.mend_reserve()
    assert not isinstance(caught.value, JournalFullError)
    assert codes(node) == ["journal_unwritable"]


async def test_what_is_committed_stays_so_when_the_reserve_cannot_be_tended(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        msg = "disk I/O error"
        raise sqlite3.OperationalError(msg)

    monkeypatch.setattr(reserve.Reserve, "_bring_over", broken)
    monkeypatch.setattr(reserve, "CYCLE", 0)
    await node.carry_out(1, 2)
    assert await node.states() == {1: "reported", 2: "reported"}
    assert capsys.readouterr().out.count("journal.reserve_not_tended") == 1, "said once"
    monkeypatch.undo()
    await node.journal.mend_reserve()
    assert codes(node) == []


async def test_a_quota_that_is_met_when_the_log_is_brought_over_is_a_full_disk(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite tells it as an I/O error."""

    def refused(self: reserve.Reserve, _: object) -> None:
        self._refused = True  # as the next look at the room finds out
        failure = sqlite3.OperationalError("disk I/O error")
        failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise failure

    monkeypatch.setattr(reserve.Reserve, "_bring_over", refused)
    monkeypatch.setattr(reserve, "CYCLE", 0)
    monkeypatch.setattr(reserve.Reserve, "_try_room", lambda _: False)
    monkeypatch.setattr(node.journal._database.reserve, "_try_at", float("inf"))
    await node.journal.mend_reserve()
    assert codes(node) == ["disk_full"]


@pytest.mark.parametrize(
    ("code", "error", "condition"),
    [
        (sqlite3.SQLITE_IOERR_WRITE, JournalError, "journal_unwritable"),
        (sqlite3.SQLITE_CORRUPT, JournalDamagedError, "journal_damaged"),
    ],
)
async def test_a_disk_that_fails_when_the_log_is_brought_over_is_not_said_to_be_full(
    node: Node, code: int, error: type[JournalError], condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        failure = sqlite3.OperationalError("cannot bring it over")
        failure.sqlite_errorcode = code
        raise failure

    monkeypatch.setattr(reserve.Reserve, "_bring_over", broken)
    monkeypatch.setattr(reserve, "CYCLE", 0)
    with pytest.raises(error, match="cannot bring it over"):
        await node.journal.mend_reserve()
    assert codes(node) == [condition]


async def test_no_folder_for_temporary_files_is_needed(node: Node) -> None:
    """In a container whose root is read-only there is none, and making the free pages would take one: tests/sidecar."""
    kept = await node.journal._database.read(lambda connection: connection.execute("PRAGMA temp_store").fetchone()[0])
    assert kept == 2, "in memory"


async def test_free_pages_that_find_no_place_leave_the_rest_as_it_was(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = node.journal._database
    await database.read(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
    monkeypatch.setattr(reserve, "_FEW_PAGES", 10_000)
    monkeypatch.setattr(reserve, "_ENOUGH_PAGES", 20_000)
    await node.journal.mend_reserve()
    assert codes(node) == []
    await node.carry_out(1)
    assert await node.states() == {1: "reported"}


async def test_a_disk_that_fails_while_the_reserve_is_attached_is_an_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.close()
    monkeypatch.setattr(Path, "hardlink_to", refuse(errno.EIO))
    with pytest.raises(JournalError, match="Input/output error"):
        await node.open()
    monkeypatch.undo()
    await node.open()
    assert same(node)
