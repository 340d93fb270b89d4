"""kill -9 of the agent with runtimes that are units of a real systemd, which is booted for each row."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.protocol import DriverKind
from tests.e2e.habitats import Habitat
from tests.e2e.units import Units
from tests.faults.inside import booted
from tests.faults.kills import rows


@asynccontextmanager
async def units() -> AsyncIterator[Habitat]:
    """Keep runtimes as units of the systemd that this process runs under."""
    yield Units()


DIRECT = rows(DriverKind.SYSTEMD, units)
"""The rows as they are played inside."""
FAULTS = tuple(booted(fault) for fault in DIRECT)
