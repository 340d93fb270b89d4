"""Dying and coming back: kill -9 after a 202, an old backup put back, a report that was forgotten."""

import asyncio
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.ids import allocate_id, allocate_ids, clock_id, next_sequence
from tests.supervisor.process import serving_rig
from tests.supervisor.rig import report, running


async def test_what_was_answered_202_is_there_after_a_kill_9(tmp_path: Path) -> None:
    async with serving_rig(tmp_path) as (server, rig):
        agent = await rig.agent()
        made = [item for _ in range(5) for item in await rig.dispatch()]
        assert await server.end(signal.SIGKILL) == -signal.SIGKILL
    async with serving_rig(tmp_path) as (_, rig):
        agent.rig = rig
        assert [item["id"] for item in (await agent.poll())["items"]] == [item["id"] for item in made]
        assert (await rig.call("GET", "activities")).ok()["items"] == made[::-1]


async def test_what_was_answered_recorded_is_there_after_a_kill_9(tmp_path: Path) -> None:
    async with serving_rig(tmp_path) as (server, rig):
        agent = await rig.agent()
        agent.revision = 4
        (item,) = await rig.dispatch()
        done = report(item["id"])
        assert await agent.report(done) == ["recorded"]
        await server.end(signal.SIGKILL)
    async with serving_rig(tmp_path) as (_, rig):
        agent.rig, agent.revision = rig, 0
        assert await agent.report(done) == ["duplicate"]
        assert (await agent.poll())["revision"] == 4


async def test_no_id_and_no_sequence_is_used_twice_after_an_old_backup_was_put_back(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup.db"
    async with running(data) as rig:
        agent = await rig.agent()
        before = await rig.dispatch()
    await asyncio.to_thread(shutil.copy, data / "supervisor.db", backup)

    async def dispatch_and_list() -> tuple[set[int], set[int]]:
        async with running(data) as rig:
            agent.rig = rig
            ids = {item["id"] for _ in range(20) for item in await rig.dispatch()}
            ids.add((await rig.config())["id"])
            items = (await agent.poll())["items"]
            sequences = {item["sequence"] for item in items if item["id"] != before[0]["id"]}
            assert len(sequences) == 20
            return ids, sequences

    ids, sequences = await dispatch_and_list()
    for _ in range(3):
        await asyncio.to_thread(shutil.copy, backup, data / "supervisor.db")
        again_ids, again_sequences = await dispatch_and_list()
        assert min(again_ids) > max(ids)
        assert min(again_sequences) > max(sequences)
        ids |= again_ids
        sequences |= again_sequences


async def test_a_report_that_an_old_backup_forgot_is_listed_and_taken_again(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup.db"
    async with running(data) as rig:
        agent = await rig.agent()
        (item,) = await rig.dispatch()
    await asyncio.to_thread(shutil.copy, data / "supervisor.db", backup)
    done = report(item["id"])
    async with running(data) as rig:
        agent.rig = rig
        assert await agent.report(done) == ["recorded"]
    await asyncio.to_thread(shutil.copy, backup, data / "supervisor.db")
    async with running(data) as rig:
        agent.rig = rig
        assert [listed["id"] for listed in (await agent.poll())["items"]] == [item["id"]]
        assert await agent.report(done) == ["recorded"]
        assert (await rig.activity(item["id"]))["status"] == "completed"


NOW = 1_790_000_000_000_000


@pytest.fixture
def counter() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE counters (name TEXT PRIMARY KEY, last INTEGER NOT NULL)")
    connection.execute("INSERT INTO counters VALUES ('id', 0)")
    yield connection
    connection.close()


def test_ids_of_the_same_moment_differ_and_follow_each_other(counter: sqlite3.Connection) -> None:
    first = allocate_ids(counter, 10_000, NOW)
    second = allocate_id(counter, NOW)
    assert first[0] == clock_id(NOW)
    assert list(first) == list(range(first[0], first[0] + 10_000))
    assert second == first[-1] + 1


def test_ids_grow_though_the_clock_was_set_back(counter: sqlite3.Connection) -> None:
    first = allocate_id(counter, NOW)
    assert allocate_id(counter, NOW - 10**12) == first + 1
    assert next_sequence(next_sequence(0, NOW), NOW - 10**12) == next_sequence(0, NOW) + 1


def test_ids_are_larger_than_2_to_53_and_fit_into_63_bits_for_decades() -> None:
    assert clock_id(NOW) > 2**53
    assert clock_id(NOW + 60 * 365 * 86_400 * 1_000_000) < 2**63


def test_a_later_moment_is_above_a_whole_fleets_ids_of_an_earlier_one() -> None:
    assert clock_id(NOW + 1000) > clock_id(NOW) + 1_000_000
