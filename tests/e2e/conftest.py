"""Which programs the end-to-end tests run on: the stand-ins, and the real ones where they are asked for."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.nursery import Nursery
from tests.e2e.programs import Programs, ProgramsMissingError, real_programs, standin_programs
from tests.e2e.rig import Rig
from tests.e2e.scenarios import USUAL


@pytest.fixture(params=[pytest.param("standin"), pytest.param("real", marks=pytest.mark.real)])
def programs(request: pytest.FixtureRequest) -> Programs:
    """The managed programs; real ones without `--run-real` are skipped, missing ones fail."""
    if request.param == "standin":
        return standin_programs()
    if not request.config.getoption("--run-real"):
        pytest.skip("runs real binaries: pytest --run-real -m real")
    try:
        return real_programs()
    except ProgramsMissingError as error:
        pytest.fail(str(error))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rig() -> AsyncIterator[Rig]:
    """One Supervisor that tests share, each with nodes of its own; they leave it running."""
    async with Rig(standin_programs(), USUAL) as rig:
        yield rig


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nursery(rig: Rig) -> AsyncIterator[Nursery]:
    """What starts the agents of those nodes."""
    async with Nursery(rig.folder) as nursery:
        yield nursery
