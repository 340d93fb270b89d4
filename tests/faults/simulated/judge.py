"""What must hold whatever happens, judged by what the simulated node and the Supervisor recorded themselves.

Of the agent the judge hears only where it is (it began this one, it wrote that verdict). What was done on the node it
takes from the worlds' own record of runs, and what was said from the Supervisor's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.journal import Taken
from agent.protocol import ReasonCode, ReportStatus, RuntimeName, Verb
from tests.faults.simulated.supervisor import Item, Supervisor
from tests.faults.simulated.world import Effect, Machine, Run, World
from tests.faults.tally import FalseReportError, LostError, RepeatedError

UNKNOWN = object()
"""The committed config, after a journal that knew it was lost."""
MOST_CALLS = 20
"""Calls that one activity may journal in one life of the agent: forward and back with all their parts, and some again
after a disk that failed; more is a loop, and a journal that grows for ever."""


@dataclass(eq=False)
class Case:
    """One activity, as the judge knows it."""

    item: Item
    world: World | None
    begun: int | None = None
    """The moment at which its `started` was written first."""
    chosen: int = 0
    chosen_at: float = 0.0
    journaled: bool = False
    under_way: bool = False
    back_to: object = None
    """The config that was committed when it began."""
    current_before: str | None = None
    finished: int | None = None
    code: str | None = None
    calls: int = 0
    calls_here: int = 0
    """In this life of the agent."""
    told_in: str | None = None
    """The boot in which its decisive call was journaled: there what became of it shows by A, also to an old copy of the
    journal."""
    never: str | None = None
    """Why it must never have an effect."""
    over: int | None = None
    """The moment from which on it must have no effect, whatever the journal knows: it had its verdict before."""
    doubted: bool = False
    """A journal that knew of it was lost or put back: its report may say that its outcome is unknown, and differ."""
    sent: dict[str, Any] | None = None

    @property
    def verb(self) -> str:
        return self.item.verb

    def effects(self, what: str) -> list[Effect]:
        effects = self.world.effects if self.world else []
        return [effect for effect in effects if effect.activity == self.item.id and effect.what == what]

    def __str__(self) -> str:
        return f"{self.item.raw['action']} of {self.item.raw['runtime']} (activity {self.item.id})"


@dataclass(eq=False)
class Judge:
    """Raises what the campaign counts: lost, repeated, or false."""

    machine: Machine
    supervisor: Supervisor
    worlds: dict[RuntimeName, World]
    cases: dict[int, Case] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    """What this life of the agent has journaled as listed."""
    committed: dict[RuntimeName, object] = field(default_factory=dict)

    def dispatched(self, item: Item) -> None:
        world = self.worlds.get(item.raw["runtime"])
        self.cases[item.id] = Case(item, world)

    # --- what it hears of the agent

    def find(self, error: AssertionError) -> None:
        self.machine.find(error)

    def taken(self, items: Sequence[Mapping[str, Any]], taken: Taken) -> None:
        for raw in items:
            case = self.cases[raw["id"]]
            if raw == case.item.raw:
                case.journaled = True
                self.known.add(raw["id"])
            elif raw["id"] not in taken.conflicts:
                self.find(FalseReportError(f"{case} came again with another content, and nothing was said of it"))

    def waiting(self, runtime: str) -> list[int]:
        return [
            number
            for number in self.known
            if (case := self.cases[number]).item.raw["runtime"] == runtime and case.finished is None
        ]

    def chosen(self, number: int, waiting: list[int]) -> None:
        case = self.cases[number]
        case.chosen, case.chosen_at = self.machine.next_moment(), self.machine.loop.now
        earlier = [other for other in waiting if self.cases[other].item.sequence < case.item.sequence]
        if earlier:
            self.find(FalseReportError(f"{case} is taken up before {', '.join(str(self.cases[e]) for e in earlier)}"))
        if number not in self.known:
            self.find(RepeatedError(f"{case} is taken up, and was not listed since the agent started"))

    def begun(self, number: int) -> None:
        case = self.cases[number]
        for other in self.cases.values():
            if other.under_way and other.world is case.world:
                self.find(FalseReportError(f"{case} begins while {other} is under way"))
        if case.begun is not None:
            self.find(RepeatedError(f"{case} begins a second time"))
        if case.never:
            self.find(RepeatedError(f"{case} begins, and {case.never}"))
        if case.item.expires_at is not None and case.chosen_at >= case.item.expires_at:
            self.find(RepeatedError(f"{case} begins, and has expired before"))
        case.begun = self.machine.next_moment()
        case.under_way = True
        if case.world is not None:
            case.back_to = self.committed.get(case.world.name)
            case.current_before = case.world.current()

    def called(self, number: int, facts: Mapping[str, Any]) -> None:
        case = self.cases[number]
        case.calls += 1
        case.calls_here += 1
        if case.calls_here > MOST_CALLS:
            self.find(FalseReportError(f"{case} journals call after call"))
        if facts["decisive"] and case.verb != Verb.RECONFIGURE:
            case.told_in = facts["boot_id"]

    def withdrawn(self, ids: list[int]) -> None:
        for number in ids:
            case = self.cases[number]
            case.finished = self.machine.next_moment()
            if not case.doubted:
                self._must_be_without_effect(case, "it was withdrawn")

    def finished(self, number: int, facts: Mapping[str, Any]) -> None:
        case = self.cases[number]
        case.under_way = False
        case.finished = self.machine.next_moment()
        case.code = facts["reason"].code if facts.get("reason") else None
        try:
            if case.code == ReasonCode.INTERNAL:
                msg = f"{case} ran into a fault of the agent: {facts['reason'].message}"
                raise FalseReportError(msg)
            if facts["status"] is ReportStatus.COMPLETED:
                self._check_claim(case, facts)
            self._check_refusal(case)
            if case.verb == Verb.RECONFIGURE and case.world is not None:
                self._check_current(case, case.world, facts)
        except AssertionError as error:
            self.find(error)

    def sent(self, report: dict[str, Any]) -> None:
        case = self.cases[report["activity_id"]]
        if case.sent is not None and case.sent != report:
            self.find(FalseReportError(f"the report of {case} changes: {_told(case.sent)}, then {_told(report)}"))
        case.sent = report

    # --- what happens to the agent

    def agent_starts(self) -> None:
        self.known.clear()
        now = self.machine.loop.now
        for case in self.cases.values():
            case.calls_here = 0
            expires_at = case.item.expires_at
            if case.under_way and not case.calls and expires_at is not None and now >= expires_at:
                case.never = "it expired before any call was made"

    def under_way(self) -> set[str | None]:
        """Return of all that is under way, as the journal has it now, the boot in which A tells about it."""
        return {case.told_in for case in self.cases.values() if case.under_way}

    def known_to_the_journal(self) -> dict[int, tuple[bool, int | None]]:
        """Return what is under way and what is over, as the journal has it now."""
        return {number: (case.under_way, case.finished) for number, case in self.cases.items()}

    def journal_is_doubted(self, knows: Mapping[int, tuple[bool, int | None]]) -> None:
        """The journal was lost, or put back from an old copy: what it knew may be said otherwise, never done again."""
        for number, case in self.cases.items():
            if case.item.given:
                case.doubted = True
                case.journaled = False
                case.item.other = None
                if case.finished is not None and case.code != ReasonCode.OUTCOME_UNKNOWN:
                    case.over = self.machine.next_moment()
                case.under_way, case.finished = knows.get(number, (False, None))
                case.sent = None
        for name in self.worlds:
            self.committed[name] = UNKNOWN

    # --- what must hold

    def check(self) -> None:
        """Raise what was found, and look at the effects of each activity."""
        if self.machine.wrong is not None:
            raise self.machine.wrong
        for case in self.cases.values():
            self._check_effects(case)
        for first, second in self.supervisor.conflicts:
            if not self.cases[first["activity_id"]].doubted:
                msg = f"a second report of another content: {_told(first)}, then {_told(second)}"
                raise FalseReportError(msg)

    def _check_effects(self, case: Case) -> None:
        begins, ends = case.effects("begin"), case.effects("end")
        for what, effects, most in (("begin", begins, _most_begins(case)), ("end", ends, _most_ends(case))):
            self._check_number(case, effects, most, f"makes runs {what}")
        if case.verb == Verb.RECONFIGURE and case.back_to not in {UNKNOWN, case.item.config_sha256}:
            forward = [effect for effect in begins if effect.run.config == case.item.config_sha256]
            back = [effect for effect in begins if effect not in forward]
            for direction, some in (("forward", forward), ("back", back)):
                self._check_number(case, some, 1, f"makes runs begin on its way {direction}")
        for effect in begins + ends:
            self._check_moment(case, effect)

    @staticmethod
    def _check_number(case: Case, effects: list[Effect], most: int, does: str) -> None:
        """See that an activity had no more effects than it calls for; in each boot, for a boot ends what runs."""
        for boot in {effect.boot for effect in effects}:
            here = [effect.run.name for effect in effects if effect.boot == boot]
            if len(here) > most:
                msg = f"{case} {does} {len(here)} times in one boot ({', '.join(here)}), not {most}"
                raise RepeatedError(msg)

    @staticmethod
    def _check_moment(case: Case, effect: Effect) -> None:
        if case.begun is None:
            msg = f"{case} has an effect, and never began"
            raise RepeatedError(msg)
        if case.never:
            msg = f"{case} has an effect, and {case.never}"
            raise RepeatedError(msg)
        if case.over is not None and effect.moment > case.over:
            msg = f"{case} is done again from an old journal, and it had its verdict"
            raise RepeatedError(msg)
        late = case.finished is not None and effect.moment > case.finished
        if late and case.code != ReasonCode.OUTCOME_UNKNOWN and not case.doubted:
            msg = f"{case} has an effect after its verdict"
            raise RepeatedError(msg)

    def _must_be_without_effect(self, case: Case, why: str) -> None:
        case.never = why
        if case.effects("begin") or case.effects("end"):
            self.find(FalseReportError(f"{case} had an effect, and {why}"))

    def _check_refusal(self, case: Case) -> None:
        if case.code in {ReasonCode.EXPIRED, ReasonCode.WITHDRAWN} and not case.doubted:
            self._must_be_without_effect(case, f"its report says {case.code}")
        world = case.world
        if world is None or case.verb not in {Verb.RESTART, Verb.RECONFIGURE} or case.doubted:
            return
        half = case.effects("end") and not case.effects("begin")
        excused = {ReasonCode.OUTCOME_UNKNOWN, ReasonCode.TIMEOUT, ReasonCode.ROLLBACK_FAILED}
        if half and case.code not in excused and world.running is None and not world.gap and len(world.runs):
            last = case.effects("end")[-1].run
            if world.runs[-1] is last:
                msg = f"{case} left its runtime down by half of what it was to do; it says {case.code}"
                raise LostError(msg)

    def _check_claim(self, case: Case, facts: Mapping[str, Any]) -> None:
        world = case.world
        assert world is not None, f"{case} completed, and the node has no such runtime"
        since = case.chosen if case.begun is None or case.doubted else case.begun
        run = _run_named(world, facts["evidence"].get("after", {}).get("incarnation"))
        running = facts["evidence"].get("after", {}).get("state") == "running"
        if case.verb == Verb.STOP:
            if not any(until is None or until > since for _, until in world.downs):
                msg = f"{case} completed, and it was never down since"
                raise FalseReportError(msg)
        elif case.verb != Verb.RECONFIGURE or running:
            self._check_run(case, run, since)
        if not case.doubted:
            self._check_changed(case, world, changed=bool(facts.get("changed")), since=since)

    def _check_run(self, case: Case, run: Run | None, since: int) -> None:
        if run is None or run.ready is None or (run.ended is not None and run.ended < since):
            msg = f"{case} completed, and {run and run.name} was not ready since"
            raise FalseReportError(msg)
        if case.verb == Verb.RESTART and run.began <= since:
            msg = f"{case} completed, and {run.name} began before it"
            raise FalseReportError(msg)
        if case.verb == Verb.RECONFIGURE and run.config != case.item.config_sha256:
            msg = f"{case} completed, and {run.name} has another config"
            raise FalseReportError(msg)

    def _check_changed(self, case: Case, world: World, *, changed: bool, since: int) -> None:
        done = case.effects("end" if case.verb == Verb.STOP else "begin")
        if not changed and (case.effects("begin") or case.effects("end")):
            msg = f"{case} says that nothing was changed, and it was"
            raise FalseReportError(msg)
        by_itself = [run for run in world.runs if run.by is None and run.began > since]
        ended = [run for run in world.runs if run.ended is not None and run.ended > since]
        if changed and case.verb in {Verb.START, Verb.RESTART} and not done and not by_itself:
            msg = f"{case} completed, and no run began"
            raise LostError(msg)
        if changed and case.verb == Verb.STOP and not done and not ended:
            msg = f"{case} completed, and no run ended"
            raise LostError(msg)
        if case.verb == Verb.RESTART and not changed:
            msg = f"{case} completed without a change"
            raise LostError(msg)

    def _check_current(self, case: Case, world: World, facts: Mapping[str, Any]) -> None:
        """See `current` where the verdict says that it is, and a stopped runtime stopped."""
        outcome = facts["evidence"].get("outcome")
        current, committed = world.current(), self.committed.get(world.name)
        if outcome == "applied" and current != case.item.config_sha256:
            msg = f"{case} is applied, and is not the current config"
            raise FalseReportError(msg)
        went_back = outcome in {"rolled_back", "not_applied"} and case.begun is not None
        # Untouched, it is what it was; and what a stopped runtime was given is current without being committed.
        target = committed if case.calls else case.current_before
        if went_back and target is not UNKNOWN and not case.doubted and current != target:
            msg = f"{case} is {outcome}, and the current config is not the one before it that was committed"
            raise FalseReportError(msg)
        if outcome == "rolled_back" and committed is not UNKNOWN:
            ready = [run for run in world.runs if run.config == committed and run.ready and not case.doubted]
            if not case.doubted and not any(run.began > (case.begun or 0) for run in ready):
                msg = f"{case} is rolled back, and no run with the committed config got ready"
                raise FalseReportError(msg)
        begins = case.effects("begin")
        if begins and case.begun is not None and not _was_up(world, case.begun, begins[0].moment):
            msg = f"{case} started a runtime that was down"
            raise RepeatedError(msg)

    def note_committed(self, number: int, facts: Mapping[str, Any]) -> None:
        """Remember what a run was seen ready with, as the last config that can be gone back to."""
        case = self.cases[number]
        if case.world is None or facts["status"] is not ReportStatus.COMPLETED or case.begun is None:
            return
        run = _run_named(case.world, facts["evidence"].get("after", {}).get("incarnation"))
        running = facts["evidence"].get("after", {}).get("state") == "running"
        if case.verb != Verb.STOP and running and run is not None and run.config == case.world.current():
            self.committed[case.world.name] = run.config


def _most_begins(case: Case) -> int:
    return {Verb.STOP: 0, Verb.RECONFIGURE: 2}.get(Verb(case.verb), 1)


def _most_ends(case: Case) -> int:
    return {Verb.START: 0, Verb.RECONFIGURE: 2}.get(Verb(case.verb), 1)


def _run_named(world: World, name: str | None) -> Run | None:
    return next((run for run in world.runs if run.name == name), None)


def _was_up(world: World, since: int, until: int) -> bool:
    return any(run.began < until and (run.ended is None or run.ended > since) for run in world.runs)


def _told(report: Mapping[str, Any]) -> str:
    reason = report.get("reason") or {}
    return f"{report['activity_id']} {report['status']} {reason.get('code') or ''} at {report['finished_at']}"
