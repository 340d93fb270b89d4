"""Any interleaving of dispatch, work, death, recovery and report, on a simulated node; found and shrunk by Hypothesis.

The real journal (SQLite on a disk), link and lanes run on a simulated clock, over runtimes that behave as with the
process, Docker and systemd drivers, and against a simulated Supervisor. The agent goes on boundary by boundary: it can
be made to wait, and to die, before and after each write and each call. What is judged is the node's own record of runs,
and what the Supervisor was told.

Left out, because the docs do not promise it (`NOT_PROMISED`).

`python -m tests.faults.state_machine SECONDS SEED` runs it with fresh seeds until the time is over, and prints a tally.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.protocol import DriverKind, RuntimeName
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.simulated.life import EVERYBODY, LINK
from tests.faults.simulated.node import ENDS_AT_ONCE, GOOD, NEVER_READY, Node
from tests.faults.tally import Tally

NOT_PROMISED: Mapping[str, str] = {
    "untold": "an old copy of the journal is put back before the Supervisor heard of what was begun since",
    "midway": "an old copy that was made while an activity was under way is put back once that one is over",
    "twice": "a journal is lost, or a report forgotten, after an old copy was put back",
    "somebody": "somebody else starts or stops the runtime between the reading of A and the call",
    "restored": "the Supervisor itself is put back from a backup",
}
"""What no rule does, and why it is nobody's bug; see docs/recovery.md."""

ACTIONS = st.sampled_from(
    ("restart", "restart", "restart", "start", "stop", "stop")
    + tuple(f"reconfigure:{number}" for number in (*GOOD, NEVER_READY, ENDS_AT_ONCE))
)
SELDOM = st.sampled_from([False, False, False, True])
KINDS = st.sampled_from(DriverKind)
RUNTIMES = st.sampled_from(RuntimeName)
POINTS = (
    "before started is written",
    "after started was written",
    "before the call stop is written",
    "after the call stop was written",
    "the call stop was made",
    "before the call start is written",
    "after the call start was written",
    "the call start was made",
    "before the call restart is written",
    "after the call restart was written",
    "the call restart was made",
    "after the call switch was written",
    "after current was switched",
    "after the call recreate was written",
    "the container was made anew",
    "after the decision to go back was written",
    "before finished is written",
    "after finished was written",
    "after an answer was written",
    "before the end of a sweep is written",
    "a report was answered",
    "after reported was written",
)
WHO = st.sampled_from([EVERYBODY, EVERYBODY, RuntimeName.IGGY, RuntimeName.CONNECTORS, LINK])
LONGEST_TURN = 5.0


STEPS = 40
"""Sentences of one story, at most."""
EXAMPLES = 100
"""Stories for one seed, in the campaign."""


@dataclass
class Counts:
    """What the stories came to."""

    examples: int = 0
    injected: int = 0
    activities: int = 0
    effects: int = 0
    reports: int = 0


class AnyInterleaving(RuleBasedStateMachine):
    """Each rule is a sentence of the story."""

    activities: Bundle[int] = Bundle("activities")
    counts: ClassVar[Counts]

    node: Node

    def __init__(self) -> None:
        super().__init__()
        self.old_copy_is_back = False

    @initialize(iggy=KINDS, connectors=KINDS, revived=st.booleans(), down=SELDOM, twice=SELDOM, journal_suffers=SELDOM)
    def a_node(  # noqa: PLR0913 - what makes one node differ from another
        self,
        iggy: DriverKind,
        connectors: DriverKind,
        *,
        revived: bool,
        down: bool,
        twice: bool,
        journal_suffers: bool,
    ) -> None:
        self.journal_suffers = journal_suffers
        kinds = {RuntimeName.IGGY: iggy, RuntimeName.CONNECTORS: connectors}
        self.node = Node(kinds, revived=revived, running=not down)
        self.node.supervisor.twice = twice
        self.node.start()

    def _lives(self) -> bool:
        return self.node.life is not None

    # --- the user and the Supervisor

    @rule(
        target=activities,
        runtime=RUNTIMES,
        action=ACTIONS,
        expires_in=st.sampled_from([None, None, None, 8.0]),
        seen_at_once=st.sampled_from([True, True, True, False]),
    )
    def the_user_asks_for(
        self, action: str, runtime: RuntimeName, *, expires_in: float | None, seen_at_once: bool
    ) -> int:
        return self.node.dispatch(runtime, action, expires_in=expires_in, visible=seen_at_once)

    @precondition(lambda self: any(not item.visible for item in self.node.supervisor.items.values()))
    @rule()
    def what_was_not_listed_yet_is_listed(self) -> None:
        for item in self.node.supervisor.items.values():
            item.visible = True
        self.node.supervisor.stir()

    @rule(activity=activities)
    def it_is_listed_with_another_content(self, activity: int) -> None:
        item = self.node.supervisor.items[activity]
        if item.given and item.listed:
            action = "stop" if item.verb != "stop" else "restart"
            item.other = {**item.raw, "action": action, "config": None}
            self.node.injected += 1

    @rule(activity=activities)
    def the_user_gives_it_up(self, activity: int) -> None:
        self.node.supervisor.items[activity].wanted = False

    @precondition(lambda self: not self.old_copy_is_back)
    @rule(activity=activities)
    def the_supervisor_forgets_the_report_of(self, activity: int) -> None:
        item = self.node.supervisor.items[activity]
        if item.report is not None:
            item.report = None
            self.node.injected += 1
            self.node.supervisor.stir()

    @rule(how=st.sampled_from(["is cut", "is back", "loses the next answer to a report"]))
    def the_network(self, how: str) -> None:
        supervisor = self.node.supervisor
        if how == "loses the next answer to a report":
            supervisor.answers_lost += 1
        else:
            supervisor.reachable = how == "is back"
            self.node.injected += not supervisor.reachable

    # --- the agent

    @precondition(_lives)
    @rule(who=WHO, boundaries=st.integers(min_value=1, max_value=12))
    def the_agent_goes_on(self, who: str, boundaries: int) -> None:
        left = iter(range(boundaries - 1))
        self.node.go(LONGEST_TURN, stop=lambda _: next(left, None) is None, only=who)

    @precondition(_lives)
    @rule(seconds=st.sampled_from([LONGEST_TURN, 30.0]))
    def the_agent_has_its_way(self, seconds: float) -> None:
        self.node.go(seconds)

    @precondition(_lives)
    @rule(at=st.sampled_from(POINTS), calls_are_lost=st.booleans(), begins_anew=st.booleans())
    def the_agent_goes_on_and_dies(self, at: str, *, calls_are_lost: bool, begins_anew: bool) -> None:
        self.node.go(2 * LONGEST_TURN, stop=lambda what: what == at)
        self._die(calls_are_lost=calls_are_lost)
        if begins_anew:
            self.node.start()

    @precondition(_lives)
    @rule(
        target=activities,
        runtime=RUNTIMES,
        action=ACTIONS,
        at=st.sampled_from(POINTS),
        calls_are_lost=st.booleans(),
    )
    def the_user_asks_and_the_agent_dies_at_it(
        self, action: str, runtime: RuntimeName, at: str, *, calls_are_lost: bool
    ) -> int:
        activity = self.node.dispatch(runtime, action, expires_in=None, visible=True)
        self.node.go(2 * LONGEST_TURN, stop=lambda what: what == at)
        self._die(calls_are_lost=calls_are_lost)
        return activity

    def _die(self, *, calls_are_lost: bool) -> None:
        where = self.node.die(calls_are_lost=calls_are_lost)
        note(f"#   the agent died {' and '.join(where) or 'at rest'}")

    @precondition(lambda self: not self._lives())
    @rule()
    def the_agent_starts(self) -> None:
        self.node.start()
        self.node.go(0)

    # --- the node

    @rule(seconds=st.sampled_from([0.4, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.node.pass_time(seconds)

    @rule(runtime=RUNTIMES)
    def the_runtime_dies(self, runtime: RuntimeName) -> None:
        self.node.worlds[runtime].die()
        self.node.injected += 1

    @rule(runtime=RUNTIMES, slowly=st.booleans())
    def runs_get_ready(self, runtime: RuntimeName, *, slowly: bool) -> None:
        world = self.node.worlds[runtime]
        world.slow = slowly
        if not slowly:
            world.get_ready()

    @rule(the_runtimes_come_up=st.booleans())
    def the_machine_reboots(self, *, the_runtimes_come_up: bool) -> None:
        self.node.reboot(comes_up=the_runtimes_come_up)

    @precondition(_lives)
    @rule(writes=st.integers(min_value=1, max_value=3))
    def the_disk_refuses_the_next(self, writes: int) -> None:
        self.node.disk.writes_that_fail = writes

    # --- the journal's file

    @precondition(
        lambda self: self.journal_suffers and not any(case.under_way for case in self.node.judge.cases.values())
    )
    @rule()
    def the_journal_is_copied(self) -> None:
        self.node.copy_journal()

    @precondition(lambda self: self._lives() and self.node.copied is not None and not self.old_copy_is_back)
    @rule()
    def the_agent_dies_and_the_copy_is_put_back(self) -> None:
        node = self.node
        assert node.life is not None
        journal = node.life.journal
        told = journal is None or node.supervisor.revision >= journal.revision
        node.die(calls_are_lost=False)
        if told:
            node.put_back()
            self.old_copy_is_back = True

    @precondition(lambda self: self.journal_suffers and not self._lives() and not self.old_copy_is_back)
    @rule()
    def the_journal_is_lost(self) -> None:
        self.node.lose_journal()

    # --- the end

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        try:
            if self.node.machine.wrong is None and sys.exc_info()[0] is None:
                self.node.heal()
        finally:
            self._count()
            self.node.close()

    def _count(self) -> None:
        node, counts = self.node, type(self).counts
        counts.examples += 1
        counts.injected += node.injected + node.disk.failed + node.supervisor.lost
        counts.activities += len(node.judge.cases)
        counts.effects += sum(len(world.effects) for world in node.worlds.values())
        counts.reports += sum(item.report is not None for item in node.supervisor.items.values())


AnyInterleaving.counts = Counts()


def explore(examples: int, *, steps: int = STEPS, at: int | None = None, shrink: bool = True) -> None:
    """Run the machine, with a seed or as chance has it; raises what it finds, shrunk.

    Args:
        examples: How many stories.
        steps: Of one story, at most.
        at: The seed.
        shrink: Whether what is found is made as short as can be.
    """
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    machine = AnyInterleaving if at is None else seed(at)(AnyInterleaving)
    run_state_machine_as_test(machine, settings=chosen)


def explore_for(budget: Budget, first_seed: int, tally: Tally) -> None:
    """Run the machine with fresh seeds until the budget is over, and count."""
    number = first_seed
    while budget.more():
        AnyInterleaving.counts = Counts()
        try:
            explore(EXAMPLES, at=number)
        except Exception as error:  # noqa: BLE001 - each is a finding, told with its story
            tally.fail(f"seed {number}", error)
        counts = AnyInterleaving.counts
        tally.injected += counts.injected
        tally.cases += counts.examples
        tally.effects_expected += counts.effects
        tally.effects_seen += counts.effects
        tally.reports_expected += counts.reports
        tally.reports_seen += counts.reports
        number += 1


async def run(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Run it in a process of its own: Hypothesis waits for nobody, and the clocks of this one are to go on."""
    arguments = (f"{budget.seconds}", f"{ground.seed % 2**32}", str(budget.most or 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.state_machine", *arguments), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        msg = f"the machine itself failed, exit code {process.returncode}"
        raise RuntimeError(msg)
    tally.add(Tally.from_json(json.loads(output)))


FAULTS: tuple[Fault, ...] = (Fault("machine.state", "any interleaving, simulated driver", run),)


def main(seconds: str, first_seed: str, most: str) -> None:
    """Run the machine for so many seconds, and print what was counted as JSON."""
    tally = Tally(FAULTS[0].name)
    with contextlib.redirect_stdout(sys.stderr):
        explore_for(Budget(float(seconds), most=int(most) or None), int(first_seed), tally)
    print(json.dumps(tally.as_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
