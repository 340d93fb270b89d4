"""A whole node: one disk, two runtimes, a Supervisor, and an agent that lives, dies and lives again."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from agent.journal import Journal
from agent.protocol import DriverKind, RuntimeName, config_sha256, format_time
from tests.faults.simulated.clockwork import VirtualLoop, clockwork
from tests.faults.simulated.judge import Judge
from tests.faults.simulated.life import EVERYBODY, Disk, Life, Stop, Witness, never
from tests.faults.simulated.supervisor import Item, Supervisor
from tests.faults.simulated.world import Machine, World
from tests.faults.tally import FalseReportError, LostError

BEGINNING = datetime(2026, 3, 16, 12, tzinfo=UTC)
GOOD, NEVER_READY, ENDS_AT_ONCE = (1, 2), 8, 9
"""Ids of configs."""
DAYS = "/dev/shm"
LAST_TURN = 20.0
"""Seconds that the agent goes on before the faults end."""
HEALING = 700.0
"""Seconds; more than the agent lets pass between two sweeps."""


@cache
def make_config(number: int, kind: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "kind": kind,
        "runtime_version": None,
        "values": {"IGGY_CONNECTORS_X" if kind == "connectors" else "IGGY_X": str(number)},
        "secret_keys": [],
        "files": [],
    }
    return {"id": number, "name": "main", "version": 1, **content, "sha256": config_sha256(**content)}


class Node:
    """What the rules act on.

    Args:
        kinds: How each runtime is controlled.
        revived: Whether something revives the runtimes.
        running: Whether they run in the beginning.
    """

    def __init__(self, kinds: Mapping[RuntimeName, DriverKind], *, revived: bool, running: bool) -> None:
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._note_fault)
        self.machine = Machine(self.loop)
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.loop.close)
        self._stack.enter_context(clockwork(self.loop, boot_id=lambda: self.machine.boot_id))
        place = DAYS if Path(DAYS).is_dir() else None
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="node-", dir=place)))
        create = self.loop.create_task(Journal.create(self.folder))
        self.loop.go()
        self.disk = Disk(self.folder, create.result())
        self.supervisor = Supervisor()
        self.worlds = {name: self._make_world(name, kind, revived=revived) for name, kind in kinds.items()}
        if running:
            for world in self.worlds.values():
                world.begin(None)
        self.judge = Judge(self.machine, self.supervisor, self.worlds)
        self.life: Life | None = None
        self.injected = 0
        self.copied: Path | None = None
        self.copy_under_way: set[str | None] = set()
        self.copy_revision = 0
        self.copy_knows: dict[int, tuple[bool, int | None]] = {}
        self.revision = 0
        """Of the journal, when the agent lived last."""

    def _make_world(self, name: RuntimeName, kind: DriverKind, *, revived: bool) -> World:
        folder = self.folder / "runtimes" / name
        sha256 = {f"{number}-1": make_config(number, name)["sha256"] for number in (*GOOD, NEVER_READY, ENDS_AT_ONCE)}

        def current() -> str | None:
            link = folder / "current"
            return sha256[link.readlink().name] if link.is_symlink() else None

        return World(
            name,
            kind,
            self.machine,
            revived=revived and kind is not DriverKind.PROCESS,
            current=current,
            never_ready={make_config(NEVER_READY, name)["sha256"]},
            ends_at_once={make_config(ENDS_AT_ONCE, name)["sha256"]},
        )

    def _note_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or isinstance(error, Exception):
            self.machine.find(AssertionError(f"{context['message']}: {error!r}"))

    def close(self) -> None:
        if self.life is not None:
            self.life.die()
            self.life = None
        self._stack.close()

    def now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self.loop.now)

    # --- the user and the Supervisor

    def dispatch(self, runtime: RuntimeName, action: str, *, expires_in: float | None, visible: bool) -> int:
        number = len(self.supervisor.items) + 1
        _verb, _, config_id = action.partition(":")
        config = make_config(int(config_id), runtime) if config_id else None
        expires_at = None if expires_in is None else self.now() + timedelta(seconds=expires_in)
        raw = {
            "id": 1000 + number,
            "sequence": number,
            "runtime": runtime,
            "action": action,
            "config": config,
            "author_id": 1,
            "created_at": format_time(self.now()),
            "expires_at": expires_at and format_time(expires_at),
        }
        item = Item(raw, config_sha256=config["sha256"] if config else None, visible=visible)
        item.expires_at = None if expires_in is None else self.loop.now + expires_in
        self.supervisor.items[item.id] = item
        self.judge.dispatched(item)
        self.supervisor.stir()
        return item.id

    # --- the agent

    def start(self) -> None:
        self.judge.agent_starts()
        judge = self.judge

        def finished(number: int, facts: Mapping[str, Any]) -> None:
            judge.finished(number, facts)
            judge.note_committed(number, facts)

        witness = Witness(
            taken=judge.taken,
            waiting=judge.waiting,
            chosen=judge.chosen,
            begun=judge.begun,
            called=judge.called,
            finished=finished,
            withdrawn=judge.withdrawn,
            sent=judge.sent,
        )
        self.life = Life(
            self.loop,
            self.disk,
            list(self.worlds.values()),
            self.supervisor,
            witness=witness,
            now=self.now,
            runtime_of=lambda number: str(self.supervisor.items[number].raw["runtime"]),
        )

    def go(self, seconds: float, *, stop: Stop = never, only: str = EVERYBODY) -> None:
        if self.life is not None:
            self.life.go(seconds, stop=stop, only=only)
        self._read_revision()
        self.judge.check()

    def _read_revision(self) -> None:
        if self.life is not None and self.life.journal is not None:
            self.revision = self.life.journal.revision

    def pass_time(self, seconds: float) -> None:
        """Let time pass in which the agent gets no turn."""
        self.loop.go(seconds)
        self.judge.check()

    def die(self, *, calls_are_lost: bool) -> list[str]:
        """Kill the agent; returns where it was."""
        assert self.life is not None
        where = self.life.gate.where()
        self._read_revision()
        self.life.die()
        self.life = None
        self.injected += 1
        for world in self.worlds.values():
            world.orphan(lost=calls_are_lost)
        self.judge.check()
        return where

    def reboot(self, *, comes_up: bool) -> None:
        if self.life is not None:
            self.die(calls_are_lost=True)
        self.injected += 1
        self.machine.boot += 1
        for world in self.worlds.values():
            world.reboot(comes_up=comes_up)

    # --- the journal's file

    def copy_journal(self) -> None:
        self.copied = self.folder / "backup"
        self._read_revision()
        self.copy_under_way, self.copy_revision = self.judge.under_way(), self.revision
        self.copy_knows = self.judge.known_to_the_journal()
        shutil.rmtree(self.copied, ignore_errors=True)
        self.copied.mkdir()
        for name in ("journal.db", "journal.db-wal"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, self.copied / name)

    @property
    def copy_is_midway(self) -> bool:
        """Whether the old copy has something under way that A does not tell about, so that it might begin anew."""
        return not self.copy_under_way <= {self.machine.boot_id}

    def copy_is_noticed(self) -> bool:
        """Tell whether the old copy would be known for one, or is such that it need not be."""
        told = self.supervisor.revision >= self.revision
        return told and (not self.copy_is_midway or self.revision > self.copy_revision)

    def lose_journal(self) -> None:
        self._remove_journal()
        self.judge.journal_is_doubted({})

    def put_back(self) -> None:
        assert self.copied is not None
        self._remove_journal()
        for path in self.copied.iterdir():
            shutil.copy(path, self.folder / path.name)
        self.judge.journal_is_doubted(self.copy_knows)

    def _remove_journal(self) -> None:
        for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
            (self.folder / name).unlink(missing_ok=True)
        self.injected += 1

    # --- the end

    def heal(self) -> None:
        """End all faults, and see that every activity that is wanted gets its report, and the journal empty."""
        if self.life is None:
            self.start()
        self.go(LAST_TURN)
        self.supervisor.reachable = True
        self.supervisor.twice = False
        self.supervisor.answers_lost = 0
        self.disk.writes_that_fail = 0
        for item in self.supervisor.items.values():
            item.visible, item.other = True, None
        for world in self.worlds.values():
            world.slow = False
            world.get_ready()
        self.supervisor.stir()
        for _ in range(3):
            self.go(HEALING)
            if not any(item.listed for item in self.supervisor.items.values()):
                break
        for item in self.supervisor.items.values():
            if item.wanted and item.report is None:
                msg = f"{self.judge.cases[item.id]} has no report; the agent is {self._where()}"
                raise LostError(msg)
        self._check_journal()

    def _where(self) -> str:
        assert self.life is not None
        return str(self.life.gate.where() or [condition.code for condition in self.life.conditions.all()] or "at rest")

    def _check_journal(self) -> None:
        """See nothing waiting, and nothing left once the retention is over."""
        assert self.life is not None
        journal = self.life.journal
        assert journal is not None
        self.life.gate.open(never, EVERYBODY)
        counts = self.loop.create_task(journal.counts())
        pruned = self.loop.create_task(journal.prune(days=0, count=0))
        rows = self.loop.create_task(journal.recent(1000))
        self.loop.go()
        waiting, left = counts.result(), rows.result()
        if waiting.waiting or waiting.unreported or left:
            msg = f"the journal keeps {[(row.id, str(row.state)) for row in left]} of {pruned}"
            raise FalseReportError(msg)
