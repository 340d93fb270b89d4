"""The network between the agent and the Supervisor, and the Supervisor itself, fail in every way that networks know.

`network.drop` to `network.portal`: each request of some nodes that start, stop, restart and reconfigure their runtimes
meets one kind of fault by chance; then nothing gets through for a while; then it is calm. `network.mixed`: all kinds at
once. In these the agent is hasty: the longest of its delays and read timeouts are seconds, so that hours of bad weather
fit in minutes; the rules are the same.

`network.kills`: and the agents are killed (-9) meanwhile. `network.token`: the node token is due to be exchanged while
most calls that do so are spoilt, and in some rounds the agent is killed (-9) again and again meanwhile; then all tokens
are refused for a while.

`network.outage`: the agent, with its real delays, is cut off while 1,000 activities are dispatched to its node.
`network.supervisor`: the Supervisor is killed (-9) at any moment and started again. `network.copy`: it is put back from
a copy that was made in the middle of something. `network.tls`: certificates that must not be accepted. `network.dns`:
the Supervisor's name has no address, or a wrong one, for this agent. `network.moved`: the name gets another address,
and the agent has to follow. `network.silent`: connections are taken, and not a byte comes through them.

Judged are, when it is calm again: each activity had its effect once, and has one report, which is true; nothing is
open; what the agent found wrong it does not find wrong any more; and it did not call more often than its delays allow.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from tests.e2e.nursery import Nursery
from tests.e2e.programs import standin_programs
from tests.e2e.rig import Rig
from tests.faults import names, outages, tokens
from tests.faults.errands import USUAL
from tests.faults.fault import Budget, Fault, Ground, Run
from tests.faults.outages import Backlog
from tests.faults.storms import storm, storm_and_kills
from tests.faults.tally import Tally
from tests.faults.weather import KINDS, Kind

OPTIONS = replace(USUAL, activity_ttl=3600.0, poll_wait=1.0)
"""Polls are held so short that there are many requests to hit."""
Play = Callable[[Rig, Nursery, Ground, Budget, Tally], Awaitable[None]]


def _on_its_own(play: Play) -> Run:
    """Give a row a Supervisor of its own."""

    async def run(ground: Ground, budget: Budget, tally: Tally) -> None:
        async with Rig(standin_programs(), OPTIONS) as rig, Nursery(rig.folder) as nursery:
            await play(rig, nursery, ground, budget, tally)

    return run


def storm_of(*kinds: Kind, nodes: int = 3, errands: int = 5) -> Play:
    """Return what lets it storm with these kinds."""

    async def play(rig: Rig, nursery: Nursery, ground: Ground, budget: Budget, tally: Tally) -> None:
        await storm(rig, nursery, kinds, ground.chance, budget, tally, nodes=nodes, errands=errands)

    return play


ROWS: tuple[tuple[str, str, Play, float, float], ...] = (
    ("kills", "all of these, and the agent killed (-9)", storm_and_kills, 2.0, 12.0),
    ("token", "token exchanged meanwhile", tokens.exchanged, 1.0, 10.0),
    ("outage", "long outage, 1,000 activities", partial(outages.long_outage, backlog=Backlog()), 0.5, 60.0),
    ("supervisor", "Supervisor killed (-9)", outages.killed_supervisor, 2.0, 10.0),
    ("copy", "Supervisor put back from a copy", outages.old_copy, 1.0, 8.0),
    ("tls", "certificate that is not right", names.bad_certificates, 1.0, 10.0),
    ("dns", "name without its address", names.lost_names, 1.0, 30.0),
    ("moved", "address changed", names.moved, 1.0, 22.0),
    ("silent", "connection like a black hole", names.black_hole, 1.0, 10.0),
)
"""With the share of each, and the seconds that it takes in any case."""
STORM = 12.0
"""Seconds that a storm takes in any case, with what is before it and after it."""

FAULTS: tuple[Fault, ...] = (
    *(
        Fault(f"network.{kind.key}", f"network: {kind.name}", _on_its_own(storm_of(kind)), 0.5, takes=STORM)
        for kind in KINDS
    ),
    Fault("network.mixed", "network: all of these at once", _on_its_own(storm_of(*KINDS)), 2.0, takes=STORM),
    *(
        Fault(f"network.{key}", f"network: {name}", _on_its_own(play), share, takes=takes)
        for key, name, play, share, takes in ROWS
    ),
)
