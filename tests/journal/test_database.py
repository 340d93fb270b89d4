import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import JournalError
from agent.journal.database import Database, connect, look


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "some.db")

    def prepare() -> str:
        sqlite3.connect(database.path).close()
        database.path.touch()
        return "prepared"

    assert await database.open(prepare) == "prepared"
    await database.write(lambda connection: connection.execute("CREATE TABLE things (name TEXT UNIQUE) STRICT"), print)
    yield database
    await database.close()


def insert(connection: sqlite3.Connection, name: str) -> str:
    connection.execute("INSERT INTO things VALUES (?)", (name,))
    return name


async def names(database: Database) -> list[str]:
    return await database.read(lambda connection: [name for (name,) in connection.execute("SELECT name FROM things")])


async def test_a_commit_is_synced_before_it_returns(database: Database) -> None:
    """sqlite.org/pragma.html#pragma_synchronous: 2 is FULL."""

    def read(connection: sqlite3.Connection) -> list[object]:
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert await database.read(read) == ["wal", 2]


async def test_what_was_written_is_told_on_the_loop_and_is_there(database: Database) -> None:
    told: list[tuple[str, bool]] = []

    def committed(name: str) -> None:
        told.append((name, threading.current_thread() is threading.main_thread()))

    assert await database.write(lambda connection: insert(connection, "a"), committed) == "a"
    assert told == [("a", True)]
    assert await names(database) == ["a"]


async def test_a_transaction_that_fails_writes_nothing_and_the_next_one_works(database: Database) -> None:
    told: list[object] = []

    def write(connection: sqlite3.Connection) -> None:
        insert(connection, "a")
        insert(connection, "a")

    with pytest.raises(JournalError, match=r"cannot use the journal .*some\.db: UNIQUE constraint failed"):
        await database.write(write, told.append)
    assert (told, await names(database)) == ([], [])
    await database.write(lambda connection: insert(connection, "b"), told.append)
    assert (told, await names(database)) == (["b"], ["b"])


async def test_an_error_of_ours_rolls_back_and_goes_through(database: Database) -> None:
    def write(connection: sqlite3.Connection) -> None:
        insert(connection, "a")
        msg = "ours"
        raise LookupError(msg)

    with pytest.raises(LookupError):
        await database.write(write, print)
    assert await names(database) == []


async def test_an_error_of_the_disk_names_the_file(database: Database) -> None:
    def work() -> None:
        (database.path / "below a file").read_bytes()

    with pytest.raises(JournalError, match=r"cannot use the journal .*some\.db: Not a directory"):
        await database.run(work)


async def test_a_text_that_cannot_be_decoded_is_an_error_of_the_journal(database: Database) -> None:
    """Python finds it, also in SQLite's own messages about a damaged file."""
    with pytest.raises(JournalError, match="can't decode"):
        await database.run(b"\xff".decode)


async def test_a_file_that_another_process_keeps_locked_is_an_error_and_nothing_is_written(database: Database) -> None:
    await database.read(lambda connection: connection.execute("PRAGMA busy_timeout = 50"))
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked"):
        await database.write(lambda connection: insert(connection, "a"), print)
    other.close()
    await database.write(lambda connection: insert(connection, "b"), print)
    assert await names(database) == ["b"]


async def test_a_write_whose_caller_is_cancelled_is_whole_and_told_all_the_same(database: Database) -> None:
    begun, go_on, told = threading.Event(), threading.Event(), asyncio.Event()

    def write(connection: sqlite3.Connection) -> str:
        insert(connection, "a")
        begun.set()
        assert go_on.wait(10)
        return insert(connection, "b")

    caller = asyncio.create_task(database.write(write, lambda _: told.set()))
    await asyncio.to_thread(begun.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not told.is_set()
    go_on.set()
    await asyncio.wait_for(told.wait(), 10)
    assert await names(database) == ["a", "b"]


async def test_a_write_that_is_cancelled_before_its_turn_writes_nothing(database: Database) -> None:
    go_on = threading.Event()
    first = asyncio.create_task(database.run(lambda: go_on.wait(10)))
    second = asyncio.create_task(database.write(lambda connection: insert(connection, "a"), print))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    assert await first
    assert await names(database) == []


async def test_closing_finishes_what_was_asked_for(database: Database) -> None:
    go_on = threading.Event()
    told: list[str] = []
    first = asyncio.create_task(database.run(lambda: go_on.wait(10)))
    second = asyncio.create_task(database.write(lambda connection: insert(connection, "a"), told.append))
    await asyncio.sleep(0)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert await first
    assert (await second, told) == ("a", ["a"])


async def test_closing_twice_is_harmless_and_what_comes_after_is_refused(database: Database) -> None:
    await database.close()
    await database.close()
    for use in (database.write(print, print), database.read(print), database.run(lambda: None)):
        with pytest.raises(JournalError, match="it is closed"):
            await use


async def test_a_cancelled_close_closes_all_the_same(database: Database) -> None:
    connection = database._connection
    assert connection is not None
    go_on = threading.Event()
    first = asyncio.create_task(database.run(lambda: go_on.wait(10)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    go_on.set()
    await first
    await database.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


async def test_an_open_that_is_cancelled_leaves_no_connection_behind(tmp_path: Path) -> None:
    database = Database(tmp_path / "some.db")
    begun, go_on = threading.Event(), threading.Event()

    def prepare() -> None:
        begun.set()
        assert go_on.wait(10)
        database.path.touch()

    opening = asyncio.create_task(database.open(prepare))
    await asyncio.to_thread(begun.wait, 10)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert database._connection is None
    assert sorted(file.name for file in tmp_path.glob("some*")) == ["some.db", "some.reserve"]  # noqa: ASYNC240 - a test may look at the disk


async def test_before_it_is_open_it_cannot_be_used(tmp_path: Path) -> None:
    database = Database(tmp_path / "some.db")
    with pytest.raises(JournalError, match="it is closed"):
        await database.read(print)
    await database.close()


def test_looking_changes_neither_the_file_nor_its_wal(tmp_path: Path) -> None:
    """A process that was killed leaves its WAL behind; only looking does not take it in."""
    path, wal = tmp_path / "some.db", tmp_path / "some.db-wal"
    path.touch()
    writer = connect(path)
    writer.execute("CREATE TABLE things (name TEXT)")
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in (path, wal):
        (copied / file.name).write_bytes(file.read_bytes())
    writer.close()
    before = [(copied / file.name).read_bytes() for file in (path, wal)]
    reader = look(copied / path.name)
    assert reader.execute("SELECT count(*) FROM things").fetchone()[0] == 0
    reader.close()
    assert [(copied / file.name).read_bytes() for file in (path, wal)] == before


@pytest.mark.parametrize("opened", [look, connect])
def test_no_file_is_made_where_none_is(tmp_path: Path, opened: object) -> None:
    assert callable(opened)
    with pytest.raises(sqlite3.OperationalError):
        opened(tmp_path / "none.db").execute("SELECT 1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_left_closed(tmp_path: Path) -> None:
    (tmp_path / "some.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="file is not a database"):
        connect(tmp_path / "some.db")


def test_a_sqlite_without_strict_tables_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(JournalError, match="is too old"):
        connect(tmp_path / "some.db")
