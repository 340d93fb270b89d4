"""kill -9 of the agent with runtimes that are units of a real systemd, which is booted for each row.

In one row the bus (SIGKILL) or systemd itself (it executes itself anew) ends with most agents.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.protocol import DriverKind
from tests.e2e.scenarios import Reconfigure, Restart
from tests.e2e.units import Units
from tests.faults import middlemen
from tests.faults.crashes import Stage, require_reached, share
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.inside import booted
from tests.faults.kills import Kind, at_random, row, rows

DECISIVE = (":bus.", ":journal.record", ":journal.finish")
"""What the points around a call to systemd are known by."""


@asynccontextmanager
async def units() -> AsyncIterator[Units]:
    """Keep runtimes as units of the systemd that this process runs under."""
    yield Units()


@asynccontextmanager
async def few_units() -> AsyncIterator[Units]:
    """Keep those of a few nodes alone."""
    yield Units(nodes=6)


async def briefly(stage: Stage, kind: Kind, ground: Ground, budget: Budget) -> None:
    """Kill it at each point around a call to systemd, and then at moments that nobody chose."""
    async with stage.company(kind) as nodes:
        points = [point for point in await stage.trace(nodes[0], ()) if any(word in point for word in DECISIVE)]
        await share(nodes, iter([(point,) for point in points]), stage)
    require_reached(stage.tally, stage.missed)
    await at_random(stage, kind, ground, budget)


ROWS = (
    *rows(DriverKind.SYSTEMD, units, points=120.0, takes=20.0),
    Fault(f"kill.bus.{DriverKind.SYSTEMD}", "agent and bus or systemd ended", middlemen.row(units), 0.5, takes=50.0),
)
BRIEF = Fault("brief.systemd", "kill -9 around a call, systemd", row(briefly, few_units, (Restart, Reconfigure)))
DIRECT = (*ROWS, BRIEF)
"""The rows as they are played inside."""
FAULTS = tuple(booted(fault) for fault in ROWS)
