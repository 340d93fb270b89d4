"""A journal that turns out damaged, or cannot be read, while the agent runs."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agent.errors import JournalDamagedError, JournalError
from agent.journal import Journal, opening, steps
from agent.protocol import ReportStatus, Verb
from tests.journal.conftest import Node, activity, codes


def damage_index(path: Path) -> None:
    """Overwrite the index by lane, and have every connection read it again.

    The log is begun anew, so that the page is not read from there, and something is written, so that no cache is valid.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        find = "SELECT rootpage FROM sqlite_schema WHERE name = 'activities_by_lane'"
        (page,) = other.execute(find).fetchone()
        with path.open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"\xa5" * 4096)
        other.execute("UPDATE journal SET created_at = created_at || '0'")


def drop_table(path: Path) -> None:
    """What SQLite says then is an error of the statement, not of the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DROP TABLE runtimes")


def break_text(path: Path) -> None:
    """What SQLite has no objection to."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE activities SET evidence = 'broken' WHERE state != 'reported'")


def break_encoding(path: Path) -> None:
    """What Python objects to, not SQLite."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE activities SET runtime = CAST(x'ff' AS TEXT) WHERE state != 'reported'")


def refuse(*_: object, **__: object) -> NoReturn:
    """Fail as SQLite does on a disk that takes nothing."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    raise error


def malformed(_: sqlite3.Connection) -> NoReturn:
    """Fail as SQLite does on a page that is read wrongly, though the file is sound."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


async def touch_all(node: Node) -> None:
    """Do what an agent does all the time."""
    await node.journal.counts()
    await node.journal.unfinished()
    await node.journal.last_verb("iggy")
    await node.journal.begin_sweep()
    await node.take(activity(9))


@pytest.mark.parametrize(
    "damage", [damage_index, drop_table, break_text, break_encoding], ids=lambda damage: damage.__name__
)
async def test_a_damage_is_said_once_and_the_next_start_begins_a_new_journal_with_the_results(
    node: Node, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    await node.sweep(activity(1), activity(2))
    assert await node.start(1)
    damage(node.path)
    for _ in range(3):
        with pytest.raises(JournalDamagedError, match=r"cannot go on with the journal .*: it is damaged: ") as caught:
            await touch_all(node)
        assert caught.value.hint is not None
        assert caught.value.exit_code == 74
    assert node.journal.rescue.noticed.is_set()
    assert codes(node) == ["journal_damaged"]
    assert capsys.readouterr().out.count("condition.began") == 1
    with pytest.raises(JournalDamagedError):
        await node.start(2)
    assert not node.journal.rescue.over.is_set(), "an activity is under way"
    with suppress(JournalDamagedError):  # where that page is sound, it is written
        await node.finish(1, evidence={"seen": "it"})
    assert node.journal.rescue.over.is_set()
    await node.reopen()
    assert codes(node) == ["journal_replaced", "journal_lost"]
    assert "the one before was damaged (1 reports were saved" in node.conditions.all()[0].message
    (report,) = await node.journal.outbox(10)
    assert (report.activity_id, report.status, report.evidence) == (1, ReportStatus.COMPLETED, {"seen": "it"})
    assert report.started_at is not None
    assert len(node.set_aside()) == 1
    await node.sweep(activity(1), activity(2), last=2)
    assert not await node.start(2), "it may have been done"
    assert await node.states() == {1: "finished", 2: "received"}


async def test_what_a_start_would_find_sound_is_set_aside_all_the_same(node: Node) -> None:
    """Else the agent would come back every two seconds, and end again."""
    with pytest.raises(JournalDamagedError):
        await node.journal._database.read(malformed)
    await node.journal.set_aside()
    assert len(node.set_aside()) == 1
    assert not node.path.exists()
    damage = await asyncio.to_thread(opening.find_damage, node.set_aside()[0], node.journal_id)
    assert damage is None, "a start would have taken it"
    since = await node.journal.since_set_aside()
    assert since is not None
    assert 0 <= since < 60
    await node.reopen()
    assert codes(node) == ["journal_replaced", "journal_lost"]
    await node.reopen()
    assert len(node.set_aside()) == 1


async def test_a_journal_that_is_damaged_while_it_is_opened_is_set_aside_too(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.close()
    with monkeypatch.context() as patch:
        patch.setattr("agent.journal.ledger.read_head", malformed)
        with pytest.raises(JournalDamagedError):
            await node.open()
    await node.open()
    assert codes(node) == ["journal_replaced", "journal_lost"]
    assert len(node.set_aside()) == 1


async def test_enrolling_after_that_takes_the_results_too(node: Node) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    damage_index(node.path)
    with pytest.raises(JournalDamagedError):
        await node.finish(1)
    await node.close()
    assert await Journal.create(node.folder) == node.journal_id
    await node.open()
    assert node.journal.lost
    assert await node.states() == {1: "finished"}


async def test_a_step_that_is_not_written_ends_the_wait_for_its_activity(node: Node) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    step: dict[str, Any] = {"decisive": False, "running": None, "incarnation": None, "boot_id": None, "detail": {}}
    with closing(sqlite3.connect(node.path, isolation_level=None)) as other:
        other.execute("DROP TABLE calls")
    with pytest.raises(JournalDamagedError):
        await node.journal.record(1, "stop", **step)
    assert node.journal.rescue.over.is_set()
    assert node.journal.rescue.results == []


async def test_a_result_that_the_disk_refuses_once_the_file_is_damaged_is_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that damages a file often takes nothing any more, either."""
    await node.sweep(activity(1))
    await node.start(1)
    with pytest.raises(JournalDamagedError):
        await node.journal._database.read(malformed)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "finish", refuse)
        with pytest.raises(JournalError, match="disk I/O error"):
            await node.finish(1)
    assert node.journal.rescue.over.is_set()
    await node.reopen()
    assert await node.states() == {1: "finished"}


async def test_a_result_that_nobody_waits_for_any_more_is_kept(node: Node) -> None:
    """A lane that is ended while its result is being written."""
    await node.sweep(activity(1))
    await node.start(1)
    blocked, free = threading.Event(), threading.Event()

    def block(connection: sqlite3.Connection) -> NoReturn:
        blocked.set()
        free.wait(10)
        malformed(connection)

    blocking = asyncio.create_task(node.journal._database.read(block))
    await asyncio.to_thread(blocked.wait, 10)
    finishing = asyncio.create_task(node.finish(1))
    await asyncio.sleep(0)
    damage_index(node.path)
    finishing.cancel()
    await asyncio.wait({finishing})
    free.set()
    with pytest.raises(JournalDamagedError):
        await blocking
    await node.reopen()
    assert await node.states() == {1: "finished"}


async def test_a_result_that_was_stored_before_the_damage_is_not_kept_twice(node: Node) -> None:
    await node.sweep(activity(1))
    await node.start(1)
    await node.finish(1)
    with pytest.raises(JournalDamagedError):
        await node.journal._database.read(malformed)
    assert node.journal.rescue.results == []
    assert node.journal.rescue.over.is_set()


async def test_what_was_stopped_is_known_to_the_journal_that_replaces_a_damaged_one(node: Node) -> None:
    """An owned runtime must not start again because of a disk."""
    await node.journal.know_runtime("iggy", current="7-1")
    await node.sweep(activity(1, action="stop"))
    await node.start(1, Verb.STOP)
    await node.finish(1)
    with pytest.raises(JournalDamagedError):
        await node.journal._database.read(malformed)
    await node.reopen()
    assert await node.journal.last_verb("iggy") is Verb.STOP
    assert not await node.journal.knows_runtime("iggy"), "what was committed is not known any more"
    await node.journal.know_runtime("iggy", current="7-2")
    assert await node.journal.knows_runtime("iggy")
    assert await node.journal.committed("iggy") == "7-2"
    await node.journal.know_runtime("iggy", current="7-3")
    assert await node.journal.committed("iggy") == "7-2"
    assert await node.journal.last_verb("iggy") is Verb.STOP


async def test_the_refusal_of_what_never_began_is_not_kept(node: Node) -> None:
    """The Supervisor lists it again."""
    await node.sweep(activity(1))
    damage_index(node.path)
    with pytest.raises(JournalDamagedError):
        await node.finish(1)
    assert node.journal.rescue.results == []


async def test_where_it_cannot_be_set_aside_that_is_said_and_may_be_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JournalDamagedError):
        await node.journal._database.read(malformed)
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        patch.setattr(opening, "_build", refuse)
        with pytest.raises(JournalError, match="Read-only file system"):
            await node.journal.set_aside()
        await node.close()
    assert "journal.not_set_aside" in capsys.readouterr().out
    assert node.set_aside() == []


async def test_setting_aside_again_keeps_what_was_saved(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, or a fault of the disk, may come after the rename."""
    await node.sweep(activity(1))
    await node.start(1)
    damage_index(node.path)
    with pytest.raises(JournalDamagedError):
        await node.finish(1)
    with monkeypatch.context() as patch:

        def refuse(_: Path) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(opening, "fsync_folder", refuse)
        with pytest.raises(JournalError, match="Input/output error"):
            await node.journal.set_aside()
    await node.journal.set_aside()
    await node.reopen()
    assert await node.states() == {1: "finished"}
    assert len(node.set_aside()) == 1


async def test_an_error_of_a_sound_file_is_no_damage(node: Node) -> None:
    """A fault of the agent must not cost the node its journal."""
    for _ in range(2):
        with pytest.raises(JournalError, match="no such table: songs") as caught:
            await node.journal._read("songs", lambda connection: connection.execute("SELECT * FROM songs"))
        assert not isinstance(caught.value, JournalDamagedError)
    assert codes(node) == ["journal_unreadable"]


async def test_what_cannot_be_inspected_is_not_called_damaged(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(opening, "find_damage", refuse)
    with pytest.raises(JournalError, match="no such table: songs") as caught:
        await node.journal._database.read(lambda connection: connection.execute("SELECT * FROM songs"))
    assert not isinstance(caught.value, JournalDamagedError)


async def test_a_fault_of_the_agent_in_a_reading_stays_what_it_is(node: Node) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await node.journal._database.read(lambda _: int("none"))


async def test_a_reading_that_succeeds_does_not_speak_for_another_one_of_its_kind(node: Node) -> None:
    await node.sweep(activity(1))
    await deny(node, reading="calls")
    with pytest.raises(JournalError, match="prohibited"):
        await node.journal.get(1)
    assert await node.journal.get(999) is None
    assert codes(node) == ["journal_unreadable"]
    await deny(node, reading=None)
    await node.journal.get(1)
    assert codes(node) == []


async def deny(node: Node, *, reading: str | None) -> None:
    """Have SQLite refuse to read a table, as it does where the disk fails: an error that is not the file's."""

    def judge(action: int, table: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_READ and table == reading else sqlite3.SQLITE_OK

    authorizer = judge if reading else None
    await node.journal._database.read(lambda connection: connection.set_authorizer(authorizer))


async def test_what_cannot_be_read_is_shown_once_until_just_that_can_be_read(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    await node.sweep(activity(1))
    await deny(node, reading="calls")
    for _ in range(3):
        with pytest.raises(JournalError, match="prohibited") as caught:
            await node.journal.get(1)
        assert codes(node) == ["journal_unreadable"]
        assert node.conditions.all()[0].message == caught.value.message
    await node.journal.counts()
    await node.take(activity(2))
    assert codes(node) == ["journal_unreadable"], "something else was read and written"
    with pytest.raises(JournalError, match="prohibited"):
        await node.journal.mend_reserve()
    await deny(node, reading=None)
    await node.journal.mend_reserve()
    assert codes(node) == [], "also if nobody asks for it again"
    assert capsys.readouterr().out.count("condition.began") == 1


async def test_a_write_that_writes_nothing_does_not_say_that_it_can_be_written(node: Node) -> None:
    await node.sweep(activity(1))
    await node.journal._database.read(lambda connection: connection.execute("PRAGMA query_only = 1").fetchall())
    with pytest.raises(JournalError, match="readonly"):
        await node.start(1)
    assert codes(node) == ["journal_unwritable"]


def test_what_was_set_aside_last_counts(tmp_path: Path) -> None:
    assert opening.since_set_aside(tmp_path) is None
    for stamp in ("20200101T000000000000Z", "20260101T000000000000Z", "before-the-repairZ"):
        for companion in ("", "-wal"):
            (tmp_path / f"journal.db.damaged-{stamp}{companion}").touch()
    since = opening.since_set_aside(tmp_path)
    assert since is not None
    assert since < timedelta(days=365 * 100)
