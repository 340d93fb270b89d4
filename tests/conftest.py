"""Rules that hold in every test: nothing blocks the event loop, warnings are errors, each test has a timeout."""

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis  # noqa: F401 - imported early: late, on CPython 3.11, its plugin can break pytest's assertion rewriting
import pytest
import structlog
from blockbuster import BlockBuster, blockbuster_ctx

from tests.small_disk import CannotMountError, SmallDisk, mounted


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
        for lock in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            # The measuring of coverage takes a lock of its own, wherever it is.
            blockbuster.functions[lock].can_block_in("coverage/collector.py", "lock_data")
        yield blockbuster


def pytest_configure() -> None:
    """Hand on ordinary signals: what runs in the background, or under nohup, is started with some of them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-real", action="store_true", help="run the tests marked real against real Iggy binaries")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount a file system that a test can fill."""
    try:
        with mounted(tmp_path / "disk", size="16m") as disk:
            yield disk
    except CannotMountError as error:
        pytest.skip(f"mounting a small disk needs root: {error}")
