"""Rules that hold in every test: nothing blocks the event loop, warnings are errors, each test has a timeout."""

from collections.abc import Iterator

import hypothesis  # noqa: F401 - imported early: late, on CPython 3.11, its plugin can break pytest's assertion rewriting
import pytest
import structlog
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Print events as they are: a traceback made pretty reads source files, and that on the event loop."""
    structlog.configure(processors=[structlog.stdlib.add_log_level, structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Make a blocking call of the agent's on the event loop a failure."""
    with blockbuster_ctx("agent") as blockbuster:
        yield blockbuster


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-real", action="store_true", help="run the tests marked real against real Iggy binaries")
