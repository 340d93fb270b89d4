"""Which two programs are managed: the real ones where they are found, else the stand-ins."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import standins

COUNTED = (
    f"read -r {'_ ' * 21}ticks _ < /proc/$$/stat; "
    """printf '{"event": "start", "program": "%s", "pid": %d, "start_ticks": %d}\\n' "$1" $$ "$ticks" """
    '>> "$STANDIN_STARTS_FILE"; shift; exec "$@"'
)
"""Counts the runs of a real program from outside the agent, as the stand-ins do by themselves; exec keeps the pid."""


class ProgramsMissingError(Exception):
    """The real programs were asked for, and are not there."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The two programs.

    Attributes:
        server: Argv of iggy-server.
        connectors: Argv of iggy-connectors.
        real: Whether they are Apache Iggy's own.
        description: What to tell people about them.
    """

    server: tuple[str, ...]
    connectors: tuple[str, ...]
    real: bool
    description: str


def standin_programs() -> Programs:
    """Return the stand-ins."""
    server, connectors = _version(standins.IGGY_SERVER), _version(standins.IGGY_CONNECTORS)
    return Programs(
        tuple(standins.IGGY_SERVER),
        tuple(standins.IGGY_CONNECTORS),
        real=False,
        description=f"stand-ins for iggy-server {server} and iggy-connectors {connectors}, not Apache Iggy",
    )


def real_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Return the real programs: IGGY_SERVER and IGGY_CONNECTORS, else what is on PATH.

    Raises:
        ProgramsMissingError: One is missing; says which, and how to give it.
    """
    server = _find("iggy-server", "IGGY_SERVER", environ)
    connectors = _find("iggy-connectors", "IGGY_CONNECTORS", environ)
    return Programs(
        _counted("iggy-server", server),
        _counted("iggy-connectors", connectors),
        real=True,
        description=f"real iggy-server {_version([server])} ({server}) and "
        f"iggy-connectors {_version([connectors])} ({connectors})",
    )


def find_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Return the real programs if both are there, else the stand-ins.

    Raises:
        ProgramsMissingError: IGGY_SERVER or IGGY_CONNECTORS names one, and it is not there.
    """
    try:
        return real_programs(environ)
    except ProgramsMissingError:
        if environ.get("IGGY_SERVER") or environ.get("IGGY_CONNECTORS"):
            raise
        return standin_programs()


def _find(name: str, variable: str, environ: Mapping[str, str]) -> str:
    wanted = environ.get(variable) or name
    found = shutil.which(wanted, path=environ.get("PATH"))
    if found is None:
        where = f"{variable}={wanted} is not a program" if environ.get(variable) else "it is not on PATH"
        msg = f"cannot run the real {name}: {where}; give it with {variable}=/path/to/{name}"
        raise ProgramsMissingError(msg)
    return str(Path(found).resolve())


def _counted(name: str, path: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", COUNTED, "sh", name, path)


def _version(program: list[str]) -> str:
    answer = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True, timeout=20)
    return answer.stdout.split()[-1]
