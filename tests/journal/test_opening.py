"""Opening a journal that is sound, older, newer, or on a disk that is at fault."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.conditions import Conditions
from agent.errors import JournalDamagedError, JournalError, JournalFullError
from agent.journal import Journal, opening, schema
from tests.journal.conftest import Node, activity, codes
from tests.journal.test_damage_in_use import malformed
from tests.small_disk import SmallDisk

NOBODY = 65534


# --- a sound one


async def test_enrolment_makes_a_journal_that_is_not_lost_and_private(tmp_path: Path) -> None:
    journal_id = await Journal.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["journal.db"]  # noqa: ASYNC240 - a test may look at the disk
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600
    conditions = Conditions()
    journal = await Journal.open(tmp_path, journal_id=journal_id, conditions=conditions)
    assert (journal.lost, journal.cursor, journal.revision, conditions.all()) == (False, 0, 0, [])
    for companion in ("-wal", "-shm"):
        assert (tmp_path / f"journal.db{companion}").stat().st_mode & 0o777 == 0o600
    await journal.close()


async def test_enrolling_again_keeps_a_sound_journal(full: Node) -> None:
    assert await Journal.create(full.folder) == full.journal_id
    await full.open()
    assert await full.states() == {1: "reported", 2: "finished", 3: "started", 4: "received"}
    assert full.conditions.all() == []


async def test_two_journals_have_two_ids(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert await Journal.create(tmp_path / "a") != await Journal.create(tmp_path / "b")


async def test_what_a_killed_agent_left_in_the_wal_is_there(full: Node) -> None:
    full.leave_as_if_killed("UPDATE journal SET cursor = 77")
    assert (await full.open()).cursor == 77
    assert full.set_aside() == []


async def test_an_older_file_becomes_a_newer_one_step_by_step(full: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("ALTER TABLE journal ADD COLUMN one_more INTEGER;", "ALTER TABLE journal ADD COLUMN two_more INTEGER;")
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS + more)
    newest = schema.SCHEMA_VERSION + len(more)
    monkeypatch.setattr(opening, "SCHEMA_VERSION", newest)
    await full.open()
    assert full.conditions.all() == []
    assert await full.states() == {1: "reported", 2: "finished", 3: "started", 4: "received"}
    await full.close()
    assert full.edit("PRAGMA user_version") == [(newest,)]
    assert full.edit("SELECT one_more, two_more FROM journal") == [(None, None)]
    await full.reopen()
    assert full.conditions.all() == []


async def test_a_migration_that_fails_leaves_the_file_at_its_version(
    full: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("ALTER TABLE journal ADD COLUMN one_more INTEGER;", "ALTER TABLE journal ADD COLUMN a INTEGER; no SQL;")
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS + more)
    with pytest.raises(JournalError, match="syntax error"):
        await full.open()
    assert full.edit("PRAGMA user_version") == [(schema.SCHEMA_VERSION + 1,)]
    assert "a" not in [column for _, column, *_ in full.edit("PRAGMA table_info(journal)")]


def make_first_version(node: Node) -> None:
    """Write the closed journal as an agent with the first schema would have."""
    first = node.folder / "first"
    with closing(sqlite3.connect(first, isolation_level=None)) as connection:
        connection.executescript(schema.MIGRATIONS[0])
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("ATTACH ? AS now", (str(node.path),))
        for table in ("journal", "activities", "calls"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM now.{table}")
        connection.execute("INSERT INTO runtimes SELECT runtime, committed, last_verb FROM now.runtimes")
    first.replace(node.path)


async def test_a_file_of_the_first_version_knows_what_it_knew(full: Node) -> None:
    await full.open()
    await full.journal.know_runtime("iggy", current="7-1")
    await full.close()
    make_first_version(full)
    await full.open()
    assert full.conditions.all() == []
    assert await full.states() == {1: "reported", 2: "finished", 3: "started", 4: "received"}
    assert await full.journal.knows_runtime("iggy")
    assert await full.journal.committed("iggy") == "7-1"
    assert full.set_aside() == []


async def test_an_older_file_becomes_a_newer_one_on_a_full_disk_too(small_disk: SmallDisk) -> None:
    """An agent is not upgraded on good days only: what it has to report is sent all the same."""
    node = Node(small_disk.folder, await Journal.create(small_disk.folder))
    await node.open()
    await node.sweep(activity(1))
    await node.finish(1)
    await node.close()
    make_first_version(node)
    small_disk.fill()
    await node.open()
    assert codes(node) == ["disk_full"]
    assert [report.activity_id for report in await node.journal.outbox(10)] == [1]
    await node.close()


async def test_what_cannot_be_read_in_an_older_file_is_found_before_it_becomes_a_newer_one(full: Node) -> None:
    make_first_version(full)
    full.edit("INSERT INTO runtimes VALUES ('iggy', NULL, 'reboot')")
    await full.open()
    assert codes(full) == ["journal_replaced", "journal_lost"]


# --- not the file's fault: an error, and nothing is set aside


async def test_a_newer_journal_is_refused_and_left_alone(full: Node) -> None:
    newer = schema.SCHEMA_VERSION + 1
    full.edit(f"PRAGMA user_version = {newer}")
    before = full.path.read_bytes()
    with pytest.raises(JournalError, match=rf"written by a newer version \(schema {newer}\)") as caught:
        await full.open()
    assert caught.value.hint == f"install the newer agent again; this one knows schema {schema.SCHEMA_VERSION}"
    with pytest.raises(JournalError, match="written by a newer version"):
        await Journal.create(full.folder)
    assert full.path.read_bytes() == before
    assert full.set_aside() == []


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user that permissions hold for: root's tests become nobody."""
    folder = Path(tempfile.mkdtemp(prefix="journal-"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("target", ["folder that cannot be entered", "folder that cannot be written", "file"])
async def test_a_missing_permission_is_an_error_and_the_file_stays(unprivileged: Path, target: str) -> None:
    node = Node(unprivileged, await Journal.create(unprivileged))
    await node.open()
    await node.carry_out(1)
    await node.close()
    place, mode = {
        "folder that cannot be entered": (unprivileged, 0o000),
        "folder that cannot be written": (unprivileged, 0o500),
        "file": (node.path, 0o000),
    }[target]
    place.chmod(mode)
    with pytest.raises(JournalError, match=r"cannot use the journal .*journal\.db: ") as caught:
        await node.open()
    assert caught.value.hint is not None
    place.chmod(0o700)
    assert {path.name for path in unprivileged.iterdir()} == {"journal.db", "journal.reserve"}  # noqa: ASYNC240 - a test may look
    await node.open()
    assert (await node.states(), node.conditions.all()) == ({1: "reported"}, [])
    await node.close()


async def test_a_file_that_cannot_be_written_opens_and_begins_nothing(unprivileged: Path) -> None:
    node = Node(unprivileged, await Journal.create(unprivileged))
    await node.open()
    await node.sweep(activity(1))
    await node.close()
    node.path.chmod(0o400)
    await node.open()
    with pytest.raises(JournalError, match="readonly"):
        await node.start(1)
    assert "journal_unwritable" in node.conditions
    assert node.journal.revision == 0
    await node.close()


async def test_a_folder_that_is_not_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    node = Node(tmp_path / "none", "some")
    with pytest.raises(JournalError, match="No such file or directory") as caught:
        await node.open()
    assert caught.value.hint == "the folder must exist and belong to the agent's user"
    with pytest.raises(JournalError, match="No such file or directory"):
        await Journal.create(node.folder)


async def damaged_on(disk: SmallDisk) -> Node:
    """Make a node with one report, whose journal is damaged while the disk is full."""
    node = Node(disk.folder, await Journal.create(disk.folder))
    await node.open()
    await node.sweep(activity(1))
    await node.finish(1)
    await node.close()
    node.edit("UPDATE journal SET journal_id = 'another'")
    disk.fill()
    return node


async def test_on_a_full_disk_a_damaged_journal_is_replaced_by_one_of_the_blocks_that_it_kept(
    small_disk: SmallDisk,
) -> None:
    node = await damaged_on(small_disk)
    await node.open()
    assert (node.journal.lost, await node.states()) == (True, {1: "finished"})
    assert len(await node.journal.outbox(10)) == 1
    assert len(node.set_aside()) == 1
    assert codes(node) == ["journal_replaced", "journal_lost"]
    small_disk.free()
    await node.sweep(last=1)
    await node.carry_out(2)
    await node.close()


async def test_on_a_full_disk_one_that_was_set_aside_is_replaced_and_what_it_gave_can_be_sent(
    small_disk: SmallDisk,
) -> None:
    """Also where something else takes each block that is free in between."""
    node = Node(small_disk.folder, await Journal.create(small_disk.folder))
    await node.open()
    await node.sweep(activity(1))
    await node.start(1)
    await node.finish(1)
    small_disk.fill()
    with pytest.raises(JournalDamagedError):
        await node.journal._database.read(malformed)
    await node.journal.set_aside()
    small_disk.fill()
    await node.reopen()
    assert codes(node) == ["disk_full", "journal_replaced", "journal_lost"]
    assert [report.activity_id for report in await node.journal.outbox(10)] == [1]
    small_disk.free()
    await node.journal.mend_reserve()
    await node.sweep(last=1)
    await node.carry_out(2)
    assert codes(node) == ["journal_replaced"]
    await node.close()


async def test_without_such_blocks_a_damaged_journal_stays_as_it_is_until_there_is_room(small_disk: SmallDisk) -> None:
    node = await damaged_on(small_disk)
    (node.folder / "journal.reserve").unlink()
    small_disk.fill()
    with pytest.raises(JournalFullError, match="No space left on device"):
        await node.open()
    assert node.set_aside() == []
    small_disk.free()
    await node.open()
    assert (node.journal.lost, await node.states()) == (True, {1: "finished"})
    await node.close()


async def test_blocks_that_have_another_name_are_left_to_it(small_disk: SmallDisk) -> None:
    """They are a log that was set aside with its damaged journal."""
    node = await damaged_on(small_disk)
    kept = node.folder / "journal.reserve"
    (node.folder / "journal.db.damaged-20260101T000000000000Z-wal").hardlink_to(kept)
    before = kept.read_bytes()
    with pytest.raises(JournalFullError, match="No space left on device"):
        await node.open()
    assert kept.read_bytes() == before
    small_disk.free()
    await node.open()
    await node.close()
