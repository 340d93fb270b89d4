"""Opening a journal that is sound, missing, damaged, another one's, newer, or on a disk that is at fault."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.conditions import Conditions
from agent.errors import JournalError
from agent.files import fsync_folder
from agent.journal import Journal, opening, schema
from tests.journal.conftest import Node, activity

NOBODY = 65534


@pytest.fixture
async def full(node: Node) -> Node:
    """A closed journal with an activity in each state: 1 reported, 2 finished, 3 started, 4 received."""
    await node.carry_out(1)
    await node.sweep(*(activity(number) for number in (2, 3, 4)))
    await node.start(2)
    await node.finish(2, evidence={"log": ["x" * 500]})
    await node.start(3)
    await node.close()
    return node


def leave_as_if_killed(node: Node, write: Callable[[sqlite3.Connection], object]) -> None:
    """Write to the closed journal, and leave file and WAL as they are on the disk while it is open."""
    killed = node.folder / "killed"
    killed.mkdir()
    connection = sqlite3.connect(node.path)
    with connection:
        write(connection)
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(node.folder / name, killed / name)
    connection.close()
    for name in ("journal.db", "journal.db-wal"):
        (killed / name).replace(node.folder / name)


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
    leave_as_if_killed(full, lambda connection: connection.execute("UPDATE journal SET cursor = 77"))
    assert (await full.open()).cursor == 77
    assert full.set_aside() == []


async def test_an_older_file_becomes_a_newer_one_step_by_step(full: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("ALTER TABLE journal ADD COLUMN one_more INTEGER;", "ALTER TABLE journal ADD COLUMN two_more INTEGER;")
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS + more)
    monkeypatch.setattr(opening, "SCHEMA_VERSION", 3)
    await full.open()
    assert full.conditions.all() == []
    assert await full.states() == {1: "reported", 2: "finished", 3: "started", 4: "received"}
    await full.close()
    assert full.edit("PRAGMA user_version") == [(3,)]
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
    assert full.edit("PRAGMA user_version") == [(2,)]
    assert "a" not in [column for _, column, *_ in full.edit("PRAGMA table_info(journal)")]


# --- one that has to be replaced


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
        await node.finish(number, evidence={"log": ["y" * 1000]})
    await node.close()
    content = bytearray(node.path.read_bytes())
    middle = content.index(b"y" * 100, len(content) // 2) // 4096 * 4096
    content[middle : middle + 4096] = bytes(4096)
    node.path.write_bytes(content)
    await node.open()
    assert node.journal.lost
    saved = {report.activity_id for report in await node.journal.outbox(200)}
    assert {1, 100} <= saved
    assert 80 < len(saved) < 100


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
    leave_as_if_killed(full, lambda connection: connection.execute("UPDATE journal SET journal_id = 'another'"))
    files = {name: (full.folder / f"journal.db{name}").read_bytes() for name in ("", "-wal")}
    await full.open()
    assert full.journal.lost
    (aside,) = full.set_aside()
    assert {name: Path(f"{aside}{name}").read_bytes() for name in ("", "-wal")} == files  # noqa: ASYNC240 - a test may
    assert (await full.reopen()).cursor == 0


@pytest.mark.parametrize("by", ["opening", "enrolling"])
async def test_a_wal_whose_file_is_gone_is_set_aside_and_not_read_into_the_new_journal(full: Node, by: str) -> None:
    leave_as_if_killed(full, lambda connection: connection.execute("UPDATE journal SET cursor = 77"))
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
    leave_as_if_killed(full, lambda connection: connection.execute("UPDATE journal SET journal_id = 'another'"))
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
    (full.folder / "journal.db.new-journal").write_bytes(b"half")
    await full.open()
    assert await full.states() == {}
    assert sorted(path.name for path in full.folder.iterdir()) == ["journal.db", "journal.db-shm", "journal.db-wal"]


async def test_what_a_crash_left_is_not_used_once_the_journal_is_sound(full: Node) -> None:
    shutil.copy(full.path, full.folder / "journal.db.new")
    await full.open()
    assert not (full.folder / "journal.db.new").exists()
    assert full.conditions.all() == []


# --- not the file's fault: an error, and nothing is set aside


async def test_a_newer_journal_is_refused_and_left_alone(full: Node) -> None:
    full.edit("PRAGMA user_version = 2")
    before = full.path.read_bytes()
    with pytest.raises(JournalError, match=r"written by a newer version \(schema 2\)") as caught:
        await full.open()
    assert caught.value.hint == "install the newer agent again; this one knows schema 1"
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
    assert [path.name for path in unprivileged.iterdir()] == ["journal.db"]  # noqa: ASYNC240 - a test may look
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    path = disk / "filling"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(disk).free == 0
    return path


@pytest.mark.parametrize("damage", [None, take_another_nodes], ids=["sound", "damaged"])
async def test_a_full_disk_is_an_error_and_the_file_stays(
    small_disk: Path, damage: Callable[[Node], None] | None
) -> None:
    node = Node(small_disk, await Journal.create(small_disk))
    await node.open()
    await node.sweep(activity(1))
    await node.finish(1)
    await node.close()
    if damage is not None:
        damage(node)
    filling = fill(small_disk)
    with pytest.raises(JournalError):
        await node.open()
    assert node.set_aside() == []
    filling.unlink()
    await node.open()
    assert (node.journal.lost, await node.states()) == (damage is not None, {1: "finished"})
    await node.close()


async def test_a_disk_that_gets_full_begins_nothing_until_there_is_room(small_disk: Path) -> None:
    node = Node(small_disk, await Journal.create(small_disk))
    await node.open()
    await node.sweep(*(activity(number) for number in range(1, 1000)))
    filling = fill(small_disk)
    begun = 0

    async def begin() -> None:
        nonlocal begun
        while begun < 500:
            begun += 1
            await node.start(begun)

    with pytest.raises(JournalError, match="full"):
        await begin()
    assert "journal_unwritable" in node.conditions
    assert node.journal.revision == begun - 1, "only what is on the disk is announced"
    assert (await node.row(begun)).state == "received"
    filling.unlink()
    fsync_folder(small_disk)
    assert await node.start(begun)
    assert "journal_unwritable" not in node.conditions
    assert (await node.reopen()).revision == begun
    await node.close()
