"""Rules that hold in every test: nothing blocks the event loop, warnings are errors, each test has a timeout."""

from collections.abc import Iterator

import hypothesis  # noqa: F401 - imported early: late, on CPython 3.11, its plugin can break pytest's assertion rewriting
import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Make a blocking call of the agent's on the event loop a failure."""
    with blockbuster_ctx("agent") as blockbuster:
        yield blockbuster


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-real", action="store_true", help="run the tests marked real against real Iggy binaries")
