"""A node's journal on a real disk, which can be closed, copied, damaged and opened again."""

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.conditions import Conditions
from agent.journal import Journal, Row, Taken
from agent.protocol import ReportOutcome, ReportStatus, Verb

CREATED_AT = "2026-03-16T12:00:00Z"


def activity(number: int, **fields: Any) -> dict[str, Any]:
    """Make an activity as the Supervisor lists it; its sequence is its id unless told otherwise."""
    return {
        "id": number,
        "sequence": number,
        "runtime": "iggy",
        "action": "restart",
        "config": None,
        "author_id": 608123456789012345,
        "created_at": CREATED_AT,
        "expires_at": "2026-03-16T13:00:00Z",
    } | fields


def config(number: int, *, sha256: str = "0" * 64, size: int = 10) -> dict[str, Any]:
    return {
        "id": number,
        "kind": "iggy",
        "name": "main",
        "version": 1,
        "runtime_version": None,
        "values": {"IGGY_SYSTEM_PATH": "x" * size},
        "secret_keys": [],
        "files": [],
        "sha256": sha256,
    }


@dataclass
class Node:
    """One node's state folder, and its journal."""

    folder: Path
    journal_id: str
    conditions: Conditions = field(default_factory=Conditions)
    boot_id: str = "boot-1"
    opened: Journal | None = None

    @property
    def path(self) -> Path:
        return self.folder / "journal.db"

    @property
    def journal(self) -> Journal:
        assert self.opened is not None
        return self.opened

    async def open(self) -> Journal:
        self.conditions = Conditions()
        self.opened = await Journal.open(
            self.folder, journal_id=self.journal_id, conditions=self.conditions, boot_id=lambda: self.boot_id
        )
        return self.opened

    async def close(self) -> None:
        if self.opened is not None:
            await self.opened.close()

    async def reopen(self, between: Callable[[], object] = lambda: None) -> Journal:
        """Stop and start the agent."""
        await self.close()
        between()
        return await self.open()

    async def take(self, *items: Any) -> Taken:
        """Take the answer of a poll."""
        return await self.journal.take(items, sweep=None)

    async def sweep(self, *items: Any, last: int = 0) -> list[int]:
        """Make a whole sweep that lists these items; returns what it withdrew."""
        token = await self.journal.begin_sweep()
        await self.journal.take(items, sweep=token)
        return await self.journal.end_sweep(token, last=last)

    async def start(self, number: int, verb: Verb = Verb.RESTART) -> bool:
        return await self.journal.start(number, verb) is not None

    async def finish(self, number: int, **result: Any) -> bool:
        result_of_success: dict[str, Any] = {"status": ReportStatus.COMPLETED, "changed": True}
        return await self.journal.finish(number, **(result_of_success | result))

    async def report(self, *numbers: int) -> None:
        await self.journal.reported(dict.fromkeys(numbers, ReportOutcome.RECORDED))

    async def carry_out(self, *numbers: int) -> None:
        """Take an activity through its whole life."""
        await self.sweep(*(activity(number) for number in numbers))
        for number in numbers:
            assert await self.start(number)
            assert await self.finish(number)
        await self.report(*numbers)

    async def row(self, number: int) -> Row:
        row = await self.journal.get(number)
        assert row is not None
        return row

    async def next_id(self, runtime: str = "iggy") -> int | None:
        row = await self.journal.next(runtime)
        return None if row is None else row.id

    async def states(self) -> dict[int, str]:
        return {row.id: str(row.state) for row in await self.journal.recent(1000)}

    def copy(self) -> Path:
        """Copy the closed journal, as a backup of the machine would."""
        copy = self.folder / "backup"
        shutil.copy(self.path, copy)
        return copy

    def edit(self, statement: str, *values: object) -> list[Any]:
        """Run a statement on the closed journal."""
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def leave_as_if_killed(self, statement: str) -> None:
        """Run a statement on the closed journal, and leave file and WAL as they are on the disk while it is open."""
        killed = self.folder / "killed"
        killed.mkdir()
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(statement)
        for name in ("journal.db", "journal.db-wal"):
            shutil.copy(self.folder / name, killed / name)
        connection.close()
        for name in ("journal.db", "journal.db-wal"):
            (killed / name).replace(self.folder / name)
        killed.rmdir()

    def set_aside(self) -> list[Path]:
        """List the journals that were set aside, without their companions."""
        found = self.folder.glob("journal.db.damaged-*")
        return sorted(path for path in found if not path.name.endswith(("-wal", "-shm")))


def codes(node: Node) -> list[str]:
    """List what is wrong with it."""
    return [condition.code for condition in node.conditions.all()]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that has enrolled, and whose agent runs."""
    node = Node(tmp_path, await Journal.create(tmp_path))
    await node.open()
    yield node
    await node.close()


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


async def reason(node: Node, number: int) -> str | None:
    row = await node.row(number)
    return row.reason.code if row.reason else None
