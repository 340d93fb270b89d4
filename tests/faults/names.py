"""How an agent finds the Supervisor, and knows it: certificates, names, and addresses that change."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from yarl import URL

from tests.e2e.crash_node import CrashNode
from tests.e2e.gate import Gate
from tests.e2e.nursery import Manner, Nursery
from tests.e2e.ports import Ports
from tests.e2e.rig import Rig
from tests.e2e.waiting import until
from tests.faults.errands import USUAL, Node, judged
from tests.faults.fault import Budget, Ground
from tests.faults.tally import FalseReportError, Tally

NAME = "supervisor.test"
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
NOWHERE = "127.0.0.9"
HITS = 2
"""Connections that a fault meets before it is over."""
FOLLOWS = 60.0
"""Seconds within which an agent is well again: a name may be remembered for ten."""


@dataclass(frozen=True, slots=True)
class House:
    """The Supervisor behind a gate with a certificate, and a node that knows it by its name.

    Attributes:
        etc: What the agent sees in `/etc`.
    """

    node: Node
    gate: Gate
    ca: trustme.CA
    etc: Path

    def names(self, *addresses: str) -> None:
        """Give the Supervisor's name these addresses, or none."""
        lines = ["127.0.0.1 localhost", *(f"{address} {NAME}" for address in addresses)]
        (self.etc / "hosts").write_text("\n".join([*lines, ""]))

    def ask(self, *sources: str) -> None:
        """Look names up in these sources: `files`, and `dns`, where no server answers."""
        (self.etc / "nsswitch.conf").write_text(f"hosts: {' '.join(sources)}\n")


def context(
    ca: trustme.CA, *names: str, ends: timedelta = timedelta(days=1), begins: timedelta | None = None
) -> ssl.SSLContext:
    """Make what a server with such a certificate has; times count from now."""
    now = datetime.now(UTC)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, not_before=now + (begins or timedelta(days=-2)), not_after=now + ends).configure_cert(made)
    return made


@asynccontextmanager
async def house(rig: Rig, nursery: Nursery, name: str, ground: Ground, tally: Tally) -> AsyncIterator[House]:
    """Set it up; the runtime runs."""
    ca, etc = trustme.CA(), ground.folder / "etc"
    etc.mkdir()
    ca_file = ground.folder / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    upstream = URL(rig.supervisor_url).port
    async with AsyncExitStack() as stack:
        ports = Ports()
        stack.callback(ports.close)
        gate = Gate(ports.take(), upstream or 0, context(ca, NAME), ADDRESSES[0])
        await stack.enter_async_context(gate)
        manner = Manner(hasty=True, ca_file=ca_file, etc=etc)
        node = CrashNode(rig, nursery, name, USUAL, supervisor_url=f"https://{NAME}:{gate.port}", manner=manner)
        made = House(Node(node, ground.chance, tally), gate, ca, etc)
        made.names(gate.host)
        made.ask("files", "dns")
        await stack.enter_async_context(node)
        await node.bring_up()
        yield made


async def _met(
    house: House,
    story: str,
    says: str,
    right: Callable[[], Awaitable[None]],
    *,
    hits: int = 0,
    shake: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Wait until a fault came and the agent says so, make it right, and see that what was dispatched is done.

    Args:
        house: Where.
        story: What is wrong.
        says: Part of what the agent has to say of it.
        right: Makes it right.
        hits: Connections that have to meet it.
        shake: Done now and then meanwhile, so that the agent has to connect anew.
    """
    node, tally = house.node, house.node.tally

    async def said() -> bool:
        if shake is not None:
            await shake()
        status = await node.node.ask("/v1/status")
        return any(says in condition["message"] for condition in (status or {"conditions": []})["conditions"])

    async with asyncio.TaskGroup() as group:
        group.create_task(node.run(story=f"{story},"))
        try:
            await until(lambda: house.gate.hits >= hits, f"the agent meets {story}", within=FOLLOWS, every=0.05)
            await until(said, f"the agent says '{says}' of {story}", within=FOLLOWS, every=0.2)
            tally.injected += 1
        except TimeoutError as error:
            error.add_note(str(await node.node.ask("/v1/status")))
            tally.fail(story, error)
        finally:
            await right()
    await node.get_well(FOLLOWS)
    if house.gate.fooled:
        tally.fail(story, FalseReportError("the agent talked to somebody who could not prove to be the Supervisor"))
        house.gate.fooled = 0


def _impostors(ca: trustme.CA) -> dict[str, ssl.SSLContext | bytes]:
    day = timedelta(days=1)
    return {
        "the certificate of another CA": context(trustme.CA(), NAME),
        "an expired certificate": context(ca, NAME, ends=-day),
        "a certificate that is not valid yet": context(ca, NAME, begins=day, ends=2 * day),
        "a certificate for another host": context(ca, "other.test", "127.0.0.2"),
        "no TLS": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "nonsense for TLS": bytes(range(256)),
    }


async def bad_certificates(rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally) -> None:
    """Show the agent certificates that it must not accept, and then the right one again."""
    async with house(rig, nursery, "tls", ground, tally) as made, judged([made.node]):
        impostors = _impostors(made.ca)
        for story in budget.each(list(impostors), ground.chance):
            await made.gate.be(impostors[story])
            says = "TLS failed" if isinstance(impostors[story], bytes) else "certificate was not accepted"
            await _met(made, story, says, made.gate.open, hits=HITS)


async def lost_names(rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally) -> None:
    """Let the Supervisor's name have no address for a while, or a wrong one."""
    async with house(rig, nursery, "dns", ground, tally) as made, judged([made.node]):
        wrongs: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
            "a name without an address": ((), ("files",), "has no address"),
            "no name server": ((), ("files", "dns"), "has no address"),
            "a name with a wrong address": ((NOWHERE,), ("files",), "no connection"),
        }

        async def right() -> None:
            made.names(made.gate.host)
            made.ask("files", "dns")

        for story in budget.each(list(wrongs), ground.chance):
            addresses, sources, says = wrongs[story]
            made.ask(*sources)
            made.names(*addresses)
            await _met(made, story, says, right, shake=made.gate.reset)


async def moved(rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally) -> None:
    """Move the Supervisor to another address; at the old one nobody is, or nobody answers, or somebody else is."""
    async with house(rig, nursery, "moved", ground, tally) as made, judged([made.node]):
        for left in budget.each(("nobody", "silence", "somebody else"), ground.chance):
            await _move(made, left, ground.chance)


async def _move(made: House, left: str, chance: random.Random) -> None:
    old, tally = made.gate.host, made.node.tally
    address = chance.choice([address for address in ADDRESSES if address != old])
    story = f"moved, and at the old address is {left}"
    behind = Gate(made.gate.port, 0, None, old)
    await made.gate.close()
    if left != "nobody":
        await behind.open()
        if left == "silence":
            await behind.fall_silent()
        else:
            await behind.be(context(trustme.CA(), NAME))
    try:
        await made.gate.open(address)
        made.names(address)
        await made.node.run(story=f"{story},")
        await made.node.get_well(FOLLOWS)
        tally.injected += 1
        if behind.fooled:
            tally.fail(story, FalseReportError("the agent talked to who came after the Supervisor"))
    finally:
        await behind.open(old)
        await behind.close()


async def black_hole(rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally) -> None:
    """Take every connection, and let no byte through any more, on those that were open neither."""
    async with house(rig, nursery, "silent", ground, tally) as made, judged([made.node]):
        while budget.more():
            await made.gate.fall_silent()
            await _met(made, "a black hole", "no answer in time", made.gate.open, hits=HITS)
