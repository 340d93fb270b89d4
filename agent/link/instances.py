"""The names by which this node's agents call the Supervisor: a fresh one for each start, so that clones are told apart.

Those of earlier starts are kept, for a request of an agent that is dead may still be on its way, in a proxy or in a
socket. The Supervisor then takes that one for the newest, and refuses the living one. Only one agent at a time runs on
a state folder, so an earlier name of the same folder is nobody's: the living agent goes on under another fresh one.
"""

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import structlog

from agent.files import write_atomic
from agent.link.blocking import in_thread

log = structlog.get_logger(__name__)

FILE_NAME = "instances"
KEPT = 100
"""Names; more than the starts whose requests can still be on their way."""


class Instances:
    """The names of one state folder, whose lock this agent holds.

    Args:
        file: Where they are kept, a line for each.
        names: The earlier ones and this agent's own, which is the last.
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        self._file = file
        self._names = list(names)

    @classmethod
    async def open(cls, state_dir: Path) -> Self:
        """Read the earlier names, and add a fresh one; it is durable before it is used."""
        file = state_dir / FILE_NAME
        instances = cls(file, await in_thread(_read, file))
        await instances._add()
        return instances

    @property
    def current(self) -> str:
        """The name of this agent."""
        return self._names[-1]

    async def renew(self, newest: str) -> str | None:
        """Return a fresh name to go on under; None if the newest that the Supervisor knows is not of this folder."""
        if newest not in self._names:
            return None
        log.warning("instance.renewed", cause="a request of an earlier agent of this node arrived late")
        await self._add()
        return self.current

    async def _add(self) -> None:
        self._names = [*self._names[-KEPT + 1 :], secrets.token_hex(16)]
        try:
            await in_thread(write_atomic, self._file, "".join(f"{name}\n" for name in self._names).encode())
        except OSError as error:
            # Worth less than the agent: only a late request of this very start could not be told from a clone's.
            log.warning("instances.not_kept", cause=str(error))


def _read(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("instances.not_read", cause=str(error))
        return []
    return [name for name in text.splitlines() if re.fullmatch(r"[0-9a-f]{32}", name)]
