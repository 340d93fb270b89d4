"""How the runtimes of a node are kept: as processes, as containers, or as units. Each brings its own stand-in there.

The stand-ins record their births with pids that this process sees, so whoever counts them need not know the habitat.
"""

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.protocol import DriverKind, RuntimeName
from tests.e2e.births import Birth
from tests.e2e.leftovers import end_runtimes


@dataclass(frozen=True, slots=True)
class Home:
    """One runtime of a node.

    Attributes:
        folder: The node's.
        state_dir: The agent's.
        command: What to run.
        environment: Its variables.
    """

    runtime: RuntimeName
    folder: Path
    state_dir: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]


class Habitat(Protocol):
    """What nodes that are kept by one driver have in common. Its methods block."""

    @property
    def driver(self) -> DriverKind:
        """Which driver."""
        ...

    @property
    def nodes(self) -> int:
        """How many nodes it takes, at least, to keep a machine busy: where much is waited for, it takes more."""
        ...

    @property
    def ready_within(self) -> float:
        """Seconds within which a runtime is ready in any case, also while all those nodes start theirs."""
        ...

    def settle(self, home: Home) -> dict[str, Any]:
        """Make what the driver controls, and return the runtime's settings for it; nothing runs yet."""
        ...

    def leave(self, state_dir: Path, starts_file: Path) -> None:
        """End and remove all of a node; its agent has ended."""
        ...

    def black_out(self, state_dir: Path, starts_file: Path, *, boots: bool) -> None:
        """End a node's runtimes as a crash does, and what is on its way to become one; the agent has ended.

        Args:
            boots: The machine boots after it, so that what no disk holds is forgotten.
        """
        ...

    def incarnation(self, birth: Birth, boot_id: str) -> str:
        """Return the name that the agent has for a run that lives, and was started in that boot."""
        ...

    def check(self, state_dir: Path, *, proven: bool) -> None:
        """Check what else there is of a node that has nothing to do.

        Args:
            proven: Its runtime was seen ready with the config that it has now: no way back has to be kept.

        Raises:
            LostError: Something is missing, or too much.
        """
        ...

    def agent_environment(self) -> Mapping[str, str]:
        """Return what the agent needs to find it."""
        ...


class Processes:
    """The process driver's: nothing has to be made."""

    driver = DriverKind.PROCESS
    nodes = 1
    ready_within = 4.0

    def settle(self, home: Home) -> dict[str, Any]:
        """Return the command."""
        return {"driver": str(self.driver), "command": list(home.command), "environment": dict(home.environment)}

    def leave(self, state_dir: Path, starts_file: Path) -> None:
        """Kill what runs."""
        end_runtimes(state_dir, starts_file)

    def black_out(self, state_dir: Path, starts_file: Path, *, boots: bool) -> None:
        """Kill what runs, and launchers on their way."""
        end_runtimes(state_dir, starts_file)

    def incarnation(self, birth: Birth, boot_id: str) -> str:
        """Return boot id, pid and start."""
        return f"{boot_id}.{birth.pid}.{birth.start_ticks}"

    def check(self, state_dir: Path, *, proven: bool) -> None:
        """Check nothing: there is only what runs."""

    def agent_environment(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}


PROCESSES = Processes()

_NUMBERS = itertools.count(1)


def unique_name(home: Home) -> str:
    """Return a name for what a runtime is elsewhere: a unit, a container."""
    node = re.sub(r"[^a-z0-9]+", "-", home.folder.name.lower()).strip("-")
    return f"{home.runtime}-{node}-{os.getpid()}-{next(_NUMBERS)}"
