import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from agent.cli import main
from tests.local.conftest import agent, folder

__all__ = ["agent", "folder"]

LIMIT = 50.0
"""Seconds that a command may take on a busy machine."""


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        assert value["schema_version"] == 1
        return value


def clean_environment(**more: str) -> dict[str, str]:
    """An environment without what the machine that runs the tests has set for an agent."""
    ours = ("AGENT_", "XDG_", "STATE_", "RUNTIME_", "CONFIGURATION_", "CREDENTIALS_", "SYSTEMD_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


@dataclass(frozen=True, slots=True)
class Here:
    """Runs the command in this process, which is faster than as a program."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: str, **environ: str) -> Result:
        with self.monkeypatch.context() as patch:
            for name in set(os.environ) - set(clean_environment()):
                patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            code = main(arguments)
        shown = self.capsys.readouterr()
        return Result(code, shown.out, shown.err)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(capsys, monkeypatch)


async def iggy_agent(*arguments: str, stdin: str = "", **environ: str) -> Result:
    """Run the command as a program."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(**environ),
    )
    try:
        async with asyncio.timeout(LIMIT):
            out, err = await process.communicate(stdin.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())
