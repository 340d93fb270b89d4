"""A journal that is missing, damaged or another one's is replaced; nothing of it is deleted, and no report is lost."""

import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from agent.errors import JournalError
from agent.journal import Journal, database, opening, salvage
from tests.journal.conftest import Node, activity


def delete(node: Node) -> None:
    node.path.unlink()


def empty(node: Node) -> None:
    node.path.write_bytes(b"")


def fill_with_garbage(node: Node) -> None:
    node.path.write_bytes(random.Random(7).randbytes(20_000))


def cut_short(node: Node) -> None:
    os.truncate(node.path, 50)


def cut_in_half(node: Node) -> None:
    os.truncate(node.path, node.path.stat().st_size // 2)


def overwrite_a_page(node: Node) -> None:
    """Page 3 of 4096 bytes: one of the tables."""
    content = bytearray(node.path.read_bytes())
    content[2 * 4096 : 3 * 4096] = bytes(4096)
    node.path.write_bytes(content)


def use_another_program(node: Node) -> None:
    node.path.unlink()
    node.edit("CREATE TABLE songs (name TEXT)")
    node.edit("PRAGMA user_version = 99")


def claim_another_format(node: Node) -> None:
    """The number of the schema's format: sqlite.org/fileformat.html#schema_format_number."""
    content = bytearray(node.path.read_bytes())
    content[47] = 9
    node.path.write_bytes(content)


def take_another_nodes(node: Node) -> None:
    node.edit("UPDATE journal SET journal_id = 'another'")


def lose_its_line(node: Node) -> None:
    node.edit("DELETE FROM journal")


def lose_a_table(node: Node) -> None:
    node.edit("DROP TABLE calls")


def lose_a_column(node: Node) -> None:
    node.edit("ALTER TABLE journal RENAME COLUMN journal_id TO journal_ie")


def break_a_text(node: Node) -> None:
    node.edit("UPDATE activities SET evidence = 'broken' WHERE id = 3")


def nest_a_text(node: Node) -> None:
    node.edit(f"UPDATE activities SET evidence = '{'[' * 100_000}' WHERE id = 3")


def lose_the_form_of_a_text(node: Node) -> None:
    """It is JSON still, and no object."""
    node.edit("UPDATE activities SET evidence = 'null' WHERE id = 3")


def break_the_encoding_of_its_line(node: Node) -> None:
    node.edit("UPDATE journal SET created_at = CAST(x'80' AS TEXT)")


def break_a_time(node: Node) -> None:
    """One that Python reads, and that UTC does not have."""
    node.edit("UPDATE activities SET received_at = '0001-01-01T00:00:00+14:00' WHERE id = 3")


def break_a_runtimes_verb(node: Node) -> None:
    node.edit("INSERT OR REPLACE INTO runtimes (runtime, last_verb) VALUES ('iggy', 'reboot')")


def break_a_reports_status(node: Node) -> None:
    node.edit("UPDATE activities SET status = NULL WHERE id = 2")


def break_the_encoding(node: Node) -> None:
    node.edit("UPDATE activities SET runtime = CAST(x'ff' AS TEXT) WHERE id = 3")


def break_the_schema(node: Node) -> None:
    """SQLite's message about it quotes what is no text."""
    content = node.path.read_bytes()
    assert content.count(b"CREATE TABLE calls") == 1
    node.path.write_bytes(content.replace(b"CREATE TABLE calls", b"CREATE TABL\xff calls"))


def break_an_index(node: Node) -> None:
    """Its entries, not its form: the rows are there, and no query by lane finds them."""
    connection = sqlite3.connect(node.path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'activities_by_lane'").fetchone()
    connection.close()
    content = bytearray(node.path.read_bytes())
    start = (page - 1) * 4096
    content[start : start + 4096] = content[start : start + 4096].replace(b"received", b"receiveb")
    node.path.write_bytes(content)


DAMAGES = [
    delete,
    empty,
    fill_with_garbage,
    cut_short,
    cut_in_half,
    overwrite_a_page,
    use_another_program,
    claim_another_format,
    take_another_nodes,
    lose_its_line,
    lose_a_table,
    lose_a_column,
    break_a_text,
    nest_a_text,
    lose_the_form_of_a_text,
    break_the_encoding_of_its_line,
    break_a_time,
    break_a_runtimes_verb,
    break_a_reports_status,
    break_the_encoding,
    break_the_schema,
    break_an_index,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_journal_that_is_not_sound_is_set_aside_as_it_is_and_a_lost_one_begun(
    full: Node, damage: Callable[[Node], None]
) -> None:
    damage(full)
    left = full.path.read_bytes() if full.path.exists() else None
    await full.open()
    assert (full.journal.lost, full.journal.cursor, full.journal.revision) == (True, 0, 0)
    assert [condition.code for condition in full.conditions.all()] == ["journal_replaced", "journal_lost"]
    assert [path.read_bytes() for path in full.set_aside()] == ([] if left is None else [left])
    states = await full.states()
    assert set(states.values()) <= {"finished"}
    assert not await full.start(3)
    await full.sweep(activity(3), activity(4), last=4)
    for number in (3, 4):
        assert (await full.row(number)).uncertain
        assert not await full.start(number)
    assert await full.sweep(activity(5)) == [3, 4]
    assert await full.start(5)
    await full.reopen()
    assert full.conditions.all() == []
    assert full.edit("SELECT journal_id FROM journal") == [(full.journal_id,)]


@pytest.mark.parametrize(
    "damage",
    [take_another_nodes, lose_its_line, lose_a_table, lose_a_column, break_a_text, break_the_encoding, break_an_index],
    ids=lambda damage: damage.__name__,
)
async def test_reports_that_are_still_readable_are_saved(full: Node, damage: Callable[[Node], None]) -> None:
    await full.open()
    (report,) = await full.journal.outbox(10)
    await full.reopen(lambda: damage(full))
    assert await full.journal.outbox(10) == [report]
    assert "(1 reports were saved from the old one)" in full.conditions.all()[0].message


async def test_a_journal_that_says_in_another_way_that_it_is_lost_is_so_until_its_next_sweep(full: Node) -> None:
    full.edit("UPDATE journal SET lost = 3")
    await full.open()
    assert full.journal.lost
    await full.sweep(activity(3), activity(4), last=4)
    assert not full.journal.lost


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (delete, "it is missing"),
        (empty, "it is empty"),
        (fill_with_garbage, "file is not a database"),
        (use_another_program, "it is not a journal of this agent"),
        (take_another_nodes, "it is not the one that identity.json names"),
    ],
    ids=["missing", "empty", "garbage", "another program's", "another node's"],
)
async def test_it_says_why_it_was_replaced(full: Node, damage: Callable[[Node], None], cause: str) -> None:
    damage(full)
    await full.open()
    assert full.conditions.all()[0].message.startswith(f"a new journal was begun, because {cause} (")


async def test_reports_before_and_behind_a_damaged_page_are_saved(node: Node) -> None:
    numbers = range(1, 101)
    await node.sweep(*(activity(number) for number in numbers))
    for number in numbers:
        await node.finish(number, evidence={"log": [f"{number:03}" * 300]})
    await node.close()
    content = bytearray(node.path.read_bytes())
    middle = content.index(b"050" * 100) // 4096 * 4096
    content[middle : middle + 4096] = bytes(4096)
    node.path.write_bytes(content)
    await node.open()
    assert node.journal.lost
    saved = {report.activity_id for report in await node.journal.outbox(200)}
    assert {1, 100} <= saved
    assert 80 < len(saved) < 100


def failing_look(monkeypatch: pytest.MonkeyPatch, code: int, times: int) -> list[int]:
    """Have the old journal not be readable so many times; returns how often it was asked."""
    asked: list[int] = []

    def look(path: Path) -> sqlite3.Connection:
        asked.append(1)
        if len(asked) > times:
            return database.look(path)
        error = sqlite3.OperationalError("cannot be read")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(salvage, "look", look)
    monkeypatch.setattr(salvage, "_PAUSE", 0.0)
    return asked


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_BUSY])
async def test_what_cannot_be_read_for_a_while_is_no_damage_and_costs_no_report(
    full: Node, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_another_nodes(full)
    failing_look(monkeypatch, code, 1)
    with pytest.raises(JournalError, match="cannot be read"):
        await full.open()
    assert full.set_aside() == []
    await full.open()
    assert await full.states() == {2: "finished"}


async def test_want_of_memory_is_said_and_costs_no_report(full: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has an exception of its own for SQLite's."""
    take_another_nodes(full)

    def look(_: Path) -> NoReturn:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(salvage, "look", look)
        with pytest.raises(JournalError, match="no memory is left"):
            await full.open()
    assert full.set_aside() == []
    await full.open()
    assert await full.states() == {2: "finished"}


async def test_a_page_that_the_disk_does_not_give_is_asked_for_again(
    full: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_another_nodes(full)
    asked = failing_look(monkeypatch, sqlite3.SQLITE_IOERR_READ, 2)
    await full.open()
    assert len(asked) > 2
    assert await full.states() == {2: "finished"}


async def test_a_page_that_the_disk_never_gives_ends_the_reading(full: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node must not be held up for ever by a bad sector."""
    take_another_nodes(full)
    failing_look(monkeypatch, sqlite3.SQLITE_IOERR_READ, sys.maxsize)
    monkeypatch.setattr(salvage, "_PATIENCE", 0.05)
    await full.open()
    assert full.journal.lost
    assert await full.states() == {}
    assert len(full.set_aside()) == 1


@pytest.mark.parametrize("bad", ["evidence = 'broken'", "changed = 'maybe'", "status = 'maybe'"])
async def test_a_report_that_cannot_be_one_is_not_saved_and_the_others_are(full: Node, bad: str) -> None:
    for statement in (
        "CREATE TABLE loose AS SELECT * FROM activities",
        "DROP TABLE activities",
        "ALTER TABLE loose RENAME TO activities",
        f"UPDATE activities SET id = 1, state = 'finished', {bad} WHERE id = 1",
    ):
        full.edit(statement)
    await full.open()
    assert [report.activity_id for report in await full.journal.outbox(10)] == [2]
    assert len(full.set_aside()) == 1


async def test_its_wal_goes_with_it(full: Node) -> None:
    """It may hold what the file does not; and read into the new journal, it would destroy it."""
    full.leave_as_if_killed("UPDATE journal SET journal_id = 'another'")
    files = {name: (full.folder / f"journal.db{name}").read_bytes() for name in ("", "-wal")}
    await full.open()
    assert full.journal.lost
    (aside,) = full.set_aside()
    assert {name: Path(f"{aside}{name}").read_bytes() for name in ("", "-wal")} == files  # noqa: ASYNC240 - a test may
    assert (await full.reopen()).cursor == 0


@pytest.mark.parametrize("by", ["opening", "enrolling"])
async def test_a_wal_whose_file_is_gone_is_set_aside_and_not_read_into_the_new_journal(full: Node, by: str) -> None:
    full.leave_as_if_killed("UPDATE journal SET cursor = 77")
    wal = (full.folder / "journal.db-wal").read_bytes()
    full.path.unlink()
    if by == "enrolling":
        full.journal_id = await Journal.create(full.folder)
    await full.open()
    assert (full.journal.cursor, await full.states()) == (0, {})
    assert [path.read_bytes() for path in full.folder.glob("*.damaged-*-wal")] == [wal]


async def test_a_second_damage_sets_a_second_file_aside(full: Node) -> None:
    for count in (1, 2):
        fill_with_garbage(full)
        await full.open()
        await full.close()
        assert len(full.set_aside()) == count


async def test_enrolling_over_a_damaged_journal_saves_its_reports_and_counts_as_lost(full: Node) -> None:
    lose_a_table(full)
    full.journal_id = await Journal.create(full.folder)
    assert len(full.set_aside()) == 1
    await full.open()
    assert full.journal.lost
    assert await full.states() == {2: "finished"}


@pytest.mark.parametrize(
    ("written", "flipped"),
    [(b"'finished', 'reported'", b"'binished', 'reported'"), (b"DEFAULT '{}'", b"DEFAULT '{u'")],
)
async def test_a_flipped_bit_in_what_the_tables_are_made_by_is_a_damage(
    full: Node, written: bytes, flipped: bytes
) -> None:
    """SQLite goes by that text: it would refuse each write of a result from then on."""
    content = full.path.read_bytes()
    assert content.count(written) == 1
    full.path.write_bytes(content.replace(written, flipped))
    await full.open()
    assert full.journal.lost
    assert len(full.set_aside()) == 1
    assert await full.states() == {2: "finished"}


async def test_any_flipped_bit_is_survived(full: Node) -> None:
    """SQLite has no checksums, so a bit in a text may pass; but nothing is deleted, and what opens can be read."""
    sound = full.path.read_bytes()
    written = [place for place, byte in enumerate(sound) if byte]
    dice = random.Random()
    replaced = 0
    for _ in range(40):
        for path in full.folder.iterdir():
            path.unlink()
        content = bytearray(sound)
        content[dice.choice(written)] ^= 1 << dice.randrange(8)
        full.path.write_bytes(content)
        try:
            await full.open()
        except JournalError:
            # A bit that says "a newer version wrote this", or "read only".
            assert full.path.read_bytes() == content
            continue
        if full.set_aside():
            replaced += 1
            assert full.journal.lost
            assert [path.read_bytes() for path in full.set_aside()] == [content]
        await full.journal.outbox(10)
        await full.journal.unfinished()
        await full.journal.queue("iggy")
        await full.close()
    assert replaced > 0


# --- a crash while it is replaced


@pytest.mark.parametrize("step", ["_set_aside", "_put_in_place", "second rename"])
async def test_a_crash_while_it_is_replaced_loses_no_report(
    full: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong stands in the WAL: the file alone would pass for a sound, older one."""
    full.leave_as_if_killed("UPDATE journal SET journal_id = 'another'")
    renamed: list[Path] = []

    def crash(*_: object) -> None:
        msg = "the machine went down"
        raise OSError(msg)

    rename = Path.rename

    def crash_at_the_second(path: Path, target: str | Path) -> Path:
        renamed.append(path)
        if len(renamed) == 2:
            crash()
        return rename(path, target)

    if step == "second rename":
        monkeypatch.setattr(Path, "rename", crash_at_the_second)
    else:
        monkeypatch.setattr(opening, step, crash)
    with pytest.raises(JournalError, match="the machine went down"):
        await full.open()
    monkeypatch.undo()
    await full.open()
    assert (full.journal.lost, full.journal.cursor) == (True, 0)
    assert await full.states() == {2: "finished"}
    assert len(full.set_aside()) == 1
    await full.reopen()
    assert not (full.folder / "journal.db.new").exists()


async def test_a_crash_while_the_new_one_is_built_begins_it_again(full: Node) -> None:
    full.path.unlink()
    (full.folder / "journal.db.new").write_bytes(b"half")
    await full.open()
    assert await full.states() == {}
    assert not (full.folder / "journal.db.new").exists()


async def test_what_a_crash_left_is_not_used_once_the_journal_is_sound(full: Node) -> None:
    shutil.copy(full.path, full.folder / "journal.db.new")
    await full.open()
    assert not (full.folder / "journal.db.new").exists()
    assert full.conditions.all() == []
