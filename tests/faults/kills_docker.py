"""The agent killed where runtimes are containers: as in every habitat, and together with the Engine itself.

With the Engine (SIGKILL, or ended as an operator does; it is started again at once) all containers end too, and every
call that is on its way in it is cut off. Two agents of three are killed at the same moment; the third has to wait for
the Engine, and go on. Containers and their volumes are counted as well, in every row.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.protocol import DriverKind
from tests.e2e.containers import Containers, containers
from tests.e2e.scenarios import (
    Reconfigure,
    Restart,
    RolledBack,
)
from tests.faults import kills, middlemen
from tests.faults.fault import Fault
from tests.runtimes.engine_rig import missing

REVIVED = "unless-stopped"
KEPT_UP = (Restart, Reconfigure, RolledBack)
"""Those that nobody has to begin by ending the runtime, for a container with a restart policy would come back, and in
which the policy matters."""


@asynccontextmanager
async def engine(policy: str = "no") -> AsyncIterator[Containers]:
    """Start an Engine for a row."""
    with containers(policy) as habitat:
        yield habitat


@asynccontextmanager
async def revived() -> AsyncIterator[Containers]:
    """Start one whose containers have a restart policy, which a recreation takes away and gives back."""
    async with engine(REVIVED) as habitat:
        yield habitat


FAULTS = (
    *kills.rows(DriverKind.DOCKER, engine, missing, points=240.0, takes=20.0),
    Fault(
        f"kill.policy.{DriverKind.DOCKER}",
        f"kill -9 at each point, {DriverKind.DOCKER}, {REVIVED}",
        kills.row(kills.at_each_point, revived, KEPT_UP),
        share=0.0,
        lacks=missing,
        takes=130.0,
    ),
    Fault(
        f"kill.engine.{DriverKind.DOCKER}",
        "agent and Engine killed",
        middlemen.row(engine),
        share=0.5,
        lacks=missing,
        takes=50.0,
    ),
)
