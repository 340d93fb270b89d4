"""What is done while the agent is killed, and what then has to be true, seen from outside."""

import abc
import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from agent.protocol import ActivityStatus, DriverKind, ReasonCode
from tests.e2e import nursery
from tests.e2e.births import Birth
from tests.e2e.crash_node import IGGY, CrashNode
from tests.e2e.node_settings import Options
from tests.e2e.nursery import Manner
from tests.e2e.public_api import Activity
from tests.e2e.waiting import until
from tests.faults.tally import LostError, RepeatedError

SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"
USUAL = Options(stable_for=0.05, attempt_timeout=1.0, heartbeat_interval=30.0)
GOES_BACK, SECOND_BEGINS = "before:journal.go_back:1", "after:journal.start:2"
NEVER_READY = {"IGGY_HTTP_ENABLED": "false"}


class Scenario(abc.ABC):
    """One action on one node, again and again."""

    name: ClassVar[str]
    options: ClassVar[Options] = USUAL
    nodes: ClassVar[int] = 4
    """Nodes that share the cases."""
    waits: ClassVar[bool] = False
    """Whether most of its time goes by in waiting."""
    since: ClassVar[str] = ""
    """Its first own point: up to there it is like another scenario, which has these points."""
    until: ClassVar[str] = ""
    """The first point after its own ones."""
    recovery: ClassVar[bool] = False
    """Whether `make test` kills it at each point of a recovery too; `CRASHES=all` does so for all."""
    manner: ClassVar[Manner] = nursery.USUAL
    """How its agents differ from the usual ones."""
    dispatched: ClassVar[int] = 1
    """How many activities it dispatches."""
    _sizes: ClassVar[Iterator[int]] = itertools.count(2)
    proven: ClassVar[bool] = True
    """Whether it ends with a config with which the runtime was seen ready."""
    starts: ClassVar[int]
    """How often the action starts the runtime, whatever happens to the agent."""

    def __init__(self, node: CrashNode) -> None:
        self.node = node
        self._births: list[Birth] = []
        self._alive: list[Birth] = []
        self._current: str | None = None

    async def prepare(self) -> None:
        """Bring the node to where the action begins."""
        await self.node.bring_up()

    @abc.abstractmethod
    async def act(self) -> list[Activity]:
        """Dispatch, and return the finished activities."""

    def begin(self) -> None:
        """Remember how it was before."""
        self._births, self._current = self.node.births(), self.node.current()
        self._alive = self.node.alive()

    def born(self) -> list[Birth]:
        """Return the runs since `begin`."""
        return self.node.births()[len(self._births) :]

    def is_untouched(self) -> bool:
        """Tell whether all is as it was at `begin`: nothing began, nothing ended, and no config came into use."""
        now = self.node.alive(), self.node.current()
        return not self.born() and now == (self._alive, self._current)

    def started(self) -> int:
        """Count how often it was started since `begin`."""
        return len(self.born())

    async def judge(self, activities: list[Activity]) -> None:
        """Check everything that has to be true.

        Raises:
            RepeatedError: It was started too often, or runs twice.
            LostError: It was started too rarely, or an old run was left running, or its habitat lacks something.
            AssertionError: A report is not true, or the agent is not well.
        """
        self.count_effects()
        for activity in activities:
            again = await self.node.rig.api.get(activity.id)
            assert again.raw == activity.raw, "the report changed after it was recorded"
        assert await self.node.conditions() == []
        interrupted = self.node.was_interrupted()
        if len(activities) == 1 and interrupted is not None:
            assert activities[0].recovered is interrupted, "the report is wrong about being recovered"
        self.check(*activities)
        await asyncio.to_thread(self.node.habitat.check, self.node.node.state_dir, proven=self.proven)

    def count_effects(self) -> None:
        """Check that there was each effect once."""
        if self.started() > self.starts:
            msg = f"it was started {self.started()} times, and not {self.starts}"
            raise RepeatedError(msg)
        if self.started() < self.starts:
            msg = f"it was started {self.started()} times, and not {self.starts}"
            raise LostError(msg)
        if len(self.node.alive()) > 1:
            msg = "it runs twice"
            raise RepeatedError(msg)
        if self.starts and any(birth.alive for birth in self._births):
            msg = "an old run was left running"
            raise LostError(msg)

    @abc.abstractmethod
    def check(self, *activities: Activity) -> None:
        """Check what this scenario promises."""

    # --- what several of them check

    def _completed(self, activity: Activity) -> None:
        assert activity.status is ActivityStatus.COMPLETED
        assert activity.changed

    def _rejected(self, activity: Activity, code: ReasonCode) -> None:
        assert (activity.status, activity.code) == (ActivityStatus.REJECTED, code)

    def _runs(self) -> Birth:
        (run,) = self.node.alive()
        assert run == self.node.births()[-1]
        return run

    def _reported_run(self, activity: Activity) -> None:
        """Check that the run in the report is the one that runs."""
        assert activity.evidence["after"]["incarnation"] == self.node.incarnation(self._runs())

    async def _config(self, **values: str) -> tuple[str, str]:
        """Make a config; return its id, and the size by which a run that has it is known."""
        size = f"{next(self._sizes)} MB"
        config_id = await self.node.rig.api.create_config(IGGY, self.node.folder.name, {SIZE: size, **values})
        return str(config_id), size


class Start(Scenario):
    name = "start"
    starts = 1

    async def prepare(self) -> None:
        await self.node.bring_down()

    async def act(self) -> list[Activity]:
        return [await self._finished("start")]

    async def _finished(self, action: str) -> Activity:
        return await self.node.finished(await self.node.dispatch(action))

    def check(self, *activities: Activity) -> None:
        self._completed(activities[0])
        self._reported_run(activities[0])


class EndsAtOnce(Start):
    """The runtime ends as soon as it was started, and nothing revives it: there is nothing to see but that it was."""

    name = "start that fails"
    since = "after:effect.launch:1"
    proven = False
    starts = 1

    async def prepare(self) -> None:
        await self.node.bring_down()
        self.node.switch_faults("exit_at_start")

    def check(self, *activities: Activity) -> None:
        self._rejected(activities[0], ReasonCode.START_FAILED)
        assert self.node.alive() == []


class SlowLauncher(Start):
    """The process driver's launcher is on its way for longer than it takes to start the agent again."""

    name = "start by a slow launcher"
    manner = Manner(launch_delay=1.5)


class Restart(Start):
    name = "restart"
    recovery = True

    async def prepare(self) -> None:
        await self.node.bring_up()

    async def act(self) -> list[Activity]:
        return [await self._finished("restart")]


class Stop(Start):
    name = "stop"
    starts = 0

    async def prepare(self) -> None:
        await self.node.bring_up()

    async def act(self) -> list[Activity]:
        return [await self._finished("stop")]

    def check(self, *activities: Activity) -> None:
        self._completed(activities[0])
        assert self.node.alive() == []
        assert activities[0].evidence["after"]["state"] == "stopped"


class Reconfigure(Start):
    name = "reconfigure"
    size: str

    async def prepare(self) -> None:
        await self.node.bring_up()

    async def act(self) -> list[Activity]:
        config_id, self.size = await self._config()
        return [await self._finished(f"reconfigure:{config_id}")]

    def check(self, *activities: Activity) -> None:
        (activity,) = activities
        self._completed(activity)
        self._reported_run(activity)
        attempted, running = activity.evidence["attempted"], activity.evidence["running"]
        assert self._runs().environment[SIZE] == self.size
        assert self.node.current() == f"{attempted['config_id']}-{attempted['version']}"
        assert (activity.evidence["outcome"], activity.evidence["committed"]) == ("applied", True)
        known = {attempted["sha256"]}
        if activity.recovered and self.node.habitat.driver is DriverKind.SYSTEMD:
            # Of a run that began within a moment of the switch no later agent can tell: docs/systemd-driver.md.
            known.add(None)
        assert running["config_sha256"] in known


class ReconfigureStopped(Reconfigure):
    name = "reconfigure of a stopped one"
    proven = False
    starts = 0

    async def prepare(self) -> None:
        await self.node.bring_down()

    def check(self, *activities: Activity) -> None:
        (activity,) = activities
        self._completed(activity)
        attempted = activity.evidence["attempted"]
        assert self.node.alive() == []
        assert self.node.current() == f"{attempted['config_id']}-{attempted['version']}"
        assert (activity.evidence["outcome"], activity.evidence["committed"]) == ("applied", False)


class RolledBack(Start):
    """The new config never gets ready, so the runtime is started twice: with it, and with the last good one."""

    name = "reconfigure that is rolled back"
    since = GOES_BACK
    options = replace(USUAL, ready_timeout=4.0)
    nodes, waits = 10, True
    starts = 2
    size = ""

    async def prepare(self) -> None:
        await self.node.bring_up()
        if not self.size:
            config_id, self.size = await self._config()
            good = await self.node.run(f"reconfigure:{config_id}")
            assert good.status is ActivityStatus.COMPLETED, good.raw

    async def act(self) -> list[Activity]:
        config_id, _ = await self._config(**NEVER_READY)
        return [await self._finished(f"reconfigure:{config_id}")]

    def check(self, *activities: Activity) -> None:
        (activity,) = activities
        self._rejected(activity, ReasonCode.ROLLED_BACK)
        assert self.node.current() == self._current
        environment = self._runs().environment
        assert environment[SIZE] == self.size
        assert NEVER_READY.keys().isdisjoint(environment)
        assert activity.evidence["outcome"] == "rolled_back"
        assert activity.evidence["cause"]["code"] == ReasonCode.NOT_READY
        assert activity.evidence["running"]["incarnation"] == self.node.incarnation(self._runs())


class Superseded(Scenario):
    """A start that never gets ready, ended by a stop."""

    name = "superseded start"
    since, until = "after:effect.launch:1", SECOND_BEGINS
    proven = False
    dispatched, starts = 2, 1

    async def prepare(self) -> None:
        await self.node.bring_down()
        self.node.switch_faults("never_ready")

    async def act(self) -> list[Activity]:
        before = len(self.node.births())
        first = await self.node.dispatch("start")
        await until(lambda: len(self.node.births()) > before, "the first one has started it")
        second = await self.node.dispatch("stop")
        return [await self.node.finished(first), await self.node.finished(second)]

    def check(self, *activities: Activity) -> None:
        first, second = activities
        self._rejected(first, ReasonCode.SUPERSEDED)
        assert first.evidence["superseded_by"] == second.id
        self._completed(second)
        assert self.node.alive() == []


class SupersededReconfigure(RolledBack):
    """A config that never gets ready, ended by a restart, which finds the last good config in place."""

    name = "superseded reconfigure"
    until = SECOND_BEGINS
    options = USUAL
    nodes, waits = 4, False
    dispatched, starts = 2, 2

    async def act(self) -> list[Activity]:
        before = len(self.node.births())
        config_id, _ = await self._config(**NEVER_READY)
        first = await self.node.dispatch(f"reconfigure:{config_id}")
        await until(lambda: len(self.node.births()) > before, "the first one has started it")
        second = await self.node.dispatch("restart")
        return [await self.node.finished(first), await self.node.finished(second)]

    def check(self, *activities: Activity) -> None:
        first, second = activities
        self._rejected(first, ReasonCode.SUPERSEDED)
        assert first.evidence["outcome"] == "not_applied"
        assert self.node.current() == self._current
        self._completed(second)
        self._reported_run(second)
        environment = self._runs().environment
        assert environment[SIZE] == self.size
        assert NEVER_READY.keys().isdisjoint(environment)


SCENARIOS: tuple[type[Scenario], ...] = (
    Start,
    EndsAtOnce,
    Stop,
    Restart,
    Reconfigure,
    ReconfigureStopped,
    RolledBack,
    Superseded,
    SupersededReconfigure,
)
