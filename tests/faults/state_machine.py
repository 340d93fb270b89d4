"""Any interleaving of dispatch, work, death, recovery and report, on a simulated node; found and shrunk by Hypothesis.

The real journal (SQLite on a disk), link and lanes run on a simulated clock, over runtimes that behave as with the
process, Docker and systemd drivers, and against a simulated Supervisor. The agent goes on boundary by boundary: it can
be made to wait, and to die, before and after each write and each call. What is judged is the node's own record of runs,
and what the Supervisor was told. What the docs do not promise is left out: `tests.faults.themes` names it. How strong
the machine is, `weakened` shows.

`python -m tests.faults.state_machine SECONDS SEED` runs it with fresh seeds until the time is over, and prints a tally.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

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
from tests.faults.simulated.life import EVERYBODY, LINK, Stop
from tests.faults.simulated.node import ENDS_AT_ONCE, GOOD, NEVER_READY, Node
from tests.faults.tally import Tally
from tests.faults.themes import ALL_OF_THEM, THEMES

Rule = TypeVar("Rule", bound=Callable[..., Any])

ACTIONS = st.sampled_from(
    (
        "restart",
        "restart",
        "restart",
        "start",
        "stop",
        "stop",
        *tuple(f"reconfigure:{number}" for number in (*GOOD, NEVER_READY, ENDS_AT_ONCE)),
    )
)
BAD = st.sampled_from([NEVER_READY, ENDS_AT_ONCE])
SELDOM = st.sampled_from([False, False, False, True])
OFTEN = st.sampled_from([True, True, True, False])
KINDS = st.sampled_from(DriverKind)
RUNTIMES = st.sampled_from(RuntimeName)
BOUNDARIES = st.integers(1, 9) | st.integers(1, 14) | st.integers(15, 30)
AGAIN = st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7])
WHO = st.sampled_from([EVERYBODY, EVERYBODY, RuntimeName.IGGY, RuntimeName.CONNECTORS, LINK])
EXPIRES_IN = 8.0
"""Seconds after which what was asked for is to begin no more, in stories with expiry."""
TURN = 5.0
"""Seconds that the agent goes on at most, if it passes fewer boundaries than it may."""

STEPS = 30
"""Sentences of one story, at most."""
EXAMPLES = 25
"""Stories for one seed, in the campaign."""


@dataclass
class Counts:
    """What the stories came to."""

    examples: int = 0
    injected: int = 0
    activities: int = 0
    effects: int = 0
    reports: int = 0


def with_(*kinds: str) -> Callable[[Rule], Rule]:
    """Make a rule one of the stories with these kinds of things."""

    def decorate(sentence: Rule) -> Rule:
        return precondition(lambda self: not self.kinds.isdisjoint(kinds))(sentence)

    return decorate


def after(boundaries: int, who: str = EVERYBODY) -> Stop:
    """Halt at so many boundaries from here."""
    left = iter(range(boundaries - 1))
    return lambda passes, _: who in {EVERYBODY, passes} and next(left, None) is None


def at(who: str, what: str) -> Stop:
    """Halt at one boundary, the next time that it is passed."""
    return lambda *passes: passes == (who, what)


class AnyInterleaving(RuleBasedStateMachine):
    """Each rule is a sentence of the story."""

    activities: Bundle[int] = Bundle("activities")
    themes: ClassVar[Sequence[str]] = (*THEMES, ALL_OF_THEM)
    counts: ClassVar[Counts]

    node: Node

    def __init__(self) -> None:
        super().__init__()
        self.kinds: frozenset[str] = frozenset()
        self.old_copy_is_back = False

    @initialize(
        about=st.runner().flatmap(lambda machine: st.sampled_from(machine.themes)),
        iggy=KINDS,
        connectors=KINDS,
        revived=st.booleans(),
        down=SELDOM,
    )
    def a_story(self, about: str, iggy: DriverKind, connectors: DriverKind, *, revived: bool, down: bool) -> None:
        self.kinds = THEMES.get(about) or frozenset().union(*THEMES.values())
        kinds = {RuntimeName.IGGY: iggy, RuntimeName.CONNECTORS: connectors}
        self.node = Node(kinds, revived=revived, running=not down)
        self.node.start()

    def _lives(self) -> bool:
        return self.node.life is not None

    def _is_dead(self) -> bool:
        return self.node.life is None

    # --- the user and the Supervisor

    @rule(target=activities, runtime=RUNTIMES, action=ACTIONS, at_once=OFTEN)
    def the_user_asks_for(self, action: str, runtime: RuntimeName, *, at_once: bool) -> int:
        return self._ask(action, runtime, visible=at_once or "lists" not in self.kinds)

    def _ask(self, action: str, runtime: RuntimeName, *, visible: bool = True) -> int:
        return self.node.dispatch(
            runtime, action, expires_in=EXPIRES_IN if "expiry" in self.kinds else None, visible=visible
        )

    @with_("lists")
    @precondition(lambda self: any(not item.visible for item in self.node.supervisor.items.values()))
    @rule()
    def what_was_not_listed_yet_is_listed(self) -> None:
        for item in self.node.supervisor.items.values():
            item.visible = True
        self.node.supervisor.stir()

    @with_("lists")
    @rule(twice=st.booleans())
    def from_now_on_each_is_listed(self, *, twice: bool) -> None:
        self.node.supervisor.twice = twice

    @with_("lists")
    @rule()
    def what_is_still_listed_is_listed_with_another_content(self) -> None:
        for case in self.node.judge.cases.values():
            if case.item.listed and case.journaled:
                action = "stop" if case.verb != "stop" else "restart"
                case.item.other = {**case.item.raw, "action": action, "config": None}
                self.node.injected += 1

    @with_("lists")
    @rule()
    def the_user_gives_up_what_has_not_begun(self) -> None:
        for case in self.node.judge.cases.values():
            if case.item.listed and case.begun is None:
                case.item.wanted = False

    @with_("forgetting")
    @precondition(lambda self: not self.old_copy_is_back)
    @rule(activity=activities)
    def the_supervisor_forgets_the_report_of(self, activity: int) -> None:
        item = self.node.supervisor.items[activity]
        if item.report is not None:
            item.report = None
            self.node.injected += 1
            self.node.supervisor.stir()

    @with_("network")
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
    @rule(who=WHO, boundaries=BOUNDARIES)
    def the_agent_goes_on(self, who: str, boundaries: int) -> None:
        self.node.go(TURN, stop=after(boundaries), only=who)

    @precondition(_lives)
    @rule(seconds=st.sampled_from([TURN, 30.0]))
    def the_agent_has_its_way(self, seconds: float) -> None:
        self.node.go(seconds)

    @precondition(_lives)
    @rule(boundaries=BOUNDARIES, calls_are_lost=st.booleans(), begins_anew=OFTEN)
    def the_agent_goes_on_and_dies(self, boundaries: int, *, calls_are_lost: bool, begins_anew: bool) -> None:
        self.node.go(TURN, stop=after(boundaries))
        self._die(calls_are_lost=calls_are_lost, begins_anew=begins_anew)

    @precondition(_lives)
    @rule(
        target=activities,
        runtime=RUNTIMES,
        action=ACTIONS,
        boundaries=BOUNDARIES,
        calls_are_lost=st.booleans(),
        and_again_after=AGAIN,
    )
    def the_user_asks_and_the_agent_dies_at_it(
        self, action: str, runtime: RuntimeName, boundaries: int, *, calls_are_lost: bool, and_again_after: int
    ) -> int:
        activity = self._ask(action, runtime)
        self.node.go(2 * TURN, stop=after(boundaries, runtime))
        self._die(calls_are_lost=calls_are_lost, begins_anew=True)
        if and_again_after:
            self.node.go(2 * TURN, stop=after(and_again_after, runtime))
            self._die(calls_are_lost=calls_are_lost, begins_anew=True)
        return activity

    @precondition(_lives)
    @rule(target=activities, runtime=RUNTIMES, number=BAD, boundaries=st.integers(1, 14), calls_are_lost=st.booleans())
    def the_user_asks_for_a_bad_config_and_the_agent_dies_on_its_way_back(
        self, number: int, runtime: RuntimeName, boundaries: int, *, calls_are_lost: bool
    ) -> int:
        activity = self._ask(f"reconfigure:{number}", runtime)
        self.node.go(2 * TURN, stop=at(runtime, "after the decision to go back was written"))
        self.node.go(TURN, stop=after(boundaries, runtime))
        self._die(calls_are_lost=calls_are_lost, begins_anew=True)
        return activity

    @with_("lists")
    @precondition(_lives)
    @rule(target=activities, runtime=RUNTIMES, action=ACTIONS)
    def the_user_asks_and_gives_it_up_while_the_agent_is_dead(self, action: str, runtime: RuntimeName) -> int:
        activity = self._ask(action, runtime)
        self.node.go(TURN, stop=at(runtime, "before started is written"))
        self._die(calls_are_lost=False, begins_anew=False)
        self.the_user_gives_up_what_has_not_begun()
        self.node.start()
        return activity

    def _die(self, *, calls_are_lost: bool, begins_anew: bool) -> None:
        where = self.node.die(calls_are_lost=calls_are_lost)
        note(f"#   it died {' and '.join(where) or 'at rest'}")
        if begins_anew:
            self.node.start()

    @precondition(_is_dead)
    @rule()
    def the_agent_starts(self) -> None:
        self.node.start()
        self.node.go(0)

    # --- the node

    @rule(seconds=st.sampled_from([0.4, 3.0, EXPIRES_IN]))
    def time_passes(self, seconds: float) -> None:
        self.node.pass_time(seconds)

    @with_("runs")
    @rule(runtime=RUNTIMES)
    def the_runtime_dies(self, runtime: RuntimeName) -> None:
        self.node.worlds[runtime].die()
        self.node.injected += 1

    @with_("slowness")
    @rule(runtime=RUNTIMES, slowly=st.booleans())
    def runs_get_ready(self, runtime: RuntimeName, *, slowly: bool) -> None:
        world = self.node.worlds[runtime]
        world.slow = slowly
        if not slowly:
            world.get_ready()

    @with_("reboots")
    @rule(the_runtimes_come_up=st.booleans())
    def the_machine_reboots(self, *, the_runtimes_come_up: bool) -> None:
        self.node.reboot(comes_up=the_runtimes_come_up)

    @with_("disk")
    @precondition(_lives)
    @rule(writes=st.integers(min_value=1, max_value=3), boundaries=BOUNDARIES)
    def the_agent_goes_on_and_the_disk_refuses(self, writes: int, boundaries: int) -> None:
        self.node.go(TURN, stop=after(boundaries))
        self.node.disk.writes_that_fail = writes

    # --- the journal's file

    @with_("copies")
    @precondition(lambda self: not self.old_copy_is_back)
    @rule()
    def the_journal_is_copied(self) -> None:
        self.node.copy_journal()

    @with_("copies")
    @precondition(
        lambda self: self.node.copied is not None and not self.old_copy_is_back and self.node.copy_is_noticed()
    )
    @rule()
    def the_old_copy_of_the_journal_is_put_back(self) -> None:
        if self.node.life is not None:
            self.node.die(calls_are_lost=False)
        self._put_back()

    @with_("copies")
    @precondition(lambda self: self._lives() and self.node.copied is not None and not self.old_copy_is_back)
    @rule(target=activities, runtime=RUNTIMES, action=ACTIONS, boundaries=BOUNDARIES)
    def the_user_asks_and_the_old_copy_is_put_back_in_it(
        self, action: str, runtime: RuntimeName, boundaries: int
    ) -> int:
        activity = self._ask(action, runtime)
        self.node.go(TURN, stop=after(boundaries, runtime))
        noticed = self.node.copy_is_noticed()
        self._die(calls_are_lost=False, begins_anew=not noticed)
        if noticed:
            self._put_back()
        return activity

    @precondition(lambda self: self.kinds >= {"copies", "reboots"} and not self.old_copy_is_back and self._lives())
    @rule(
        target=activities,
        runtime=RUNTIMES,
        action=ACTIONS,
        then=ACTIONS,
        boundaries=BOUNDARIES,
        the_runtimes_come_up=st.booleans(),
    )
    def the_journal_is_copied_in_an_action_and_put_back_after_a_later_one_and_a_boot(
        self, action: str, runtime: RuntimeName, then: str, boundaries: int, *, the_runtimes_come_up: bool
    ) -> int:
        activity = self._ask(action, runtime)
        self.node.go(TURN, stop=after(boundaries, runtime))
        self.node.copy_journal()
        self._ask(then, runtime)
        self.node.go(30.0)
        self.node.reboot(comes_up=the_runtimes_come_up)
        if self.node.copy_is_noticed():
            self._put_back()
        return activity

    def _put_back(self) -> None:
        self.node.put_back()
        self.old_copy_is_back = True
        self.node.start()
        if self.node.copy_under_way:  # recovery may wait for the Supervisor's word, for two seconds; it is to come
            self.node.supervisor.reachable = True
            self.node.go(TURN)

    @with_("loss")
    @precondition(lambda self: self._lives() and not self.old_copy_is_back)
    @rule(target=activities, runtime=RUNTIMES, action=ACTIONS, boundaries=BOUNDARIES, untold=st.booleans())
    def the_user_asks_and_the_agent_dies_at_it_with_its_journal(
        self, action: str, runtime: RuntimeName, boundaries: int, *, untold: bool
    ) -> int:
        activity = self._ask(action, runtime)
        if untold:
            self.node.go(TURN, stop=at(runtime, "after started was written"))
            self.node.supervisor.reachable = False
        self.node.go(TURN, stop=after(boundaries, runtime))
        self._die(calls_are_lost=False, begins_anew=False)
        self.node.lose_journal()
        self.node.supervisor.reachable = True
        self.node.start()
        return activity

    @with_("loss")
    @precondition(lambda self: not self.old_copy_is_back)
    @rule()
    def the_journal_is_lost(self) -> None:
        if self.node.life is not None:
            self.node.die(calls_are_lost=False)
        self.node.lose_journal()
        self.node.start()

    @with_("loss")
    @precondition(lambda self: not self.old_copy_is_back)
    @rule(activity=activities)
    def the_journal_is_lost_and_after_a_sweep_the_supervisor_forgets_the_report_of(self, activity: int) -> None:
        self.the_journal_is_lost()
        self.node.go(TURN)
        self.the_supervisor_forgets_the_report_of(activity)

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
        node, counts = self.node, AnyInterleaving.counts
        counts.examples += 1
        counts.injected += node.injected + node.disk.failed + node.supervisor.lost
        counts.activities += len(node.judge.cases)
        counts.effects += sum(len(world.effects) for world in node.worlds.values())
        counts.reports += sum(item.report is not None for item in node.supervisor.items.values())


AnyInterleaving.counts = Counts()


def explore(
    examples: int, *, about: str | None = None, steps: int = STEPS, from_seed: int | None = None, shrink: bool = True
) -> None:
    """Run the machine, with a seed or as chance has it; raises what it finds, shrunk.

    Args:
        examples: How many stories.
        about: Which of the themes; None: any.
        steps: Of one story, at most.
        from_seed: The seed; None: a new one.
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

    class Machine(AnyInterleaving):
        themes = AnyInterleaving.themes if about is None else (about,)

    run_state_machine_as_test(Machine if from_seed is None else seed(from_seed)(Machine), settings=chosen)


def explore_for(budget: Budget, first_seed: int, tally: Tally) -> None:
    """Run the machine with fresh seeds until the budget is over, and count."""
    number = first_seed
    while budget.more():
        AnyInterleaving.counts = Counts()
        try:
            explore(EXAMPLES, from_seed=number)
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


FAULTS: tuple[Fault, ...] = (Fault("machine.state", "any interleaving, simulated driver", run, takes=10.0),)


def main(seconds: str, first_seed: str, most: str) -> None:
    """Run the machine for so many seconds, and print what was counted as JSON."""
    tally = Tally(FAULTS[0].name)
    with contextlib.redirect_stdout(sys.stderr):
        explore_for(Budget(float(seconds), most=int(most) or None), int(first_seed), tally)
    print(json.dumps(tally.as_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
