"""The agent reaches a limit of the system: no more processes, or no more file descriptors.

The limit of the living agent is lowered at a random moment of an action (RLIMIT_NPROC with an agent that is not root,
RLIMIT_NOFILE), and given back later. What cannot be done meanwhile is rejected with a sentence that says so, and with
the truth about what was done; the agent lives, finds by itself that all is well again, and the next start works.
"""

import asyncio
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agent.protocol import ReasonCode
from tests.e2e.rig import AGENT
from tests.faults.deeds import Actor, Deed, acting
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import FalseReportError, Tally

MAKING = ("start", "restart", "restart", "reconfigure", "stop")
"""What is chosen from: mostly what needs a process."""
FIRST_USER, USERS = 61000, 2000
"""Numbers of users that nobody has: the limit is for all processes of a user."""
CAPABILITIES = "-all,+dac_override,+fowner"
"""For an agent that is not root, and may be at home in a folder of root's all the same."""
MOMENTS = 0.35
"""Seconds after its dispatch in which an action has most to do."""
REFUSED = {
    *(ReasonCode.START_FAILED, ReasonCode.DRIVER_UNAVAILABLE, ReasonCode.NOT_READY, ReasonCode.UNSTABLE),
    *(ReasonCode.ROLLED_BACK, ReasonCode.ROLLBACK_FAILED, ReasonCode.STOP_FAILED),
}
"""What may become of an action without the means: never a fault of the agent's own, and never a guess."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of the living agent.

    Attributes:
        name: As prlimit(1) calls it.
        line: As proc_pid_limits(5) calls it.
        words: How the log and reports tell that it was reached.
    """

    name: str
    line: str
    words: str

    def lower(self, pid: int, to: int) -> None:
        """Lower it, and leave it to be raised again."""
        self._set(pid, f"{to}:")

    def give_back(self, pid: int) -> None:
        """Make it as high as it may be."""
        (line,) = (line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith(self.line))
        self._set(pid, f"{line.removeprefix(self.line).split()[1]}:")

    def _set(self, pid: int, value: str) -> None:
        # By the agent's own user: nobody else may, but for one with CAP_SYS_RESOURCE.
        user = Path(f"/proc/{pid}").stat().st_uid
        become = () if user == os.geteuid() else ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
        subprocess.run([*become, "prlimit", f"--pid={pid}", f"--{self.name}={value}"], check=True)


FORKS = Limit("nproc", "Max processes", "Resource temporarily unavailable")
DESCRIPTORS = Limit("nofile", "Max open files", "Too many open files")


def unprivileged(number: int) -> tuple[str, ...]:
    """Return a program that runs the agent as a user whose processes are counted; as it is where this is no root."""
    if os.geteuid() != 0:
        return AGENT
    user = FIRST_USER + number % USERS
    groups = ("--clear-groups", f"--regid={user}")
    capabilities = (f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}", f"--bounding-set={CAPABILITIES}")
    return ("setpriv", f"--reuid={user}", *groups, *capabilities, *AGENT)


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _told(actor: Actor, limit: Limit) -> int:
    return actor.rig.agent.log.read_text(errors="replace").count(limit.words)


def lacks() -> list[str]:
    """Say what is missing here."""
    return [f"{name} (Debian's util-linux)" for name in ("prlimit", "setpriv") if shutil.which(name) is None]


async def no_forks(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Let the agent make no more processes nor threads, for a whole action or a part of it."""
    async with acting(ground, tally, program=unprivileged(ground.seed)) as actor:
        while budget.more():
            await _limited(actor, FORKS, 0, tally)
            await actor.bring_up()


async def no_descriptors(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Let the agent open nothing more, for a whole action or a part of it."""
    async with acting(ground, tally) as actor:
        opened = _descriptors(actor.pid)
        while budget.more():
            await _limited(actor, DESCRIPTORS, max(4, _descriptors(actor.pid) + ground.chance.randint(-4, 2)), tally)
            await actor.bring_up()
        left = _descriptors(actor.pid)
        tally.notes.append(f"the agent had {opened} file descriptors open at first, and {left} in the end")
        if left > opened + 4:
            tally.fail(
                "in the end", FalseReportError(f"{opened} descriptors were open at first, and {left} in the end")
            )


async def _limited(actor: Actor, limit: Limit, to: int, tally: Tally) -> None:
    """Do one deed, with the limit in force from a moment before or in it, for a while or until it is done."""
    chance = actor.chance
    told, before, whole = _told(actor, limit), chance.random() < 0.6, chance.random() < 0.6
    if before:
        limit.lower(actor.pid, to)
    try:
        deed = await actor.begin(chance.choice(MAKING))
        if not before:
            await asyncio.sleep(chance.uniform(0, MOMENTS))
            limit.lower(actor.pid, to)
        await (_reported(actor, deed) if whole else asyncio.sleep(chance.uniform(0.05, 1.5)))
    finally:
        limit.give_back(actor.pid)
    story = f"{limit.words.lower()}, {to} from {'before' if before else 'in'} it {'to its end' if whole else 'on'}"
    await actor.end(deed, story, allowed=REFUSED)
    tally.injected += _told(actor, limit) > told


async def _reported(actor: Actor, deed: Deed) -> None:
    """Wait a while for the result: it may have to wait for the limit's end itself."""
    try:
        await actor.rig.api.finished(deed.activity.id, within=3)
    except TimeoutError:
        return


FAULTS = (
    Fault("limits.forks", "no more processes", no_forks, lacks=lacks),
    Fault("limits.descriptors", "file descriptors used up", no_descriptors, lacks=lacks),
)
