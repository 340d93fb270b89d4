"""Nodes for crash tests: many on one Supervisor, each with a state folder of its own and an agent kept alive."""

import asyncio
import json
import signal
import tomllib
import uuid
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self

from agent.errors import AgentError
from agent.link.enrolment import enroll
from agent.local.client import ask
from agent.protocol import ActivityStatus, RuntimeName
from agent.runtimes.driver import read_boot_id
from tests.e2e import nursery as nurseries
from tests.e2e.births import Birth, read_births
from tests.e2e.habitats import PROCESSES, Habitat
from tests.e2e.node_settings import Node, Options, RuntimePorts
from tests.e2e.nursery import Child, Manner, Nursery
from tests.e2e.ports import Ports
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig
from tests.e2e.waiting import until

IGGY = RuntimeName.IGGY
BOOT_ID = read_boot_id()
DOWN = {"stopped", "failed"}
AWAITED = 5.0
"""Seconds that a planned crash may come after the activities are finished and reported; then it will not come."""


class CrashNode:
    """A node whose agent dies where a test wants it, and is started again each time.

    Args:
        rig: Its Supervisor.
        nursery: Starts its agents.
        name: Of its folder.
        options: Of its settings.
        supervisor_url: Where the agent finds the Supervisor, when it is not where the rig has it.
        habitat: How its runtime is kept.
        manner: How its agents differ from the usual ones.
    """

    def __init__(
        self,
        rig: Rig,
        nursery: Nursery,
        name: str,
        options: Options,
        *,
        supervisor_url: str | None = None,
        habitat: Habitat = PROCESSES,
        manner: Manner = nurseries.USUAL,
    ) -> None:
        self.rig = rig
        self.supervisor_url = supervisor_url or rig.supervisor_url
        self.folder = rig.folder / name
        self.node_id = 0
        self.habitat = habitat
        self._nursery = nursery
        self._options = options
        self._manner = manner
        self._ports = Ports()
        self._agent: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._may_start = asyncio.Event()
        self._may_start.set()
        self._case = ""
        self._planned: list[str] = []
        self._stack = AsyncExitStack()
        self.node: Node

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _set_up(self) -> None:
        self._stack.callback(self._ports.close)
        self.folder.mkdir()
        ports = RuntimePorts.take(self._ports)
        self.node = Node(self.folder, ports, self.rig.programs, self._options, self.habitat, (IGGY,))
        self._stack.push_async_callback(
            asyncio.to_thread, self.habitat.leave, self.node.state_dir, self.node.starts_file
        )
        await asyncio.to_thread(self.node.write, self.supervisor_url)
        if self._manner.ca_file is not None:
            settings = self.node.settings_file.read_text()
            named = settings.replace("[supervisor]", f'[supervisor]\nca_file = "{self._manner.ca_file}"')
            self.node.settings_file.write_text(named)
        token = (await self.rig.api.call("POST", "enrollment-tokens", {}))["enrollment_token"]
        identity = await enroll(self.rig.supervisor_url, None, token, self.node.state_dir)
        self.node_id = identity.node_id
        self._stack.push_async_callback(self._end_agent)
        self._keeper = asyncio.create_task(self._keep_alive())
        await until(self._has_polled, f"the agent of {self.folder.name} is up", every=0.03)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _keep_alive(self) -> None:
        """Start the agent whenever it was killed; an end of another kind, unless it was asked for, is a failure."""
        while True:
            await self._may_start.wait()
            self._ended.clear()
            self._agent = await self._nursery.start(
                ("run", "--config", str(self.node.settings_file)),
                folder=self.folder,
                log=self.folder / "agent.log",
                points=self.folder,
                environment=self.habitat.agent_environment(),
                manner=self._manner,
            )
            code = await self._agent.wait()
            self._ended.set()
            if code != -signal.SIGKILL and self._may_start.is_set():
                msg = f"the agent of {self.folder.name} ended with {code}"
                raise AssertionError(msg)

    def hold(self) -> None:
        """Do not start the agent again when it ends."""
        self._may_start.clear()

    def start_again(self) -> None:
        """Start the agent again, and each time that it is killed."""
        self._may_start.set()

    async def release(self) -> None:
        """Start the agent again, and wait until it has an identity and has called the Supervisor."""
        self.start_again()
        await until(self._has_polled, f"the agent of {self.folder.name} is up", every=0.03)

    async def until_ended(self) -> int:
        """Wait until the agent, which is held, has ended; returns its exit code, negative for a signal."""
        await until(self._ended.is_set, f"the agent of {self.folder.name} ends")
        return await self.agent.wait()

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End the agent, and do not start it again; returns its exit code."""
        self.hold()
        self.agent.send(number)
        return await self.until_ended()

    async def crash(self) -> bool:
        """Kill the agent, and wait until it was started again; returns whether there was one to kill."""
        agent = self.agent
        if not agent.alive:
            return False
        agent.kill()
        code = await agent.wait()
        await until(lambda: self.agent is not agent, f"the agent of {self.folder.name} is started again")
        return code == -signal.SIGKILL

    @property
    def agent(self) -> Child:
        """The newest run of the agent."""
        if self._agent is None:
            msg = f"the agent of {self.folder.name} was never started"
            raise RuntimeError(msg)
        return self._agent

    async def _end_agent(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._agent is not None:
            self._agent.send(signal.SIGKILL)
            await self._agent.wait()

    # --- crashes

    def arm(self, case: str, crashes: list[str]) -> None:
        """Count points from here on, and crash at these, each in a process of its own."""
        self._case, self._planned = case, crashes
        new = self.folder / "plan.new"
        new.write_text(json.dumps({"case": case, "crashes": crashes}))
        new.replace(self.folder / "plan.json")

    def disarm(self) -> None:
        """Count nothing."""
        (self.folder / "plan.json").unlink()

    def crashed(self) -> list[str]:
        """Return the points at which it crashed so far in this case."""
        return self._lines(f"crashed-{self._case}")

    def passed(self) -> list[list[str]]:
        """Return the points that each process passed so far in this case, in order."""
        processes: dict[str, list[str]] = {}
        for line in self._lines(f"trace-{self._case}"):
            pid, point = line.split()
            processes.setdefault(pid, []).append(point)
        return list(processes.values())

    def was_interrupted(self) -> bool | None:
        """Tell whether a crash of this case came between the beginning and the result of its one activity.

        None when it came while one of the two was being written, so that it may or may not be durable.
        """
        points: set[str] = set()
        doubt = False
        for process in self.passed()[:-1]:
            points.update(process)
            if "after:journal.start:1" in points and "before:journal.finish:1" not in points:
                return True
            doubt |= "before:journal.start:1" in points and "after:journal.finish:1" not in points
        return None if doubt else False

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.folder / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    async def crashes_are_over(self) -> None:
        """Wait until the planned crashes came, or cannot come any more, and the agent has nothing to do."""
        with suppress(TimeoutError):  # the test asks `crashed`
            await until(lambda: self.crashed() == self._planned, "the planned crashes came", within=AWAITED)
        await self.rest()

    async def rest(self) -> None:
        """Wait until the agent lives, and has nothing to do and nothing to report."""
        said = f"the agent of {self.folder.name} has nothing to do"
        await until(self._is_idle, said, every=0.03, within=self._patience)

    @property
    def _patience(self) -> float:
        """Seconds that an action may take, twice: once until a kill, and once from its recovery on."""
        return 2 * self._options.action_timeout

    # --- looking

    def settings(self) -> dict[str, Any]:
        """Return the settings of its agent."""
        return tomllib.loads(self.node.settings_file.read_text())

    async def ask(self, target: str) -> dict[str, Any] | None:
        """Ask the agent on its socket; None while it does not answer."""
        if self._keeper is not None and self._keeper.done():
            self._keeper.result()
        try:
            return await asyncio.to_thread(ask, self.node.socket, target)
        except AgentError:
            return None

    async def _is_idle(self) -> bool:
        answer = await self.ask("/v1/activities?limit=3")
        return answer is not None and all(row["state"] == "reported" for row in answer["items"])

    async def _has_polled(self) -> bool:
        status = await self.ask("/v1/status")
        return bool(status and status["link"] and status["link"]["activities"]["calls"] > 1)

    async def conditions(self) -> list[str]:
        """Return the codes of what is wrong, as the agent says."""
        status = await self.ask("/v1/status")
        return [condition["code"] for condition in status["conditions"]] if status else []

    @property
    def boot_id(self) -> str:
        """The boot id that the agent sees."""
        own = self.folder / "boot_id"
        return own.read_text().strip() if own.exists() else BOOT_ID

    def has_rebooted(self) -> None:
        """Give the agent's next runs a boot id that none had before; what runs is the caller's to end."""
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")

    def incarnation(self, birth: Birth) -> str:
        """Return the name that the agent has for a run that lives."""
        return self.habitat.incarnation(birth, self.boot_id)

    def births(self) -> list[Birth]:
        """Return every run of iggy, in order."""
        return read_births(self.node.starts_file, IGGY)

    def alive(self) -> list[Birth]:
        """Return the runs of iggy that live."""
        return [birth for birth in self.births() if birth.alive]

    def current(self) -> str | None:
        """Return the name of the release in use."""
        link = self.node.state_dir / "runtimes" / IGGY / "current"
        return link.readlink().name if link.is_symlink() else None

    # --- acting

    def switch_faults(self, *faults: str) -> None:
        """Switch exactly these faults of iggy's stand-in on."""
        file = self.node.faults_file(IGGY)
        new = file.with_suffix(".new")
        new.write_text("\n".join(faults))
        new.replace(file)

    async def dispatch(self, action: str) -> Activity:
        """Dispatch an action on iggy."""
        return await self.rig.api.dispatch(IGGY, action, [self.node_id])

    async def run(self, action: str) -> Activity:
        """Dispatch an action and return its activity when it is finished and the agent is idle again."""
        activity = await self.finished(await self.dispatch(action))
        await self.rest()
        return activity

    async def finished(self, activity: Activity) -> Activity:
        """Wait until an activity is finished, and return it with its evidence."""

        async def look() -> Activity | None:
            found = await self.rig.api.get(activity.id)
            return None if found.status is ActivityStatus.PROCESSING else found

        return await until(look, f"activity {activity.id} is finished", every=0.1, within=self._patience)

    async def bring_up(self) -> None:
        """See to it that iggy runs."""
        if not self.alive():
            self.switch_faults()
            activity = await self.run("start")
            assert activity.status == "completed", activity.raw

    async def bring_down(self) -> None:
        """See to it that iggy does not run, and that the agent has noticed."""
        for birth in self.alive():
            birth.send(signal.SIGKILL)
            await until(self._has_noticed, "the agent has noticed that iggy is down", every=0.03)

    async def _has_noticed(self) -> bool:
        status = await self.ask("/v1/status")
        return bool(status and status["runtimes"] and status["runtimes"][0]["state"] in DOWN)
