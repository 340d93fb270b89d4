"""A real agent whose journal is damaged while it runs: it ends, begins a new one, and does nothing twice."""

import socket
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.programs import standin_programs
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL
from tests.e2e.waiting import until
from tests.journal.test_damage_in_use import damage_index
from tests.small_disk import SmallDisk

IGGY = RuntimeName.IGGY
DAMAGED = 74
"""Exit code: sysexits.h, EX_IOERR."""

SPOILT = """
import sqlite3, sys
from agent.cli import main
from agent.journal import Journal
def malformed(_):
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error
async def know_runtime(self, *_, **__):
    await self._database.read(malformed)
Journal.know_runtime = know_runtime
sys.exit(main())
"""
"""An agent that finds its journal damaged as soon as it has opened it, and always finds it sound when it opens it."""
STUCK = """
from agent.journal import opening
def refuse(*_, **__):
    raise OSError(30, "Read-only file system")
opening.set_aside = refuse
"""
"""And one that cannot set it aside either."""


def write_rubbish(path: Path) -> None:
    """Have the index be read from another table's page; the agent reads the schema again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        (version,) = other.execute("PRAGMA schema_version").fetchone()
        other.execute("PRAGMA writable_schema = 1")
        (page,) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'journal'").fetchone()
        other.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = 'activities_by_lane'", (page,))
        other.execute(f"PRAGMA schema_version = {version + 1}")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Rig(standin_programs(), USUAL) as rig:
        await rig.start_agent()
        yield rig


async def touch(rig: Rig) -> None:
    """Have the agent use its journal, which heartbeats do too, but later."""
    await rig.ask("/v1/status")


async def codes(rig: Rig) -> list[str]:
    status = await rig.ask("/v1/status")
    return [] if status is None else [condition["code"] for condition in status["conditions"]]


async def until_well(rig: Rig) -> None:
    """Wait until the new journal knows what it has to know."""

    async def well() -> bool:
        return await codes(rig) == ["journal_replaced"]

    await until(well, "the new journal is not lost any more")


@pytest.mark.parametrize("damage", [damage_index, write_rubbish], ids=lambda damage: damage.__name__)
async def test_it_ends_with_a_clear_word_and_works_again_when_it_is_started(
    rig: Rig, damage: Callable[[Path], None]
) -> None:
    first = await rig.api.run(IGGY, "start")
    assert first.status is ActivityStatus.COMPLETED
    damage(rig.node.state_dir / "journal.db")
    await touch(rig)
    assert await rig.agent.wait() == DAMAGED
    said = rig.agent.log.read_text()
    assert "iggy-agent: cannot go on with the journal" in said
    assert "hint: the agent sets it aside" in said
    assert said.count('"journal_damaged"') == 1, "the log says it once"
    assert len(list(rig.node.state_dir.glob("journal.db.damaged-*Z"))) == 1
    await rig.start_agent()
    await until_well(rig)
    assert (await rig.api.run(IGGY, "restart")).status is ActivityStatus.COMPLETED
    assert len(rig.births(IGGY)) == 2
    assert (await rig.api.get(first.id)).raw == first.raw
    assert await rig.agent.terminate() == 0
    await rig.start_agent()
    assert await codes(rig) == []


async def test_the_result_of_what_is_under_way_is_saved_and_it_is_not_done_again(rig: Rig) -> None:
    rig.switch_faults(IGGY, "slow_start:1")
    dispatched = await rig.api.dispatch(IGGY, "start")
    await rig.until_called(dispatched.id, "start")
    damage_index(rig.node.state_dir / "journal.db")
    await touch(rig)
    assert await rig.agent.wait() == DAMAGED
    assert len(rig.births(IGGY)) == 1
    await rig.start_agent()
    done = await rig.api.finished(dispatched.id)
    assert (done.status, done.code) == (ActivityStatus.COMPLETED, None)
    assert done.raw["changed"] is True
    assert done.raw["evidence"]["calls"] == ["start"], "it is the result of the agent that did it"
    await until_well(rig)
    assert len(rig.births(IGGY)) == 1


async def test_on_a_full_disk_it_is_set_aside_all_the_same_and_the_result_is_sent(small_disk: SmallDisk) -> None:
    """The space that was kept for results is what the new journal is made of."""
    async with Rig(standin_programs(), USUAL) as rig:
        rig.node.move_state(small_disk.folder)
        await rig.start_agent()
        rig.switch_faults(IGGY, "slow_start:2")
        dispatched = await rig.api.dispatch(IGGY, "start")
        await until(lambda: bool(rig.births(IGGY)), "it was started")
        with filling(small_disk):
            damage_index(rig.node.state_dir / "journal.db")
            await touch(rig)
            assert await rig.agent.wait() == DAMAGED
            await rig.start_agent()
            done = await rig.api.finished(dispatched.id)
            assert (done.status, done.code) == (ActivityStatus.COMPLETED, None)
            assert {"disk_full", "journal_replaced"} <= set(await codes(rig))
        assert len(rig.births(IGGY)) == 1
        await until_well(rig)
        assert (await rig.api.run(IGGY, "restart")).status is ActivityStatus.COMPLETED
        assert await rig.agent.terminate() == 0


@contextmanager
def filling(disk: SmallDisk) -> Iterator[None]:
    """Take each block that is free, as soon as it is, as a log that grows does; free the disk in the end."""
    over = threading.Event()

    def fill() -> None:
        while not over.wait(0.001):
            disk.fill()

    disk.fill()
    filler = threading.Thread(target=fill)
    filler.start()
    try:
        yield
    finally:
        over.set()
        filler.join()
        disk.free()


async def test_an_owned_runtime_that_was_stopped_stays_so(rig: Rig) -> None:
    await rig.agent.terminate()
    table = f"[runtimes.{IGGY}]\n"
    settings = rig.node.settings_file.read_text()
    rig.node.settings_file.write_text(settings.replace(table, f"{table}owned = true\n"))
    await rig.start_agent()
    await until(lambda: len(rig.births(IGGY)) == 1, "it is started with the agent")
    assert (await rig.api.run(IGGY, "stop")).status is ActivityStatus.COMPLETED
    damage_index(rig.node.state_dir / "journal.db")
    await touch(rig)
    assert await rig.agent.wait() == DAMAGED
    await rig.start_agent()
    await until_well(rig)
    started = await rig.api.run(IGGY, "start")
    assert (started.status, started.raw["changed"]) == (ActivityStatus.COMPLETED, True), (
        "it was started, though stopped"
    )
    assert len(rig.births(IGGY)) == 2


async def test_one_that_cannot_be_set_aside_before_the_agent_was_up_does_not_keep_it_from_being_ready(rig: Rig) -> None:
    """systemd would end it for that, and start it again and again."""
    await rig.agent.terminate()
    address = rig.folder / "notify.sock"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)) as manager:
        manager.bind(str(address))
        program = (sys.executable, "-c", SPOILT.replace("sys.exit", f"{STUCK}sys.exit"))
        await rig.start_agent(program=program, environment={"NOTIFY_SOCKET": str(address)}, wait=False)
        said = ""

        def ready() -> bool:
            nonlocal said
            with suppress(BlockingIOError):
                said += manager.recv(4096).decode() + "\n"
            return "READY=1" in said

        await until(ready, "it says that it is ready")
        await until(lambda: "journal.not_set_aside" in rig.agent.log.read_text(), "it says why it stays")
        assert rig.agent.alive
        assert "journal_damaged" in await codes(rig)
        assert await rig.agent.terminate() == 0


async def test_one_that_is_damaged_again_at_once_is_not_set_aside_again_at_once(rig: Rig) -> None:
    """A disk that spoils each new journal: the agent stays, and shows it, until a minute is over."""
    damage_index(rig.node.state_dir / "journal.db")
    await touch(rig)
    assert await rig.agent.wait() == DAMAGED
    await rig.start_agent()
    await until_well(rig)
    damage_index(rig.node.state_dir / "journal.db")
    await touch(rig)

    async def shown() -> bool:
        return "journal_damaged" in await codes(rig)

    await until(shown, "it shows that it is damaged")
    dispatched = await rig.api.dispatch(IGGY, "start")

    async def told() -> bool:
        (node,) = await rig.api.nodes()
        return "journal_damaged" in (node["heartbeat"] or {}).get("agent", {}).get("conditions", [])

    await until(told, "a heartbeat tells the Supervisor")
    assert rig.agent.alive
    assert rig.births(IGGY) == []
    assert await rig.agent.terminate() == 0
    assert len(list(rig.node.state_dir.glob("journal.db.damaged-*Z"))) == 2
    await rig.start_agent()
    assert (await rig.api.finished(dispatched.id)).code == "outcome_unknown"
    assert rig.births(IGGY) == []


async def test_one_that_each_start_finds_sound_is_begun_anew_and_no_more_often_than_each_minute(rig: Rig) -> None:
    """What a start and the use of a journal disagree about must not be an endless loop of starts."""
    await rig.agent.terminate()
    spoilt = (sys.executable, "-c", SPOILT)
    await rig.start_agent(program=spoilt, wait=False)
    assert await rig.agent.wait() == DAMAGED
    await rig.start_agent(program=spoilt, wait=False)

    async def shown() -> bool:
        return {"journal_damaged", "journal_replaced"} <= set(await codes(rig))

    await until(shown, "it shows that it is damaged")
    assert rig.agent.alive
    assert await rig.agent.terminate() == 0
    assert len(list(rig.node.state_dir.glob("journal.db.damaged-*Z"))) == 2
    await rig.start_agent()
    await until_well(rig)
    assert (await rig.api.run(IGGY, "start")).status is ActivityStatus.COMPLETED
