"""The real `iggy-supervisor serve` as a process."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.supervisor.rig import Clock, Rig, prepare

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "COVERAGE_PROCESS_START"}


@dataclass
class Serving:
    """A server that runs, and the rig to call it."""

    process: asyncio.subprocess.Process
    url: str
    rig: Rig | None = None

    async def end(self, number: signal.Signals) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supervisor",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def serving(data: Path, *arguments: str) -> AsyncIterator[Serving]:
    """Serve a data folder in a process of its own, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supervisor",
        "serve",
        "--data",
        str(data),
        "--listen",
        "127.0.0.1:0",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on http"), line
        yield Serving(process, line.split()[-1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def serving_rig(data: Path, *arguments: str) -> AsyncIterator[tuple[Serving, Rig]]:
    """Serve, with a rig to call it."""
    async with (
        serving(data, *arguments) as server,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
    ):
        rig = Rig(server.url, data, session, Clock())
        await prepare(rig)
        yield server, rig
