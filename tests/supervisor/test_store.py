"""The store: group commit, each request its own fate, nothing answered that is not durable."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor import store as stores
from supervisor.problems import Code, ProblemError
from supervisor.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path)
    yield store
    await store.close()


def add(number: int) -> Callable[[sqlite3.Connection], int]:
    def work(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO counters VALUES (?, ?)", (f"test-{number}", number))
        return number

    return work


def code_of(result: object) -> Code:
    assert isinstance(result, ProblemError)
    return result.code


def count(connection: sqlite3.Connection) -> int:
    number: int = connection.execute("SELECT count(*) FROM counters WHERE name LIKE 'test-%'").fetchone()[0]
    return number


async def test_requests_that_come_together_share_a_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    commit = store._commit

    def counted(batch: list[Any]) -> None:
        batches.append(len(batch))
        commit(batch)

    monkeypatch.setattr(store, "_commit", counted)
    assert await asyncio.gather(*(store.write(add(number)) for number in range(100))) == list(range(100))
    assert await store.read(count) == 100
    assert len(batches) <= 3
    assert sum(batches) == 100


async def test_one_that_fails_undoes_its_own_part_only(store: Store) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        add(50)(connection)
        raise ProblemError(Code.NO_NODES, "cannot")

    results = await asyncio.gather(
        store.write(add(1)), store.write(fails), store.write(add(1)), store.write(add(2)), return_exceptions=True
    )
    assert results[0] == 1
    assert isinstance(results[1], ProblemError)
    assert isinstance(results[2], sqlite3.IntegrityError)
    assert results[3] == 2
    assert await store.read(count) == 2


async def test_memory_follows_in_the_order_of_the_commits_before_any_answer(store: Store) -> None:
    seen: list[int] = []
    order: list[tuple[int, int]] = []

    async def write(number: int) -> None:
        await store.write(add(number), seen.append)
        order.append((number, len(seen)))

    await asyncio.gather(*(write(number) for number in range(20)))
    assert seen == list(range(20))
    assert [number for number, _ in order] == seen


async def test_nothing_is_announced_that_was_not_committed(store: Store) -> None:
    seen: list[int] = []

    def damaged(_: sqlite3.Connection) -> int:
        raise sqlite3.OperationalError("database or disk is full")  # noqa: EM101, TRY003 - as SQLite says it

    results = await asyncio.gather(
        store.write(add(1), seen.append), store.write(damaged, seen.append), return_exceptions=True
    )
    assert [code_of(result) for result in results] == [Code.STORE_UNAVAILABLE] * 2
    assert seen == []
    assert await store.read(count) == 0
    assert await store.write(add(3), seen.append) == 3


async def test_a_read_cannot_write(store: Store) -> None:
    with pytest.raises(ProblemError, match="readonly"):
        await store.read(add(1))


async def test_what_was_asked_for_is_done_though_who_asked_has_gone(store: Store) -> None:
    seen: list[int] = []
    task = asyncio.create_task(store.write(add(1), seen.append))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.write(add(2))
    assert seen == [1]
    assert await store.read(count) == 2


async def test_too_many_waiting_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_WAITING", 3)
    results = await asyncio.gather(*(store.write(add(number)) for number in range(5)), return_exceptions=True)
    assert results[:3] == [0, 1, 2]
    assert [code_of(result) for result in results[3:]] == [Code.OVERLOADED] * 2


async def test_closing_finishes_what_is_waiting(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    writes = [asyncio.create_task(store.write(add(number))) for number in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*writes) == list(range(10))
    assert not (tmp_path / "supervisor.db-wal").exists()


async def test_another_process_is_noticed_and_our_own_commits_are_not(store: Store, tmp_path: Path) -> None:
    before = await store.changed_outside()
    await store.write(add(1))
    assert await store.changed_outside() == before

    def outside() -> None:
        connection = sqlite3.connect(tmp_path / "supervisor.db", isolation_level=None)
        connection.execute("INSERT INTO counters VALUES ('outside', 1)")
        connection.close()

    await asyncio.to_thread(outside)
    assert await store.changed_outside() != before
