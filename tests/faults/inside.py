"""Rows that need a systemd: played whole inside one that is booted for them (tests/system/booted.py).

The Supervisor, the agents and the runtimes are all inside, so what judges sees their processes, files and bus as
anywhere else. Outside is only who boots it, says what to play, and takes in what was counted.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from tests.e2e.nursery import REPOSITORY, WITHOUT
from tests.faults import campaign
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import Tally
from tests.system.booted import ENVIRONMENT, Booted, missing

MORE = 1800.0
"""Seconds that a row may take beyond its budget: some finish what they have begun, however long that takes."""
OWN_INSIDE = (Path("/tmp"), Path("/run"))
LINES = 60
"""Of the output that an error tells."""


class InsideError(Exception):
    """What was played inside did not come to its end."""


def booted(fault: Fault) -> Fault:
    """Have a row, which its module plays by `main`, played inside a systemd of its own."""

    async def run(ground: Ground, budget: Budget, tally: Tally) -> None:
        system = boot()
        try:
            tally.add(await play(system, fault.key, ground.seed, budget))
        finally:
            system.end()

    return replace(fault, run=run, lacks=missing)


def boot() -> Booted:
    """Boot a systemd that sees this program; the caller ends it."""
    system = Booted(_hidden())
    try:
        system.mount()
        system.boot()
    except BaseException:
        system.end()
        raise
    return system


async def play(system: Booted, key: str, seed: int, budget: Budget) -> Tally:
    """Play a row inside, and return what was counted.

    Raises:
        InsideError: It did not come to its end; with the end of what it said.
    """
    wanted = {"seed": seed, "seconds": budget.seconds, "most": budget.most, "impatient": budget.impatient}
    process = await asyncio.create_subprocess_exec(
        *system.command("env", f"--chdir={REPOSITORY}", sys.executable, "-m", "tests.faults.inside"),
        *(key, json.dumps(wanted)),
        env={**ENVIRONMENT, **{name: os.environ[name] for name in (WITHOUT,) if name in os.environ}},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = b""
    try:
        async with asyncio.timeout(budget.seconds + MORE):
            output, _ = await process.communicate()
        return _counted(output)
    except (TimeoutError, ValueError) as error:
        said = "\n".join(output.decode(errors="replace").splitlines()[-LINES:])
        msg = f"{key}, played inside, ended with {process.returncode} and without a result:\n{said}"
        raise InsideError(msg) from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _counted(output: bytes) -> Tally:
    """Read the last line.

    Raises:
        ValueError: It is another one.
    """
    return Tally.from_json(json.loads(output.rstrip().rpartition(b"\n")[2]))


def _hidden() -> list[Path]:
    """Find what of this program is on other file systems than that of `/`: proc_pid_mountinfo(5)."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    elsewhere = {Path(line.split()[4]) for line in lines} - {Path("/")} | set(OWN_INSIDE)
    needed = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}
    return sorted(folder for folder in needed if any(folder.is_relative_to(mount) for mount in elsewhere))


def main(arguments: Sequence[str]) -> int:
    """Play a row here, inside; the last line that is printed is what was counted."""
    from tests.faults import kills_systemd

    key, wanted = arguments[0], json.loads(arguments[1])
    (fault,) = (fault for fault in kills_systemd.DIRECT if fault.key == key)
    budget = Budget(wanted["seconds"], most=wanted["most"], impatient=wanted["impatient"])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    tally = asyncio.run(campaign.run(fault, wanted["seed"], budget))
    print(json.dumps(tally.as_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
