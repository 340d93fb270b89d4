import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import main
from tests.cli.conftest import LIMIT, clean_environment, iggy_agent
from tests.local.conftest import ACTIVITY, Agent

HEAVY = ("pydantic", "aiohttp", "structlog", "asyncio", "docker", "psutil", "sqlite3", "rich")


@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 1), (None, 1)])
def test_the_exit_code_of_status_is_the_same_in_both_formats(
    agent: Agent, capsys: pytest.CaptureFixture[str], healthy: bool | None, code: int
) -> None:
    agent.status["healthy"] = healthy
    assert main(["status", "--socket", str(agent.socket)]) == code
    assert capsys.readouterr().out.startswith("healthy\n" if healthy else "degraded")
    assert main(["status", "--socket", str(agent.socket), "--format", "json"]) == code
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"schema_version": 1, **agent.status}
    assert shown.err == ""


def test_status_of_an_agent_that_does_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(folder / "s")]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("iggy-agent: cannot ask the agent: it is not running")
    assert "\nhint: " in shown.err
    assert main(["status", "--socket", str(folder / "s"), "--format", "json"]) == 3
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["exit_code"] == 3
    assert error["message"] in shown.err


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": 5},
        {"conditions": ["x"]},
        {"agent": []},
        {"agent": "x"},
        {"runtimes": {"a": 1}},
        {"runtimes": [{"incarnation": 5}]},
    ],
)
def test_an_answer_of_another_shape_is_said_so(
    agent: Agent, capsys: pytest.CaptureFixture[str], status: dict[str, object]
) -> None:
    agent.status = {"healthy": True, "conditions": [], "runtimes": [], **status}
    assert main(["status", "--socket", str(agent.socket)]) == (3 if status != {"agent": []} else 0)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert status == {"agent": []} or shown.err.startswith("iggy-agent: cannot show the answer of the agent: it has")
    assert main(["status", "--socket", str(agent.socket), "--format", "json"]) == 0


def test_a_time_that_utc_does_not_have_is_shown_as_it_is(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.items = [{**ACTIVITY, "received_at": "0001-01-01T00:00:00+14:00"}]
    assert main(["activities", "--socket", str(agent.socket)]) == 0
    assert "0001-01-01T00:00:00+14:00" in capsys.readouterr().out


def test_the_socket_is_found_by_the_environment(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(agent.socket.parent))
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("healthy")


@pytest.mark.parametrize("arguments", [["status"], ["activities"], ["activities", str(ACTIVITY["id"])]])
def test_asking_starts_without_the_heavy_libraries(agent: Agent, arguments: list[str]) -> None:
    code = (
        "import sys; before = set(sys.modules); from agent.cli import main; "
        f"code = main({[*arguments, '--socket', str(agent.socket)]!r}); "
        f"loaded = sorted(set({HEAVY!r}) & set(sys.modules) - before); "
        "sys.exit(f'loaded: {loaded}' if loaded or code else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_activities_are_listed_or_shown(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    socket = ["--socket", str(agent.socket)]
    assert main(["activities", "--limit", "7", *socket]) == 0
    assert "reported" in capsys.readouterr().out
    assert agent.limits == [7]
    assert main(["activities", "--format", "json", *socket]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "items": [ACTIVITY]}
    assert main(["activities", str(ACTIVITY["id"]), *socket]) == 0
    assert "call start (decisive, going back)" in capsys.readouterr().out
    assert main(["activities", str(ACTIVITY["id"]), "--format", "json", *socket]) == 0
    assert json.loads(capsys.readouterr().out)["calls"]


def test_an_unknown_activity_is_exit_code_1_with_the_next_step(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["activities", "5", "--socket", str(agent.socket)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("iggy-agent: cannot show activity 5: it is not in this node's journal\nhint: ")


async def test_watching_goes_on_while_the_agent_restarts_and_ends_with_an_interrupt(folder: Path) -> None:
    agent = Agent(folder / "agent.sock")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "status", "--watch", "--format", "json", "--socket", str(agent.socket)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT):
            assert json.loads(await process.stdout.readline())["error"]["exit_code"] == 3
            await asyncio.to_thread(agent.open)
            pages = [json.loads(await process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGINT)
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.to_thread(agent.end)
    assert pages[-1]["healthy"] is True
    assert process.returncode == 0


async def test_watching_on_a_terminal_clears_it_before_each_page(agent: Agent) -> None:
    reader, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "status", "--watch", "--socket", str(agent.socket)),
        stdout=terminal,
        env=clean_environment(),
    )
    try:
        async with asyncio.timeout(LIMIT):
            text = ""
            while "unreported" not in text:
                text += (await asyncio.to_thread(os.read, reader, 4096)).decode()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reader)
        os.close(terminal)
    assert text.startswith("\033[H\033[2J")


async def test_a_socket_of_another_user_is_exit_code_77(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        from agent.local import client

        def denied(self: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(client._UnixConnection, "connect", denied)  # root is let in everywhere
        assert await asyncio.to_thread(main, ["status", "--socket", str(agent.socket)]) == 77
    else:
        agent.socket.chmod(0)
        assert (await iggy_agent("status", "--socket", str(agent.socket))).code == 77
