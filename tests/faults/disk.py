"""The disk of the state folder: full, failing, and slow.

**Full**: a small file system is filled to the last block at a random moment of an action, and what is freed meanwhile
is taken too; in some rounds the agent is killed and starts again while it is full. What had begun is finished and its
report arrives while the disk is full; what had not is rejected as `no_space`, without any effect; once there is room
again, the agent finds that by itself and carries out what comes next.

**Failing**: the system calls by which the journal is written are answered with EIO or EROFS for a while, as by a broken
disk or one that was made read-only. Nothing is done that was not written, and nothing is lost or done twice.

**Slow**: each sync of the agent takes a fifth of a second or more.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agent.protocol import ActivityStatus, ReasonCode
from tests.e2e.programs import standin_programs
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.deeds import IGGY, USUAL, Actor, Deed
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, LostError, Tally
from tests.small_disk import SmallDisk, mounted

MOMENTS = 0.35
"""Seconds after its dispatch in which an action has most to do."""
REFUSED = {ReasonCode.NO_SPACE, ReasonCode.START_FAILED, ReasonCode.NOT_READY, ReasonCode.UNSTABLE} | {
    ReasonCode.ROLLED_BACK,
    ReasonCode.ROLLBACK_FAILED,
}
"""What may become of an action on a full disk: the runtime needs it too."""


@asynccontextmanager
async def on_a_small_disk(ground: Ground, tally: Tally) -> AsyncIterator[tuple[Actor, SmallDisk]]:
    """Set up a Supervisor and a node whose state folder is on a disk of its own; it is unmounted whatever happens."""
    with mounted(ground.folder / "disk", size="24m") as disk:
        async with Rig(standin_programs(), USUAL) as rig:
            rig.node.move_state(disk.folder)
            await rig.start_agent()
            actor = Actor(rig, ground.chance, tally)
            yield actor, disk
            _note_outcomes(actor)


def _note_outcomes(actor: Actor) -> None:
    became = ", ".join(f"{word} {count}" for word, count in actor.outcomes.most_common())
    actor.tally.notes.append(f"they became {became}")


# --- full


async def full(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Fill the disk in the middle of an action, or before it."""
    async with on_a_small_disk(ground, tally) as (actor, disk):
        while budget.more():
            await _full_once(actor, disk, tally)


async def _full_once(actor: Actor, disk: SmallDisk, tally: Tally) -> None:
    chance = actor.chance
    before, restarts, stays = chance.random() < 0.25, chance.random() < 0.25, chance.random() < 0.6
    if before:
        _fill(disk, tally)
    deed = await actor.begin()
    if not before:
        await asyncio.sleep(chance.uniform(0, MOMENTS))
        _fill(disk, tally)
    if restarts:
        await asyncio.sleep(chance.uniform(0, MOMENTS))
        actor.rig.agent.kill()
        disk.fill()
        await actor.rig.start_agent()
    story = f"the disk full {'before' if before else 'in'} it{', and killed' if restarts else ''}"
    if stays:
        await _reported_while_full(actor, deed, disk, story)
    else:
        await asyncio.sleep(chance.uniform(0, 2 * MOMENTS))
    disk.free()
    activity = await actor.end(deed, f"{story}{', for long' if stays else ''}", allowed=REFUSED)
    if activity is not None:
        await _check_refusal(actor, deed, story, full=before and stays)
    await _next_one_works(actor, story)


async def _check_refusal(actor: Actor, deed: Deed, story: str, *, full: bool) -> None:
    """Require that nothing was begun on a disk that stayed full, and that what was not begun has had no effect."""
    row = await actor.rig.journaled(deed.activity.id)
    if row is None:
        return
    if full and row["started_at"] is not None:
        actor.tally.fail(story, FalseReportError(f"begun on a full disk: {row}"))
    untouched = (tuple(actor.rig.births(IGGY)), tuple(actor.alive())) == (deed.before, deed.living)
    if row["started_at"] is None and (row["changed"] or not untouched):
        actor.tally.fail(story, FalseReportError(f"not begun, and it had an effect: {row}"))


def _fill(disk: SmallDisk, tally: Tally) -> None:
    disk.fill()
    if disk.left == 0:
        tally.injected += 1


async def _reported_while_full(actor: Actor, deed: Deed, disk: SmallDisk, story: str) -> None:
    """Require the result while there is no room, whatever it is: space is kept for it."""

    async def look() -> bool:
        disk.fill()
        return (await actor.rig.api.get(deed.activity.id)).status is not ActivityStatus.PROCESSING

    try:
        await until(look, "it is reported while the disk is full", every=0.05)
    except TimeoutError as error:
        actor.tally.fail(f"{deed.action}, {story}", LostError(str(error)))


async def _next_one_works(actor: Actor, story: str) -> None:
    """Dispatch once more, now that all is well."""
    if actor.chance.random() < 0.3:
        await actor.end(await actor.begin("restart"), f"after {story}")


# --- failing, and slow


class Injection:
    """Has some system calls of the agent answered otherwise for a while, as strace(1) does it.

    Args:
        pid: Of the agent; its children too.
        calls: Which.
        what: What becomes of them, as `strace --inject` takes it.
        paths: Only those on these files; all if there are none.
        log: Where strace writes which were hit.
    """

    def __init__(self, pid: int, calls: Sequence[str], what: str, paths: Sequence[Path], log: Path) -> None:
        names = ",".join(calls)
        only = [part for path in paths for part in ("-P", str(path))]
        self._log = log
        self._log.write_text("")
        self._command = ["strace", "-f", "-qq", "-o", str(log), *only, "-e", f"trace={names}"]
        self._command += ["-e", f"inject={names}:{what}", "-p", str(pid)]
        self._pid = pid
        self._strace: asyncio.subprocess.Process | None = None

    async def begin(self) -> None:
        """Return when it is in force."""
        self._strace = await asyncio.create_subprocess_exec(*self._command, stderr=subprocess.DEVNULL)
        status = Path(f"/proc/{self._pid}/status")
        await until(
            lambda: f"TracerPid:\t{self._strace_pid}\n" in status.read_text(), "strace is attached", every=0.005
        )

    @property
    def _strace_pid(self) -> int:
        return 0 if self._strace is None else self._strace.pid

    @property
    def hits(self) -> int:
        """How many calls were hit and are over: what strace lets go in the middle of one is not among them."""
        return sum("(INJECTED)" in line or "(DELAYED)" in line for line in self._log.read_text().splitlines())

    async def end(self) -> int:
        """Let all calls through again; returns how many were hit."""
        if self._strace is not None:
            self._strace.send_signal(signal.SIGINT)
            await self._strace.wait()
        return self.hits


@asynccontextmanager
async def on_this_disk(ground: Ground, tally: Tally) -> AsyncIterator[Actor]:
    """Set up a Supervisor and a node on the ordinary disk."""
    async with Rig(standin_programs(), USUAL) as rig:
        await rig.start_agent()
        actor = Actor(rig, ground.chance, tally)
        yield actor
        _note_outcomes(actor)


WRITES = ("pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate")


async def failing(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Have writes of the journal fail for a while, in the middle of an action or before it."""
    rounds = hits = 0
    async with on_this_disk(ground, tally) as actor:
        state = actor.rig.node.state_dir
        files = [state / name for name in ("journal.db", "journal.db-wal")]
        while budget.more():
            calls: tuple[str, ...] = WRITES
            when = ""
            if hits:
                calls = actor.chance.choice((WRITES, WRITES[1:3], WRITES[:1]))
                when = actor.chance.choice(("", ":when=2+3", f":when={actor.chance.randint(1, 6)}"))
            what = f"error={actor.chance.choice(('EIO', 'EIO', 'EROFS'))}{when}"
            hit = await _injected(actor, Injection(actor.pid, calls, what, files, ground.folder / "strace"), what)
            rounds, hits = rounds + 1, hits + hit
            tally.injected += hit
    tally.notes.append(f"{hits:,} calls failed in {rounds:,} rounds")


async def slow(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Have each sync of the agent take long."""
    async with on_this_disk(ground, tally) as actor:
        while budget.more():
            what = f"delay_enter={actor.chance.choice((200_000, 500_000))}"
            injection = Injection(actor.pid, ("fsync", "fdatasync"), what, (), ground.folder / "strace")
            tally.injected += await _injected(actor, injection, what)


async def _injected(actor: Actor, injection: Injection, what: str) -> int:
    """Carry something out, some of it under the injection; returns how many calls were hit.

    Until something was injected, it goes on until a call was hit.
    """
    first = not actor.tally.injected
    before = first or actor.chance.random() < 0.6
    if before:
        await injection.begin()
    deed = await actor.begin()
    try:
        if not before:
            await asyncio.sleep(actor.chance.uniform(0, MOMENTS))
            await injection.begin()
        await asyncio.sleep(actor.chance.uniform(0.1, 1.5))
        if first:
            await until(lambda: injection.hits > 0, f"a call of the agent is hit by {what}", every=0.005)
    finally:
        hit = await injection.end()
    await actor.end(deed, f"{what} {'before' if before else 'in'} it")
    return hit


def lacks_root() -> list[str]:
    """Say so when this is not root, who alone may mount and give away."""
    return [] if os.geteuid() == 0 else ["root"]


def _lacks_strace() -> list[str]:
    return [] if shutil.which("strace") else ["strace"]


FAULTS = (
    Fault("disk.full", "disk of the state folder full", full, share=1.5, lacks=lacks_root),
    Fault("disk.failing", "EIO, EROFS when the journal is written", failing, share=1.5, lacks=_lacks_strace),
    Fault("disk.slow", "slow fsync", slow, share=0.5, lacks=_lacks_strace),
)
