"""What happens on the simulated node, and the record of it that the judge goes by."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.protocol import DriverKind, RuntimeName
from tests.faults.simulated.clockwork import VirtualLoop
from tests.faults.tally import RepeatedError

ON_ITS_WAY = 0.5
"""Seconds that a call takes to arrive in the bus, the Engine, or at the launcher."""
AT_WORK = 0.3
"""Seconds that each half of a job takes."""
GAP = 0.2
"""Seconds between the end of a run and its revival."""
MOST_REVIVALS = 3
"""After which nothing revives it any more, as after systemd's start limit."""


@dataclass
class Machine:
    """The node: its clock, its boots, and an order of all that happens."""

    loop: VirtualLoop
    boot: int = 1
    moment: int = 0
    wrong: AssertionError | None = None
    """What was found while the agent ran; raised once it halts, so that the agent cannot catch it."""

    def find(self, error: AssertionError) -> None:
        self.wrong = self.wrong or error

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def next_moment(self) -> int:
        self.moment += 1
        return self.moment


@dataclass(eq=False)
class Run:
    """One run of a runtime."""

    number: int
    config: str | None
    began: int
    boot: int
    by: int | None
    """The activity whose call began it; None: it began by itself."""
    ready: int | None = None
    ended: int | None = None

    @property
    def name(self) -> str:
        return f"run-{self.number}"


@dataclass(frozen=True)
class Effect:
    """A run that began or ended by an activity's call."""

    moment: int
    what: str
    activity: int
    run: Run
    boot: int


@dataclass(eq=False)
class Message:
    """A call between the agent and whoever carries it out."""

    verb: str
    activity: int
    target: Run | None
    answered: "asyncio.Future[None]"
    orphan: bool = False


@dataclass(eq=False)
class World:
    """One runtime on the node."""

    name: RuntimeName
    kind: DriverKind
    machine: Machine
    revived: bool
    """Whether something revives it when it ends by itself."""
    current: Callable[[], str | None]
    """Checksum of the config that a run would begin with now."""
    never_ready: set[str | None] = field(default_factory=set)
    ends_at_once: set[str | None] = field(default_factory=set)
    slow: bool = False
    running: Run | None = None
    last: Run | None = None
    exit_code: int | None = None
    gap: bool = False
    revivals: int = 0
    job: str | None = None
    """A job that can be seen: systemd's queue; a launcher on its way."""
    messages: list[Message] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    downs: list[tuple[int, int | None]] = field(default_factory=lambda: [(0, None)])
    """From when to when it was down, with nothing about to revive it."""
    body: str | None = None
    """Docker: the config that the container in use was made with."""
    bodies: dict[str | None, Run | None] = field(default_factory=dict)
    """Docker: the last run of each container that is kept."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    # --- runs

    def begin(self, by: int | None) -> None:
        machine = self.machine
        if self.running is not None:
            machine.find(RepeatedError(f"two runs of {self.name} at once"))
            return
        config = self.body if self.kind is DriverKind.DOCKER else self.current()
        run = Run(len(self.runs) + 1, config, machine.next_moment(), machine.boot, by)
        self._up(run.began)
        self.runs.append(run)
        self.running = self.last = run
        self.gap = False
        self.exit_code = None
        if by is not None:
            self.revivals = 0
            self.effects.append(Effect(run.began, "begin", by, run, machine.boot))
        if config in self.ends_at_once:
            self.end(None, 1)
        elif not self.slow and config not in self.never_ready:
            self.get_ready()
        self.changed.set()

    def get_ready(self) -> None:
        if self.running is not None and self.running.ready is None and self.running.config not in self.never_ready:
            self.running.ready = self.machine.next_moment()

    def end(self, by: int | None, exit_code: int = 0) -> None:
        run = self.running
        assert run is not None
        run.ended = self.machine.next_moment()
        self.running = None
        self.exit_code = exit_code
        if by is not None:
            self.effects.append(Effect(run.ended, "end", by, run, self.machine.boot))
        elif self.revived and self.revivals < MOST_REVIVALS:
            self.revivals += 1
            self.gap = True
            self.machine.loop.call_later(GAP, self._revive, run)
        if not self.gap:
            self.downs.append((run.ended, None))
        self.changed.set()

    def _revive(self, run: Run) -> None:
        if self.gap and self.last is run and self.running is None:
            self.begin(None)

    def give_up_reviving(self) -> None:
        if self.gap:
            self.gap = False
            self.downs.append((self.machine.next_moment(), None))

    def _up(self, moment: int) -> None:
        if self.downs and self.downs[-1][1] is None:
            self.downs[-1] = (self.downs[-1][0], moment)

    # --- calls

    def send(self, verb: str, activity: int, target: Run | None = None) -> "asyncio.Future[None]":
        """Send a call; it is on its way whether or not its caller waits until it is carried out."""
        message = Message(verb, activity, target, self.machine.loop.create_future())
        self.messages.append(message)
        if self.kind is DriverKind.PROCESS and verb == "start":
            self.job = "start"  # the lock is held from before the fork
        self.machine.loop.call_later(ON_ITS_WAY, self._arrive, message)
        return message.answered

    def _arrive(self, message: Message) -> None:
        if message not in self.messages:
            return  # lost with its sender, or in a reboot
        self.messages.remove(message)
        match self.kind:
            case DriverKind.SYSTEMD:
                self._queue(message)
            case DriverKind.DOCKER | DriverKind.PROCESS:
                self._do_at_once(message)

    def _do_at_once(self, message: Message) -> None:
        if self.kind is DriverKind.PROCESS:
            self.job = None if message.verb == "start" else self.job
        if message.verb == "start":
            if self.running is None:
                self.begin(message.activity)
        elif self.running is not None and message.target in {None, self.running}:
            self.end(message.activity)
        elif self.running is None:
            self.give_up_reviving()
        self._answer(message)

    def _queue(self, message: Message) -> None:
        if self.job is not None:
            self.machine.loop.call_later(AT_WORK, self._requeue, message, self.machine.boot)
            return
        self.give_up_reviving()
        up = self.running is not None
        if (message.verb == "start" and up) or (message.verb == "stop" and not up):
            self._answer(message)
            return
        self.job = message.verb
        self.changed.set()
        self.machine.loop.call_later(AT_WORK, self._first_half, message, self.machine.boot)

    def _requeue(self, message: Message, boot: int) -> None:
        if boot == self.machine.boot:
            self._queue(message)

    def _first_half(self, message: Message, boot: int) -> None:
        if boot != self.machine.boot:
            return
        if message.verb != "start" and self.running is not None:
            self.end(message.activity)
        if message.verb == "stop":
            self.job = None
            self._answer(message)
        else:
            self.machine.loop.call_later(AT_WORK, self._second_half, message, boot)

    def _second_half(self, message: Message, boot: int) -> None:
        if boot != self.machine.boot:
            return
        self.job = None
        if self.running is None:
            self.begin(message.activity)
        self._answer(message)

    def _answer(self, message: Message) -> None:
        self.changed.set()
        if not message.answered.done():
            message.answered.set_result(None)

    # --- what befalls it

    def orphan(self, *, lost: bool) -> None:
        """The agent died: its calls that are on their way arrive all the same, or are lost with it."""
        if lost and self.kind is not DriverKind.PROCESS:
            self.messages.clear()
        if self.kind is DriverKind.PROCESS:  # a signal is sent or not; a launcher goes on
            self.messages = [message for message in self.messages if message.verb == "start"]

    def die(self) -> None:
        """End by itself."""
        if self.running is not None:
            self.end(None, 1)

    def reboot(self, *, comes_up: bool) -> None:
        """The machine came up again; with it the runtime, where something starts it at boot."""
        revived, self.revived = self.revived, False
        if self.running is not None:
            self.end(None, 0)
        self.revived = revived
        self.give_up_reviving()
        self.messages.clear()
        self.job = None
        self.revivals = 0
        if self.kind is DriverKind.SYSTEMD:
            self.last = None
        if comes_up and self.kind is not DriverKind.PROCESS:
            self.begin(None)

    # --- containers

    def make_container(self, config: str | None) -> None:
        """Make the container with another config the one in use; a kept one is put back with its last run."""
        if self.running is not None:
            self.machine.find(RepeatedError(f"the container of {self.name} was taken away while it ran"))
        self.bodies[self.body] = self.last
        self.body = config
        self.last = self.bodies.pop(config, None)
        self.give_up_reviving()

    def drop_containers(self) -> None:
        self.bodies.clear()
