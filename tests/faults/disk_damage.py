"""The files of the journal are damaged while the agent is dead, or are not the agent's to use.

**Damage**: the agent is killed at a random moment of an action, and then the journal or its write-ahead log is cut
short, emptied, deleted, flipped in some bits, or put back from an old copy. The agent starts, acts on no more than it
knows, and what it reports is true. What it cannot know is `outcome_unknown`. After a damage that nobody can see (a log
that was cut opens cleanly, with an older state) something may be done again, or a runtime be left stopped by a
reconfigure that does not know any more that it stopped it. How often that happened is noted; it is not promised
otherwise. Flipped bits in the journal may be unseen too, so that repeats after them are noted; after any other damage
of that file, after a kill without a damage, and where the journal's revision tells that it is older than what the
Supervisor has heard of it, a repeat is a failure. Once the agent has compared its journal with the Supervisor's answer,
the next activity is carried out as ever. `disk_judge.py` is the judge.

**Owner and modes**: files and folders of the state belong to somebody else, or may not be read, written or entered. The
agent says which one it is and what to do, does nothing meanwhile, and goes on once that is mended; nothing is lost. So
it does when the disk is mounted read-only while it is away; what a disk that turns read-only while it runs does to it,
`disk.failing` does, for a real mount is refused then.
"""

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.programs import standin_programs
from tests.e2e.rig import AGENT, CommandFailedError, Rig
from tests.e2e.waiting import until
from tests.faults.deeds import IGGY, USUAL, Actor, Deed
from tests.faults.disk import MOMENTS, lacks_root, on_a_small_disk
from tests.faults.disk_judge import OLD_COPY, UNSEEN, DamagedActor, is_known_to_be_older
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, Tally

DATABASE, LOG = "journal.db", "journal.db-wal"
FILES = (DATABASE, LOG, "journal.db-shm")
CANNOT_OPEN = 74
"""Exit code of an agent that cannot use its journal: sysexits.h."""


# --- damage


def _cut(path: Path, chance: random.Random) -> None:
    """Cut it where something is written: a log is allocated ahead."""
    os.truncate(path, chance.randrange(len(path.read_bytes().rstrip(b"\0"))))


def _empty(path: Path, _: random.Random) -> None:
    os.truncate(path, 0)


def _delete(path: Path, _: random.Random) -> None:
    path.unlink()


def _flip(path: Path, chance: random.Random) -> None:
    """Flip some bits where something is written, not in what is still free."""
    content = bytearray(path.read_bytes())
    written = [place for place, byte in enumerate(content) if byte]
    for place in chance.sample(written, min(len(written), chance.choice((1, 1, 3, 20)))):
        content[place] ^= 1 << chance.randrange(8)
    with path.open("r+b") as file:  # in place: the same file, with all its names
        file.write(content)


DAMAGES: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "a cut log": (LOG, _cut),
    "an emptied log": (LOG, _empty),
    "a deleted log": (LOG, _delete),
    "flipped bits in the log": (LOG, _flip),
    "a cut journal": (DATABASE, _cut),
    "an emptied journal": (DATABASE, _empty),
    "a deleted journal": (DATABASE, _delete),
    "flipped bits in the journal": (DATABASE, _flip),
}


@dataclass(slots=True)
class Damaged:
    """What came of each kind of damage."""

    rounds: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    left_stopped: Counter[str] = field(default_factory=Counter)
    known: int = 0
    """After how many the journal could be known to be older than it was, so that nothing may be repeated."""


async def damaged(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Damage the journal in the middle of an action, again and again."""
    seen = Damaged()
    async with Rig(standin_programs(), USUAL) as rig:
        await rig.start_agent()
        actor = DamagedActor(rig, ground.chance, tally)
        copy = ground.folder / "copy"
        for kind in budget.each([*DAMAGES, OLD_COPY], ground.chance):
            await _damage_once(actor, kind, copy, seen)
    for kind, rounds in sorted(seen.rounds.items()):
        tally.notes.append(f"repeated after {kind}: {seen.repeated[kind]} of {rounds}")
    for kind in sorted(UNSEEN & seen.rounds.keys()):
        tally.notes.append(f"left stopped after {kind}: {seen.left_stopped[kind]} of {seen.rounds[kind]}")
    tally.notes.append(f"the agent ended by itself to begin a new journal {actor.ended} times")
    tally.notes.append(f"known to be damaged or older: {seen.known} of {seen.rounds.total()}")


async def _damage_once(actor: DamagedActor, kind: str, copy: Path, seen: Damaged) -> None:
    rig, chance, repeated, left_stopped = actor.rig, actor.chance, actor.repeated, actor.left_stopped
    actor.damage, actor.known = "", False
    deed = await actor.begin()
    await asyncio.sleep(chance.uniform(0, MOMENTS))
    rig.agent.kill()
    await actor.look_at_death(deed)
    if not _damage(rig.node.state_dir, kind, copy, chance):
        await rig.start_agent()
        await actor.end(deed, "killed")
        return
    actor.damage = kind
    journal = rig.node.state_dir / DATABASE
    actor.known = await asyncio.to_thread(is_known_to_be_older, journal, rig.supervisor_database, rig.node_id)
    seen.known += actor.known
    actor.tally.injected += 1
    await _start(actor)
    await actor.end(deed, f"after {kind}")
    left = actor.left_stopped - left_stopped
    actor.known = False
    await actor.require_next(kind, deed.size if left else None)
    seen.rounds[kind] += 1
    seen.repeated[kind] += actor.repeated - repeated
    seen.left_stopped[kind] += left


def _damage(state: Path, kind: str, copy: Path, chance: random.Random) -> bool:
    """Do it; returns False when there is nothing to damage. What is there is kept as a copy from time to time."""
    if kind == OLD_COPY and copy.exists():
        for name in FILES:
            (state / name).unlink(missing_ok=True)
        shutil.copytree(copy, state, dirs_exist_ok=True)
        shutil.rmtree(copy)
        return True
    if not copy.exists():
        copy.mkdir()
        for name in FILES[:2]:
            with suppress(FileNotFoundError):
                shutil.copy(state / name, copy)
    if kind == OLD_COPY:
        return False
    name, damage = DAMAGES[kind]
    path = state / name
    if not path.exists() or not any(path.read_bytes()):
        return False
    damage(path, chance)
    return True


async def _start(actor: DamagedActor) -> None:
    """Start the agent, which sets a journal aside that it cannot use; one that does not start is told, and helped."""
    rig = actor.rig
    try:
        await rig.start_agent()
    except CommandFailedError as error:
        actor.tally.fail("it does not start", FalseReportError(str(error)))
        for name in FILES:
            (rig.node.state_dir / name).unlink(missing_ok=True)
        await rig.start_agent()


# --- owner and modes


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong owner or mode.

    Attributes:
        place: Below the state folder; the folder itself when empty.
        owner: Who gets it; None leaves it.
        mode: What it gets; None leaves it.
    """

    place: str
    owner: int | None = None
    mode: int | None = None


STRANGER = 61999
"""A user that nobody has."""
WRONGS = (
    Wrong("", owner=STRANGER, mode=0o700),
    Wrong("", mode=0o500),
    Wrong("", mode=0o000),
    Wrong("lock", owner=STRANGER),
    Wrong("identity.json", owner=STRANGER),
    Wrong("identity.json", mode=0o000),
    Wrong("journal.db", owner=STRANGER),
    Wrong("journal.db", mode=0o000),
    Wrong("journal.reserve", owner=STRANGER),
)
WITHOUT_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", *AGENT)
"""Root for whom permissions hold, as they do for the agent's own user."""


async def owned_by_others(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Give something of the state folder to somebody else while the agent is away."""
    async with Rig(standin_programs(), USUAL, agent_program=WITHOUT_CAPABILITIES) as rig:
        await rig.start_agent()
        actor = Actor(rig, ground.chance, tally)
        await actor.bring_up()
        for wrong in budget.each(WRONGS, ground.chance):
            await _wrong_once(actor, wrong, tally)


async def _wrong_once(actor: Actor, wrong: Wrong, tally: Tally) -> None:
    rig = actor.rig
    path = rig.node.state_dir / wrong.place
    if actor.chance.random() < 0.5:
        rig.agent.kill()
    else:
        await rig.agent.terminate()
    deed = await actor.begin("restart")
    before = path.stat()
    try:
        if wrong.mode is not None:
            path.chmod(wrong.mode)
        if wrong.owner is not None:
            os.chown(path, wrong.owner, -1)
        tally.injected += 1
        await _refuses(actor, deed, wrong.place, tally)
    finally:
        os.chown(path, before.st_uid, -1)
        path.chmod(before.st_mode & 0o7777)
    await rig.start_agent()
    await actor.end(deed, f"after {wrong}")


async def read_only(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Mount the disk read-only while the agent is away, and nothing on it is open for writing."""
    async with on_a_small_disk(ground, tally) as (actor, disk):
        while budget.more():
            await actor.end(await actor.begin("stop"), "before the disk is read-only")
            actor.rig.agent.kill()
            deed = await actor.begin("start")
            disk.remount("ro")
            try:
                tally.injected += 1
                await _refuses(actor, deed, "", tally)
            finally:
                disk.remount("rw")
            await actor.rig.start_agent()
            await actor.end(deed, "after the disk was read-only")


async def _refuses(actor: Actor, deed: Deed, place: str, tally: Tally) -> None:
    """Start an agent that cannot use its state, and judge what it says and does."""
    rig = actor.rig
    said = len(rig.agent.log.read_bytes())
    story = f"with {place or 'its state'} out of reach"
    try:
        await rig.start_agent(wait=False)
        await until(lambda: not rig.agent.alive, f"an agent {story} ends", within=15.0)
        _judge_words(rig, place, rig.agent.log.read_bytes()[said:].decode(errors="replace"))
        if len(rig.births(IGGY)) != len(deed.before):
            tally.fail(story, FalseReportError("something was started meanwhile"))
    except (AssertionError, TimeoutError) as error:
        tally.fail(story, error)
        rig.agent.kill()


def _judge_words(rig: Rig, place: str, words: str) -> None:
    """Require that it ended as it says it does, and named the place and the next step."""
    code, state = rig.agent.exit_code, rig.node.state_dir
    named = str(state / place) if place in {"identity.json", "journal.db"} else str(state)
    if code not in {CANNOT_OPEN, 75, 78} or named not in words or "hint" not in words:
        msg = f"it ended with {code} and said: {words[-1500:]}"
        raise FalseReportError(msg)


FAULTS = (
    Fault("disk.damage", "journal or its log damaged, or put back", damaged, share=2.0, takes=20.0),
    Fault(
        "disk.owner", "state folder with wrong owner or mode", owned_by_others, share=0.5, lacks=lacks_root, takes=25.0
    ),
    Fault("disk.readonly", "disk of the state folder mounted read-only", read_only, share=0.4, lacks=lacks_root),
)
