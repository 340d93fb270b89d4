"""The real agent, killed with SIGKILL at a chosen point: `python crashing_agent.py FOLDER run --config FILE`.

Nothing in the agent knows of it: every journal step, every effect on the node and every call to the Supervisor is
wrapped from outside, and has a point before and one after it. A point is named by its n-th hit, such as
`after:journal.record:2`, counted in one process from the moment that the test arms it.

FOLDER is the conversation with the test:

    plan.json     {"case": NAME, "crashes": [POINT, …]}: armed; not there: nothing is counted
    crashed-NAME  one line for each crash that was made, so the next process goes on with the next point
    trace-NAME    one line for each point that was passed, `PID POINT`: what there is to crash at
"""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent import cli
from agent.journal import Journal
from agent.link.client import SupervisorClient
from agent.protocol import DriverKind
from agent.runtimes import spawn
from agent.runtimes.releases import Releases

JOURNAL_STEPS = (
    *("take", "start", "record", "go_back", "finish", "reported"),
    *("begin_sweep", "end_sweep", "know_runtime"),
)
CALLS = ("activities", "report", "heartbeat")
RELEASE_STEPS = ("stage", "switch", "prune")
CHANGING_CALLS = ("create", "connect", "start", "stop", "unpause", "set_restart_policy", "rename", "remove")
"""Of the Docker Engine."""
CHANGING_MEMBERS = {"StartUnit", "StopUnit", "RestartUnit", "ResetFailedUnit", "RefUnit"}
"""Of systemd's bus."""
RENAMED = {"process.json", "exit.json", "current"}


class Points:
    """Counts the points that are passed, and dies at the one that is planned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._case = ""
        self._hits: Counter[str] = Counter()

    def passed(self, when: str, name: str) -> None:
        """Pass a point; does not return if the plan says so."""
        with self._guard:
            plan = self._plan()
            if plan is None:
                return
            if plan["case"] != self._case:
                self._case = plan["case"]
                self._hits.clear()
            point = f"{when}:{name}"
            self._hits[point] += 1
            point += f":{self._hits[point]}"
            self._append("trace", f"{os.getpid()} {point}")
            if point == self._next(plan["crashes"]):
                self._append("crashed", point)
                os.kill(os.getpid(), signal.SIGKILL)

    def _plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads((self._folder / "plan.json").read_bytes())
        except FileNotFoundError:
            return None
        return plan

    def _next(self, crashes: list[str]) -> str | None:
        try:
            done = len((self._folder / f"crashed-{self._case}").read_text().splitlines())
        except FileNotFoundError:
            done = 0
        return crashes[done] if done < len(crashes) else None

    def _append(self, name: str, line: str) -> None:
        descriptor = os.open(self._folder / f"{name}-{self._case}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


Name = str | Callable[..., str | None]
"""A point's name, or what makes it of the arguments; None: no point."""


def _name(name: Name, args: tuple[Any, ...]) -> str | None:
    return name if isinstance(name, str) else name(*args)


def wrap(points: Points, owner: Any, attribute: str, name: Name) -> None:
    """Put a point before and one after a function that blocks."""
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        point = _name(name, args)
        if point is None:
            return original(*args, **kwargs)
        points.passed("before", point)
        result = original(*args, **kwargs)
        points.passed("after", point)
        return result

    setattr(owner, attribute, wrapped)


def wrap_async(points: Points, owner: Any, attribute: str, name: Name) -> None:
    """Put a point before and one after a coroutine function."""
    original: Callable[..., Awaitable[Any]] = getattr(owner, attribute)

    @functools.wraps(original)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        point = _name(name, args)
        if point is None:
            return await original(*args, **kwargs)
        points.passed("before", point)
        result = await original(*args, **kwargs)
        points.passed("after", point)
        return result

    setattr(owner, attribute, wrapped)


def _renamed(_source: Path, target: Path) -> str | None:
    target = Path(target)
    if target.parent.name == "releases" and not target.name.startswith("."):
        return "disk.rename.release"
    return f"disk.rename.{target.name}" if target.name in RENAMED else None


def _outdated(journal: Journal, revision: int) -> str | None:
    """Name the step only where it writes; with most answers it only compares."""
    return "journal.check_revision" if revision > journal.revision else None


def _signalled(_pidfd: int, number: int) -> str:
    return f"effect.{signal.Signals(number).name}"


def _wrap_processes(points: Points) -> None:
    wrap(points, signal, "pidfd_send_signal", _signalled)
    wrap(points, spawn, "launch", "effect.launch")
    wrap(points, spawn, "_read_to_end", "effect.hear")  # from here on a launcher is on its way, and becomes the runtime
    wrap(points, subprocess, "_fork_exec", "effect.fork")


def _wrap_docker(points: Points) -> None:
    from agent.runtimes.engine import Engine

    for call in CHANGING_CALLS:
        wrap_async(points, Engine, call, f"engine.{call}")


def _wrap_systemd(points: Points) -> None:
    from agent.runtimes import bus

    wrap_async(points, bus.SystemdBus, "call", _asked)
    original = bus._Connection.send

    def send(connection: Any, message: Any) -> Any:
        sent = original(connection, message)
        if message.member in CHANGING_MEMBERS:
            # From here on a call is on its way, whether or not there is still somebody to hear the answer.
            sent.add_done_callback(lambda _: points.passed("after", f"bus.{message.member}.sent"))
        return sent

    setattr(bus._Connection, "send", send)  # noqa: B010 - mypy lets no method be assigned


def _asked(_bus: Any, member: str, *_rest: Any) -> str | None:
    return f"bus.{member}" if member in CHANGING_MEMBERS else None


EFFECTS: dict[DriverKind, Callable[[Points], None]] = {
    DriverKind.PROCESS: _wrap_processes,
    DriverKind.DOCKER: _wrap_docker,
    DriverKind.SYSTEMD: _wrap_systemd,
}


def install(folder: Path, driver: DriverKind = DriverKind.PROCESS) -> None:
    """Wrap everything; call it once, before the agent runs."""
    points = Points(folder)
    for step in JOURNAL_STEPS:
        wrap_async(points, Journal, step, f"journal.{step}")
    wrap_async(points, Journal, "check_revision", _outdated)
    for call in CALLS:
        wrap_async(points, SupervisorClient, call, f"http.{call}")
    for step in RELEASE_STEPS:
        wrap(points, Releases, step, f"releases.{step}")
    for rename in ("rename", "replace"):
        wrap(points, Path, rename, _renamed)
    EFFECTS[driver](points)


def main() -> int:
    """Run the agent with all points."""
    install(Path(sys.argv[1]))
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
