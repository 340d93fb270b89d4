"""The protections of exactly-once, each switched off in turn: the campaign has to notice.

`python -m tests.faults.mutations [NAME …]` (`make mutations`) runs, for each, the rows of the campaign that it stands
up to, on agents that lack it. It ends with 1 when one was not missed: a protection whose absence nobody notices is
either useless or untested. What only a simulated node can bring about is in `test_state_machine_notices.py`.
"""

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from tests.e2e.nursery import WITHOUT
from tests.e2e.scenarios import EndsAtOnce, Reconfigure, Restart, RolledBack, Scenario, Stop
from tests.faults import campaign, kills
from tests.faults.fault import Budget, Fault
from tests.faults.tally import Tally

SEED = 1
ROUNDS = 30
"""Of each row at most; the first that notices ends it."""
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """One protection.

    Attributes:
        name: To choose it by.
        protection: What it is.
        switch_off: Takes it out of the agents that this process becomes; is given a folder to write into.
        rows: The rows of the campaign that must notice, tried in this order until one did.
    """

    name: str
    protection: str
    switch_off: Callable[[Path], None]
    rows: Callable[[], tuple[Fault, ...]]


def _no_calls_journaled(_folder: Path) -> None:
    from agent.journal import Journal

    async def record(*_args: Any, **_kwargs: Any) -> None:
        return

    setattr(Journal, "record", record)  # noqa: B010 - mypy allows no assignment to a method


def _no_a(_folder: Path) -> None:
    from agent.journal import Journal

    original = Journal.record

    async def record(self: Journal, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **{**kwargs, "incarnation": None, "running": False})

    setattr(Journal, "record", record)  # noqa: B010 - as above


def _expiry_after_a_call(_folder: Path) -> None:
    from agent.activities.lanes import Lane
    from agent.journal import Row

    original = Lane._recover_row

    async def recover_row(self: Lane, row: Row) -> None:
        from agent.errors import Rejection

        try:
            self._refuse_expired(row)
        except Rejection as rejection:
            await self._refuse(row, rejection, recovered=True)
            return
        await original(self, row)

    setattr(Lane, "_recover_row", recover_row)  # noqa: B010 - as above


def _no_decision_to_go_back(_folder: Path) -> None:
    from agent.journal import Journal

    async def go_back(*_args: Any, **_kwargs: Any) -> None:
        return

    setattr(Journal, "go_back", go_back)  # noqa: B010 - as above


def _no_deduplication(_folder: Path) -> None:
    from agent.journal import intake

    original = intake.take

    def take(connection: Any, items: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        over = "DELETE FROM activities WHERE id = ? AND state IN ('finished', 'reported')"
        connection.executemany(over, [(item["id"],) for item in items])
        return original(connection, items, *args, **kwargs)

    intake.take = take


def _no_sweep_first(_folder: Path) -> None:
    from agent.journal import Journal

    async def following(self: Journal, runtime: str) -> Any:
        rows = await self._rows("state = 'received' AND runtime = ? ORDER BY sequence LIMIT 1", runtime)
        return rows[0] if rows and not self.lost else None

    setattr(Journal, "next", following)  # noqa: B010 - as above


def _no_lock(_folder: Path) -> None:
    from agent.runtimes.runs import RunFiles

    def take_lock(self: RunFiles) -> int:
        return os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o640)

    setattr(RunFiles, "take_lock", take_lock)  # noqa: B010 - as above
    setattr(RunFiles, "lock_is_held", lambda _self: False)  # noqa: B010 - as above


def _no_state_lock(_folder: Path) -> None:
    from agent.journal import lock

    setattr(lock.StateLock, "_hold", lambda *_: None)  # noqa: B010 - as above


def _no_pid_before_exec(folder: Path) -> None:
    from agent.runtimes import spawn

    text = spawn.PROGRAM.read_text(encoding="utf-8")
    late = 'write_record(spec["record"], {**record, **spec["facts"], "boot_id": spec["boot_id"]})'
    if late not in text:
        msg = "the launcher writes its record in another way now: adapt this"
        raise RuntimeError(msg)
    program = folder / "launch-without-pid.py"
    writer = f"if os.fork() == 0:\n            os.close(lock); time.sleep(2); {late}; os._exit(0)"
    program.write_text(text.replace(late, writer))
    spawn.PROGRAM = program
    setattr(spawn, "_was_recorded", lambda *_: True)  # noqa: B010 - as above


def _no_outbox(_folder: Path) -> None:
    from agent.journal import Journal
    from agent.protocol import ReportOutcome

    original = Journal.outbox

    async def outbox(self: Journal, limit: int) -> Any:
        reports = await original(self, limit)
        await self.reported({report.activity_id: ReportOutcome.RECORDED for report in reports})
        return reports

    setattr(Journal, "outbox", outbox)  # noqa: B010 - as above


def _points(*kinds: type[Scenario]) -> tuple[Fault, ...]:
    return (Fault("kill.point.process", "", kills.row(kills.at_each_point, kills.processes, kinds)),)


def _listed(*keys: str) -> tuple[Fault, ...]:
    from tests.faults.catalogue import FAULTS

    return tuple(campaign.chosen(FAULTS, keys))


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("calls", "a call is journaled before it is made", _no_calls_journaled, lambda: _points(Restart)),
    Mutation("a", "A is read at the decisive call", _no_a, lambda: _points(Stop, Restart, Reconfigure)),
    Mutation("expiry", "what was begun does not expire", _expiry_after_a_call, lambda: _listed("away.expiry")),
    Mutation("back", "the decision to go back is journaled", _no_decision_to_go_back, lambda: _points(RolledBack)),
    Mutation("dedup", "an id is executed once for ever", _no_deduplication, lambda: _points(Restart)),
    Mutation("sweep", "what is received waits for the sweep", _no_sweep_first, lambda: _listed("away.withdrawn")),
    Mutation("lock", "a lock is held by what runs", _no_lock, lambda: _listed("kill.launcher.process")),
    Mutation("rivals", "one agent on a state folder", _no_state_lock, lambda: _listed("rivals")),
    Mutation("outbox", "reports stay until they are confirmed", _no_outbox, lambda: _listed("network.kills")),
    Mutation("pid", "the pid is durable before exec", _no_pid_before_exec, lambda: _points(EndsAtOnce)),
)


def switch_off(name: str, folder: Path) -> None:
    """Take a protection out of the agents that this process becomes."""
    {mutation.name: mutation for mutation in MUTATIONS}[name].switch_off(folder)


async def play(mutation: Mutation, rounds: int, seconds: float) -> Tally:
    """Run the rows of the campaign on agents that lack a protection, until one has noticed.

    Raises:
        RuntimeError: A row broke, which is no notice: it may be that nothing was switched off.
    """
    whole = Tally(mutation.protection)
    os.environ[WITHOUT] = mutation.name
    try:
        for fault in mutation.rows():
            whole.add(await campaign.run(fault, SEED, Budget(seconds, most=rounds, impatient=True)))
            if whole.broken:
                msg = f"{fault.key} broke without {mutation.name}: {whole.stories}"
                raise RuntimeError(msg)
            if whole.wrong:
                break
    finally:
        del os.environ[WITHOUT]
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Switch each off, and say who noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a protection (default: all)")
    options = parser.parse_args(arguments)
    known = [mutation.name for mutation in MUTATIONS]
    if unknown := set(options.names) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    unnoticed = 0
    print("| without | noticed by | injected | lost | repeated | false | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for mutation in MUTATIONS:
        if options.names and mutation.name not in options.names:
            continue
        began = time.monotonic()
        tally = asyncio.run(play(mutation, ROUNDS, SECONDS))
        unnoticed += not tally.wrong
        who = ", ".join(fault.key for fault in mutation.rows()) if tally.wrong else "NOBODY"
        counted = f"{tally.injected} | {tally.lost} | {tally.repeated} | {tally.false} | {time.monotonic() - began:.0f}"
        print(f"| {mutation.protection} | {who} | {counted} |", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
