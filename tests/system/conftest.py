"""One booted node for all tests here; where it cannot be had they are skipped, in CI they fail."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.e2e.programs import Programs, ProgramsMissingError, real_programs, standin_programs
from tests.system.booted import Booted, system_python
from tests.system.installed import lacks, mounted, up
from tests.system.node import Node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All on one loop, and in one process when there are several."""
    for item in items:
        if item.path.parent.name == "system":
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.xdist_group("system"))
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter of the service."""
    missing, python = lacks(), system_python()
    if python is not None and not missing:
        return python
    message = f"a booted systemd cannot be had here; missing: {', '.join(missing)}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def system(python: str) -> Iterator[Booted]:
    """The files of the node of all tests, which boots them."""
    with mounted() as system:
        yield system


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def node(system: Booted, python: str) -> AsyncIterator[Node]:
    """The node of all tests but those of the real programs."""
    async with up(system, python, standin_programs()) as node:
        yield node


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Programs:
    """The real programs; without `--run-real` their tests are skipped, without the programs they fail."""
    if not request.config.getoption("--run-real"):
        pytest.skip("runs real binaries: pytest --run-real -m real")
    try:
        return real_programs()
    except ProgramsMissingError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def real_system(real: Programs, python: str) -> Iterator[Booted]:
    """The files of the node with the real programs."""
    with mounted() as system:
        yield system


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real_node(real_system: Booted, real: Programs, python: str) -> AsyncIterator[Node]:
    """A node with the real programs under the shipped units."""
    async with up(real_system, python, real) as node:
        yield node
