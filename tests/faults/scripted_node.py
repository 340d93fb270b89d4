"""A real agent of a scripted Supervisor, which gives it any answer that a row wants."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.errors import AgentError
from agent.local.client import ask
from agent.protocol import RuntimeName
from tests.e2e.births import read_births
from tests.e2e.leftovers import end_runtimes
from tests.e2e.node_settings import Node, Options, RuntimePorts
from tests.e2e.ports import Ports
from tests.e2e.process import Process
from tests.e2e.programs import standin_programs
from tests.e2e.waiting import until
from tests.fakes.supervisor import FakeSupervisor, activity

REPOSITORY = Path(__file__).parents[2]
AGENT = (sys.executable, "-m", "tests.faults.quick_agent")
ENROLLMENT_TOKEN = "enrolment-token-1"
USUAL = Options(stable_for=0.05, attempt_timeout=1.0)
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL at the end."""


class ScriptedNode:
    """A node; its agent enrols by itself, so answers to that can be scripted too.

    Args:
        folder: An empty one, with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor = FakeSupervisor(heartbeat_interval=0.5, poll_wait=1.0)
        self.agent = Process("the agent", folder / "agent.log")
        self.node: Node
        self._numbers = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _set_up(self) -> None:
        ports = Ports()
        self._stack.callback(ports.close)
        await self._stack.enter_async_context(self.supervisor)
        self.node = Node(self.folder, RuntimePorts.take(ports), standin_programs(), USUAL)
        self.node.write(self.supervisor.url)
        settings = self.node.settings_file.read_text()
        self.node.settings_file.write_text(settings[: settings.index(f"[runtimes.{RuntimeName.CONNECTORS}]")])
        credentials = self.folder / "credentials"
        credentials.mkdir()
        (credentials / "enrollment_token").write_text(ENROLLMENT_TOKEN)
        self._stack.callback(end_runtimes, self.node.state_dir, self.node.starts_file)
        self._stack.push_async_callback(asyncio.to_thread, self.agent.end, GRACE)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.agent.tail())
        await self._stack.aclose()

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the agent."""
        python_path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        more = {"CREDENTIALS_DIRECTORY": str(self.folder / "credentials"), "PYTHONPATH": python_path}
        arguments = ("run", "--config", str(self.node.settings_file))
        self.agent.start([*AGENT, *arguments], {**more, **(environment or {})})

    async def ask(self, target: str = "/v1/status") -> dict[str, Any] | None:
        """Ask the agent on its socket; None while it does not answer."""
        if not self.agent.alive:
            msg = f"the agent ended with {self.agent.exit_code}"
            raise AssertionError(msg)
        try:
            return await asyncio.to_thread(ask, self.node.socket, target)
        except AgentError:
            return None

    async def conditions(self) -> list[str] | None:
        """Return the codes of what is wrong, as the agent says; None while it says nothing."""
        status = await self.ask()
        return None if status is None else [condition["code"] for condition in status["conditions"]]

    async def until_well(self) -> None:
        """Wait until the agent calls the Supervisor, and shows nothing that is wrong."""

        async def well() -> bool:
            status = await self.ask()
            return bool(status and status["healthy"] and status["link"] and status["link"]["activities"]["calls"] > 1)

        await until(well, "the agent is well", every=0.05)

    async def until_shown(self, condition: str) -> None:
        """Wait until the agent shows that this is wrong."""

        async def shown() -> bool:
            return condition in (await self.conditions() or [])

        await until(shown, f"the agent shows {condition}", every=0.02)

    def lately(self) -> str:
        """Tell what the agent asked last, and how many seconds ago."""
        now = time.monotonic()
        asked = (f"{now - one.at:.1f} s ago: {one.path} {one.query}" for one in self.supervisor.requests[-20:])
        return "\n".join(("the agent's last calls:", *asked))

    def number(self) -> int:
        """Return a sequence that was not used before."""
        self._numbers += 1
        return self._numbers

    def births(self) -> int:
        """Count the runs of iggy, as they were recorded by themselves."""
        return len(read_births(self.node.starts_file, RuntimeName.IGGY))

    async def dispatch(self) -> int:
        """List a restart of iggy, and return its id."""
        item = activity(self.number())
        await self.supervisor.dispatch(item)
        return int(item["id"])

    async def reported(self, activity_id: int) -> dict[str, Any]:
        """Wait until an activity is reported, and return the report."""
        reports = self.supervisor.reports
        await until(lambda: activity_id in reports, f"activity {activity_id} is reported", every=0.02)
        return reports[activity_id]

    @property
    def identity_file(self) -> Path:
        """The agent's identity."""
        return self.node.state_dir / "identity.json"

    def age_token(self) -> None:
        """Let the node token be so old that the agent exchanges it when it starts; while there is no agent."""
        identity = json.loads(self.identity_file.read_text())
        identity["token_issued_at"] = "2026-01-01T00:00:00Z"
        self.identity_file.write_text(json.dumps(identity))
