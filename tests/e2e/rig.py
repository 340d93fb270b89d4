"""The whole path on this machine: real processes on free loopback ports, below one temporary folder.

    async with Rig(standin_programs()) as rig:      # Supervisor up, node enrolled
        await rig.start_agent()
        activity = await rig.api.run(RuntimeName.IGGY, "start")
        assert len(rig.births(RuntimeName.IGGY)) == 1

Whatever happens inside, all processes have ended and the folder is gone afterwards; a failure carries the logs' ends.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from agent.errors import AgentError
from agent.local.client import ask
from agent.protocol import RuntimeName
from tests.e2e.births import Birth, read_births
from tests.e2e.leftovers import end_runtimes
from tests.e2e.node_settings import Node, Options, RuntimePorts
from tests.e2e.ports import Ports
from tests.e2e.process import Process, clean_environment
from tests.e2e.programs import Programs
from tests.e2e.public_api import PublicApi
from tests.e2e.waiting import until

AGENT = (sys.executable, "-m", "agent")
SUPERVISOR = (sys.executable, "-m", "supervisor")
COMMAND_TIMEOUT = 30.0
"""Seconds that a command, such as `keys create`, may take."""
END_TIMEOUT = 8.0
"""Seconds between SIGTERM and SIGKILL at the end: more than the agent's grace and its last reports."""
LOG_LINES, LOG_COLUMNS = 15, 300


class CommandFailedError(Exception):
    """One of our commands did not do what it was asked to."""


class Rig:
    """A Supervisor, an agent and two runtimes.

    Args:
        programs: The runtimes.
        options: How it differs from the usual one.
        agent_program: Runs the agent, in place of `python -m agent`: one that kills it at some point, for example.
        keep_folder: Leave the folder for looking at it.
    """

    def __init__(
        self,
        programs: Programs,
        options: Options | None = None,
        *,
        agent_program: Sequence[str] = AGENT,
        keep_folder: bool = False,
    ) -> None:
        self.programs = programs
        self.options = options or Options()
        self.agent_program = list(agent_program)
        self._keep_folder = keep_folder
        self._stack = AsyncExitStack()
        self.folder: Path
        self.node: Node
        self.node_id: int
        self.deployment_id: int
        self.supervisor: Process
        self.supervisor_url: str
        self.agent: Process
        self.api: PublicApi

    # --- begin and end

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException as error:
            await self._end(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end(error)

    async def _set_up(self) -> None:
        # Not below a test's own folder: the path of a unix socket may have 107 bytes only.
        self.folder = Path(tempfile.mkdtemp(prefix="iggy-rig-"))
        self._stack.callback(self._remove_folder)
        ports = Ports()
        self._stack.callback(ports.close)
        self.supervisor = Process("the Supervisor", self.folder / "supervisor.log")
        self.agent = Process("the agent", self.folder / "agent.log")
        self.supervisor_url = f"http://127.0.0.1:{ports.take()}"
        self.node = Node(self.folder, RuntimePorts.take(ports), self.programs, self.options)
        self.node.write(self.supervisor_url)
        self._stack.callback(self._end_processes)
        self.deployment_id = (await self.supervisor_command("deployments", "create", "--name", "rig"))["id"]
        deployment = ("--deployment", str(self.deployment_id))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.start_supervisor())
            key = group.create_task(self.supervisor_command("keys", "create", *deployment))
            token = group.create_task(self.supervisor_command("enrollment-tokens", "create", *deployment))
        self.api = await self._stack.enter_async_context(
            PublicApi(self.supervisor_url, self.deployment_id, key.result()["api_key"])
        )
        await self.enroll(token.result()["enrollment_token"])

    async def _end(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            error.add_note(self.logs())
        await self._stack.aclose()

    def _end_processes(self) -> None:
        """End everything, in the order in which nothing starts anything again; blocking, so it is never cut short."""
        try:
            self.agent.end(END_TIMEOUT)
        finally:
            try:
                self.supervisor.end(END_TIMEOUT)
            finally:
                end_runtimes(self.node.state_dir, self.node.starts_file)

    def _remove_folder(self) -> None:
        if not self._keep_folder:
            # What somebody else still writes there, such as an agent started by hand, is no failure of the rig.
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- the Supervisor

    async def start_supervisor(self) -> None:
        """Start it and wait until it answers."""
        options = self.options
        self.supervisor.start(
            [
                *SUPERVISOR,
                "serve",
                *("--data", str(self._supervisor_data)),
                *("--listen", self.supervisor_url.removeprefix("http://")),
                *("--activity-ttl", str(options.activity_ttl)),
                *("--report-grace", str(options.report_grace)),
                *("--heartbeat-interval", str(options.heartbeat_interval)),
                *("--poll-wait", str(options.poll_wait)),
            ]
        )

        async def answers() -> bool:
            if not self.supervisor.alive:
                msg = f"the Supervisor ended with {self.supervisor.exit_code}: {self.supervisor.tail()}"
                raise CommandFailedError(msg)
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"{self.supervisor_url}/openapi/supervisor.json") as response,
                ):
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await until(answers, "the Supervisor answers", every=0.02)

    async def supervisor_command(self, *arguments: str) -> dict[str, Any]:
        """Run a command of `iggy-supervisor` on its data and return its answer."""
        return await self.command([*SUPERVISOR, *arguments, "--data", str(self._supervisor_data), "--format", "json"])

    @property
    def _supervisor_data(self) -> Path:
        return self.folder / "supervisor"

    @property
    def supervisor_database(self) -> Path:
        """The Supervisor's store; to be changed only while it does not run."""
        return self._supervisor_data / "supervisor.db"

    # --- the agent

    async def enroll(self, token: str) -> None:
        """Enrol the node by the command that people use."""
        arguments = ("enroll", "--config", str(self.node.settings_file), "--token-file", "-", "--format", "json")
        answer = await self.command([*AGENT, *arguments], stdin=token)
        self.node_id = answer["node_id"]

    async def start_agent(
        self,
        *,
        program: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        """Start the agent, and wait until it answers on its socket unless told not to.

        Args:
            program: Runs it this time, in place of the rig's `agent_program`.
            environment: More variables for it.
            wait: False when it may end before it answers.
        """
        self.launch_agent(program, environment)
        if wait:
            await until(self._agent_is_up, "the agent answers")

    def launch_agent(self, program: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Start the agent, and wait for nothing."""
        arguments = ("run", "--config", str(self.node.settings_file))
        self.agent.start([*(program or self.agent_program), *arguments], environment)

    async def _agent_is_up(self) -> bool:
        if not self.agent.alive:
            msg = f"the agent ended with {self.agent.exit_code}: {self.agent.tail()}"
            raise CommandFailedError(msg)
        status = await self.ask("/v1/status")
        return status is not None and status["link"] is not None

    async def ask(self, target: str) -> dict[str, Any] | None:
        """Ask the agent on its socket; None while it does not answer, or does not know."""
        try:
            return await asyncio.to_thread(ask, self.node.socket, target)
        except AgentError:
            return None

    async def journaled(self, activity_id: int) -> dict[str, Any] | None:
        """Return an activity as the agent's journal has it, with its calls; None while it has not."""
        return await self.ask(f"/v1/activities/{activity_id}")

    async def until_called(self, activity_id: int, call: str) -> None:
        """Wait until the agent has journaled a call of an activity, which it then makes."""

        async def called() -> bool:
            row = await self.journaled(activity_id)
            return row is not None and any(made["call"] == call for made in row["calls"])

        await until(called, f"the call {call} of activity {activity_id} is journaled", every=0.002)

    async def until_journaled(self, activity_id: int, *states: str) -> dict[str, Any]:
        """Wait until an activity is in one of these states in the agent's journal, and return it."""

        async def found() -> dict[str, Any] | None:
            row = await self.journaled(activity_id)
            return row if row is not None and row["state"] in states else None

        return await until(found, f"activity {activity_id} is {' or '.join(states)} in the journal", every=0.002)

    # --- the runtimes, as their own records tell

    def births(self, runtime: RuntimeName) -> list[Birth]:
        """Return every run of a runtime, in order, counted without the agent."""
        return read_births(self.node.starts_file, runtime)

    def last_birth(self, runtime: RuntimeName) -> Birth:
        """Return the newest run of a runtime."""
        return self.births(runtime)[-1]

    async def until_born(self, runtime: RuntimeName, count: int) -> Birth:
        """Wait until a runtime was started so many times in all, and return the newest run."""
        await until(lambda: len(self.births(runtime)) >= count, f"{runtime} is started {count} times", every=0.002)
        return self.last_birth(runtime)

    def switch_faults(self, runtime: RuntimeName, *faults: str) -> None:
        """Switch exactly these faults of a stand-in on, such as `slow_drain:2`; none switches all off."""
        if self.programs.real:
            msg = "real programs have no switches"
            raise RuntimeError(msg)
        file = self.node.faults_file(runtime)
        new = file.with_suffix(".new")
        new.write_text("\n".join(faults), encoding="utf-8")
        new.replace(file)

    # --- more

    async def command(self, argv: Sequence[str], *, stdin: str = "") -> dict[str, Any]:
        """Run a command that prints JSON, and return that.

        Raises:
            CommandFailedError: Its exit code is not 0; with what it said.
        """
        process = _begin_command(argv, self.folder)
        talk = asyncio.ensure_future(asyncio.to_thread(process.communicate, stdin, COMMAND_TIMEOUT))
        try:
            output, errors = await asyncio.shield(talk)
        finally:
            process.kill()  # when this was cancelled: the command must not write into a folder that is being removed
            await asyncio.wait({talk})
        if process.returncode != 0:
            msg = f"{' '.join(argv[1:])} ended with {process.returncode}: {errors or output}"
            raise CommandFailedError(msg)
        answer: dict[str, Any] = json.loads(output)
        return answer

    def logs(self) -> str:
        """Return the ends of all logs, for whoever has to find out what happened."""
        if not hasattr(self, "folder"):
            return "the rig had not begun"
        shown = ["the ends of the rig's logs:"]
        for file in [*self.folder.glob("*.log"), *self.folder.glob("state/runtimes/*/log/*.log")]:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            shown += [f"--- {file.relative_to(self.folder)}", *(line[:LOG_COLUMNS] for line in lines[-LOG_LINES:])]
        return "\n".join(shown)


def _begin_command(argv: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(argv),
        env=clean_environment(),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
