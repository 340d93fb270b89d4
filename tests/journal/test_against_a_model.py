"""The journal beside a simple model of it, through random lives, sweeps, restarts and old copies."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agent.errors import JournalError
from agent.journal import Journal, SweepToken
from agent.protocol import ReasonCode
from tests.journal.conftest import Node, activity

T = TypeVar("T")

NUMBERS = st.integers(min_value=1, max_value=3)
LISTS = st.lists(NUMBERS, max_size=4)


@dataclass
class Fact:
    """What the model knows of one activity."""

    state: str = "received"
    uncertain: bool = False
    code: str | None = None
    called: bool = False
    """Its decisive call is journaled."""


@dataclass
class Model:
    """What is on the disk."""

    rows: dict[int, Fact] = field(default_factory=dict)
    cursor: int = 0
    revision: int = 0
    lost: bool = False
    mark: int = 0
    pruned: int = 0


class JournalBesideModel(RuleBasedStateMachine):
    """Each rule does the same to both; after each, both must say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="journal-"))
        self.node = Node(self.folder, self.run(Journal.create(self.folder)))
        self.run(self.node.open())
        self.model = Model()
        self.listed: set[int] = set()
        self.token: SweepToken | None = None
        self.before: set[int] = set()
        self.swept: set[int] = set()
        self.copied: Model | None = None
        self.seen = 0
        """The highest revision that the Supervisor was sent."""

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.node.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    # --- the Supervisor

    def _list(self, numbers: list[int]) -> None:
        for number in numbers:
            fact = self.model.rows.get(number)
            doubtful = self.model.lost or number <= self.model.mark
            if fact is None:
                self.model.rows[number] = Fact(uncertain=doubtful or number <= self.model.pruned)
            elif fact.state == "received":
                fact.uncertain |= doubtful
            elif fact.state == "reported":
                fact.state = "finished"
            self.listed.add(number)
            self.model.cursor = max(self.model.cursor, number)

    @rule(numbers=LISTS)
    def poll(self, numbers: list[int]) -> None:
        self.run(self.node.take(*map(activity, numbers)))
        self._list(numbers)

    @precondition(lambda self: self.token is None)
    @rule()
    def begin_sweep(self) -> None:
        self.token = self.run(self.node.journal.begin_sweep())
        self.before = {number for number, fact in self.model.rows.items() if fact.state == "received"}
        self.swept = set()

    @precondition(lambda self: self.token is not None)
    @rule(numbers=LISTS)
    def read_page(self, numbers: list[int]) -> None:
        self.run(self.node.journal.take([activity(number) for number in numbers], sweep=self.token))
        self._list(numbers)
        self.swept |= set(numbers)

    @precondition(lambda self: self.token is not None)
    @rule(last=NUMBERS)
    def end_sweep(self, last: int) -> None:
        assert self.token is not None
        gone = sorted(n for n in self.before - self.swept if self.model.rows[n].state == "received")
        assert self.run(self.node.journal.end_sweep(self.token, last=last)) == gone
        for number in gone:
            fact = self.model.rows[number]
            fact.state = "finished"
            fact.code = ReasonCode.OUTCOME_UNKNOWN if fact.uncertain else ReasonCode.WITHDRAWN
        if self.model.lost:
            self.model.lost = False
            self.model.mark = max([self.model.mark, last, *self.swept])
        self.token = None

    @precondition(lambda self: self.token is None)
    @rule(numbers=LISTS, last=NUMBERS)
    def sweep(self, numbers: list[int], last: int) -> None:
        self.begin_sweep()
        self.read_page(numbers)
        self.end_sweep(last)

    @rule()
    def hear_the_revision(self) -> None:
        """Any answer carries the highest revision that was ever sent; a sweep begins anew when ours is older."""
        old = self.model.revision < self.seen
        assert self.run(self.node.journal.check_revision(self.seen)) is old
        if old:
            self.model.lost, self.model.revision, self.token = True, self.seen, None
            for fact in self.model.rows.values():
                fact.uncertain |= fact.state == "received" or (fact.state == "started" and not fact.called)

    @invariant()
    def every_call_carries_the_revision(self) -> None:
        self.seen = max(self.seen, self.node.journal.revision)

    @rule(numbers=LISTS)
    def answer_reports(self, numbers: list[int]) -> None:
        self.run(self.node.report(*numbers))
        for number in numbers:
            if number in self.model.rows and self.model.rows[number].state == "finished":
                self.model.rows[number].state = "reported"

    # --- the lanes

    @rule(number=NUMBERS)
    def start(self, number: int) -> None:
        fact = self.model.rows.get(number)
        may = fact is not None and fact.state == "received" and not fact.uncertain and not self.model.lost
        assert self.run(self.node.start(number)) is may
        if may and fact is not None:
            fact.state = "started"
            self.model.revision += 1

    @rule(number=NUMBERS)
    def call(self, number: int) -> None:
        fact = self.model.rows.get(number)
        facts: dict[str, Any] = {"running": True, "incarnation": "inc-1", "boot_id": "boot-1", "detail": {}}
        try:
            self.run(self.node.journal.record(number, "restart", decisive=True, **facts))
        except JournalError:
            assert fact is None or fact.state != "started" or fact.uncertain
        else:
            assert fact is not None
            assert (fact.state, fact.uncertain) == ("started", False)
            fact.called = True

    @rule(number=NUMBERS)
    def finish(self, number: int) -> None:
        fact = self.model.rows.get(number)
        may = fact is not None and fact.state in {"received", "started"}
        assert self.run(self.node.finish(number)) is may
        if may and fact is not None:
            fact.state = "finished"

    # --- the machine

    @rule()
    def prune(self) -> None:
        gone = [number for number, fact in self.model.rows.items() if fact.state == "reported"]
        assert self.run(self.node.journal.prune(days=0, count=0)) == len(gone)
        for number in gone:
            del self.model.rows[number]
            self.model.pruned = max(self.model.pruned, number)

    @rule()
    def restart(self) -> None:
        self.run(self.node.reopen())
        self.listed, self.token = set(), None

    @rule()
    def copy_away(self) -> None:
        self.run(self.node.reopen(self.node.copy))
        self.listed, self.token = set(), None
        self.copied = deepcopy(self.model)

    @precondition(lambda self: self.copied is not None)
    @rule()
    def put_back(self) -> None:
        assert self.copied is not None
        backup = self.folder / "backup"
        self.run(self.node.reopen(lambda: shutil.copy(backup, self.node.path)))
        self.listed, self.token = set(), None
        self.model = deepcopy(self.copied)

    @rule()
    def lose(self) -> None:
        self.run(self.node.reopen(self.node.path.unlink))
        self.listed, self.token = set(), None
        self.model = Model(lost=True)

    # --- both say the same

    @invariant()
    def the_rows_are_the_same(self) -> None:
        rows = self.run(self.node.journal.recent(100))
        assert {row.id: (str(row.state), row.uncertain, row.reason.code if row.reason else None) for row in rows} == {
            number: (fact.state, fact.uncertain, fact.code) for number, fact in self.model.rows.items()
        }

    @invariant()
    def the_head_is_the_same(self) -> None:
        journal, model = self.node.journal, self.model
        assert (journal.cursor, journal.revision, journal.lost) == (model.cursor, model.revision, model.lost)
        assert ("journal_lost" in self.node.conditions) is model.lost

    @invariant()
    def the_questions_have_the_same_answers(self) -> None:
        by_state: dict[str, list[int]] = {}
        for number, fact in sorted(self.model.rows.items()):
            by_state.setdefault(fact.state, []).append(number)
        waiting = [number for number in by_state.get("received", []) if number in self.listed]
        assert self.run(self.node.next_id()) == (None if self.model.lost else next(iter(waiting), None))
        assert [row.id for row in self.run(self.node.journal.unfinished())] == by_state.get("started", [])
        outbox = self.run(self.node.journal.outbox(100))
        assert sorted(report.activity_id for report in outbox) == by_state.get("finished", [])
        counts = self.run(self.node.journal.counts())
        assert counts.waiting == len(by_state.get("received", [])) + len(by_state.get("started", []))


def test_the_journal_is_as_its_model_says() -> None:
    with structlog.testing.capture_logs():
        run_state_machine_as_test(
            JournalBesideModel,
            settings=settings(
                max_examples=20,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
