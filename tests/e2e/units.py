"""Runtimes as units of the systemd that this process runs under: on a booted one, as tests/system has it."""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.protocol import DriverKind
from tests.e2e.births import Birth
from tests.e2e.habitats import Home, unique_name

FOLDER = Path("/run/systemd/system")
"""Where units are that no boot finds again: systemd.unit(5)."""
PATIENCE = 30.0
"""Seconds until what has to be so is so."""
PAUSE, LOOKS = 0.03, 4
"""Seconds between looks, and how many in a row a unit has to rest: a dead agent's call may be in the bus still."""
UNIT = """\
[Unit]
StartLimitIntervalSec=0
[Service]
Type=exec
ExecStart={command}
{environment}
EnvironmentFile=-{state_dir}/runtimes/{runtime}/current/environment
Restart=no
TimeoutStopSec=10
LimitCORE=0
"""
TARGET = """\
[Unit]
After={unit}
"""
"""Keeps the unit loaded when it is down, as iggy-runtimes.target does."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What systemd has of a node.

    Attributes:
        unit: The runtime's.
        target: Names it.
    """

    unit: str
    target: str


class Units:
    """The systemd driver's. The agents and this process are root, so nothing asks polkit.

    Args:
        nodes: How many play a scenario at the least. Most of them wait most of the time: a recovery waits 2 s for what
            may be on its way in the bus.
    """

    driver = DriverKind.SYSTEMD
    ready_within = 6.0

    def __init__(self, nodes: int = 24) -> None:
        self.nodes = nodes
        self._settled: dict[Path, Settled] = {}

    def settle(self, home: Home) -> dict[str, Any]:
        """Write the unit, which systemd reads when it is first asked for it, have it kept, and run it once.

        Of a unit without a last run an agent cannot know whether it never ran or was forgotten, so what interrupts its
        very first start is `outcome_unknown`: docs/systemd-driver.md.
        """
        name = unique_name(home)
        settled = self._settled[home.state_dir] = Settled(f"{name}.service", f"{name}.target")
        variables = (_quoted(f"{key}={value}") for key, value in home.environment.items())
        text = UNIT.format(
            command=" ".join(_quoted(word).replace("$", "$$") for word in home.command),
            environment="\n".join(f"Environment={variable}" for variable in variables),
            state_dir=home.state_dir,
            runtime=home.runtime,
        )
        (FOLDER / settled.unit).write_text(text, encoding="utf-8")
        (FOLDER / settled.target).write_text(TARGET.format(unit=settled.unit), encoding="utf-8")
        _systemctl("start", settled.target, settled.unit)
        _end(settled.unit)
        return {"driver": str(self.driver), "unit": settled.unit}

    def leave(self, state_dir: Path, starts_file: Path) -> None:
        """Kill what runs, and let systemd forget the unit when it likes: no other one will have its name."""
        settled = self._settled.pop(state_dir, None)
        if settled is None:
            return
        _end(settled.unit)
        for name in (settled.unit, settled.target):
            (FOLDER / name).unlink()
        _systemctl("stop", settled.target)
        _systemctl("reset-failed", settled.unit, check=False)  # it may be unloaded already

    def black_out(self, state_dir: Path, starts_file: Path, *, boots: bool) -> None:
        """Kill what runs, and what a job of the dead agent's still brings up.

        A boot forgets jobs and the run that a unit had last, and so does systemd here. What else is lost with the
        memory of a machine is not played: tests/system cuts the power of a whole one.
        """
        settled = self._settled[state_dir]
        _end(settled.unit)
        if boots:
            _forget(settled)
            _systemctl("start", settled.target)

    def incarnation(self, birth: Birth, boot_id: str) -> str:
        """Return what systemd told it: systemd.exec(5)."""
        return birth.environment["INVOCATION_ID"]

    def check(self, state_dir: Path, *, proven: bool) -> None:
        """Check nothing: there is only what runs."""

    def agent_environment(self) -> Mapping[str, str]:
        """Return nothing: the bus is where it always is."""
        return {}

    def end_middleman(self, *, hard: bool, gone: Callable[[], None]) -> None:
        """Kill the bus, with the connections of all agents; or have systemd begin anew, as after an update of it."""
        if hard:
            _systemctl("kill", "--signal=KILL", "dbus.service")
            gone()
            _systemctl("start", "dbus.service")
        else:
            _systemctl("daemon-reexec")
            gone()

    def recorded(self, state_dir: Path) -> None:
        """Return nothing: systemd goes on, and knows what it started."""

    def mend(self) -> None:
        """Do nothing: it is whole again by itself."""


def _end(unit: str) -> None:
    """Kill it until it stays down, with no job.

    Raises:
        TimeoutError: It does not.
    """
    deadline = time.monotonic() + PATIENCE
    looks = 0
    while looks < LOOKS:
        seen = _show(unit, "ActiveState", "Job")
        if seen["ActiveState"] in {"inactive", "failed"} and not seen.get("Job"):
            looks += 1
        else:
            looks = 0
            _systemctl("kill", "--signal=KILL", unit, check=False)  # it may have ended just now
        if time.monotonic() >= deadline:
            msg = f"cannot end {unit}: {seen}"
            raise TimeoutError(msg)
        time.sleep(PAUSE)


def _forget(settled: Settled) -> None:
    """Have systemd unload a unit that is down, and with it its last run; its agent has ended.

    Raises:
        TimeoutError: It does not.
    """
    _systemctl("stop", settled.target)
    deadline = time.monotonic() + PATIENCE
    while True:
        _systemctl("reset-failed", settled.unit, check=False)  # it may be unloaded already
        # What is read by its name is loaded for that: then nothing is known of it.
        if not _show(settled.unit, "InvocationID")["InvocationID"]:
            return
        if time.monotonic() >= deadline:
            msg = f"cannot have {settled.unit} forgotten: {_show(settled.unit, 'ActiveState', 'InvocationID')}"
            raise TimeoutError(msg)
        time.sleep(PAUSE)


def _show(unit: str, *properties: str) -> dict[str, str]:
    lines = _systemctl("show", unit, *(f"--property={name}" for name in properties)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def _systemctl(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["systemctl", "--no-ask-password", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if check and done.returncode != 0:
        msg = f"systemctl {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
        raise RuntimeError(msg)
    return done.stdout


def _quoted(text: str) -> str:
    """Quote a word for a unit file: systemd.syntax(7), and specifiers of systemd.unit(5)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%")
    return f'"{escaped}"'
