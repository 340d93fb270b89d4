"""The process driver while the system refuses it file descriptors, processes, or the processor."""

import asyncio
import errno
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeState
from tests.runtimes.conftest import MakeDriver, Steps, births, eventually, said

MOST = 14
"""File descriptors with which a start has all that it needs."""


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]  # the lowest numbers come first
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("left", range(MOST + 1))
async def test_a_start_without_enough_file_descriptors_says_so_or_succeeds_and_leaves_none_open(
    make_driver: MakeDriver, steps: Steps, folder: Path, left: int
) -> None:
    driver = await make_driver()
    before = opened()
    refused: Rejection | None = None
    with descriptors_left(left):
        try:
            await driver.start(steps)
        except Rejection as rejection:
            refused = rejection
    if refused is not None:
        assert refused.code in {ReasonCode.START_FAILED, ReasonCode.DRIVER_UNAVAILABLE}
        assert "Too many open files" in refused.message
        assert "LimitNOFILE" in (refused.hint or "")
        assert (await driver.observe()).state is RuntimeState.STOPPED
        assert opened() == before
        await driver.start(steps)
    if left in {0, MOST}:
        assert (refused is None) is (left == MOST)
    assert (await driver.observe()).running
    await eventually(lambda: births(folder) == 1)


async def test_a_start_that_cannot_make_a_process_says_so_and_the_next_one_works(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await make_driver()
    before = opened()

    def refuse(*_args: object) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "_fork_exec", refuse)
        with pytest.raises(
            Rejection, match="cannot start iggy: cannot make a process: Resource temporarily"
        ) as refused:
            await driver.start(steps)
    assert refused.value.code is ReasonCode.START_FAILED
    assert "TasksMax" in (refused.value.hint or "")
    assert opened() == before
    await driver.start(steps)
    await eventually(lambda: births(folder) == 1)


async def test_a_stop_in_time_is_no_kill_although_the_agent_got_no_processor_until_it_was_over(
    make_driver: MakeDriver, steps: Steps
) -> None:
    driver = await make_driver(
        ("sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done"), stop_timeout=0.3
    )
    await driver.start(steps)
    await said(driver, await driver.observe(), "up")
    watch = driver._watcher.of((await driver.observe()).incarnation)
    assert watch is not None
    stopping = asyncio.create_task(driver.stop(steps))
    while not watch.requested:  # noqa: ASYNC110 - the moment after the signal
        await asyncio.sleep(0)
    time.sleep(0.8)  # noqa: ASYNC251 - the loop is to be held
    outcome = await stopping
    assert (outcome.killed, outcome.exit_code) == (False, 0)
