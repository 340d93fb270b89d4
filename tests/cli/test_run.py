import asyncio
import json
import signal
import sys
from pathlib import Path

from tests.cli.conftest import LIMIT, clean_environment, iggy_agent

SECRET = "do-not-log-me-7Qx"


def settings(folder: Path) -> dict[str, str]:
    return {
        "CONFIGURATION_DIRECTORY": str(folder / "etc"),
        "AGENT_AGENT__STATE_DIR": str(folder / "state"),
        "AGENT_AGENT__SOCKET": str(folder / "agent.sock"),
        "AGENT_SUPERVISOR__URL": "http://127.0.0.1:9",
        "AGENT_RUNTIMES__IGGY__DRIVER": "process",
        "AGENT_RUNTIMES__IGGY__COMMAND": '["sleep", "1000"]',
        "AGENT_RUNTIMES__IGGY__ENVIRONMENT__A_PASSWORD": SECRET,
    }


async def test_wrong_settings_end_it_at_once_with_exit_code_78(folder: Path) -> None:
    environ = settings(folder) | {"AGENT_RUNTIMES__IGGY__DRIVER": "systemd"}
    result = await iggy_agent("run", **environ)
    assert result.code == 78
    assert result.out == ""
    assert "runtimes.iggy.unit: cannot be missing" in result.err
    assert SECRET not in result.err
    assert not (folder / "state").exists()


async def test_it_runs_without_an_identity_says_so_and_ends_cleanly_when_told(folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "run", "--log-level", "debug", "--log-format", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(**settings(folder)),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT):
            lines: list[bytes] = []
            while not lines or json.loads(lines[-1])["event"] != "condition.began":
                lines.append(await process.stdout.readline())
            status = await iggy_agent("status", "--socket", str(folder / "agent.sock"), "--format", "json")
            process.send_signal(signal.SIGTERM)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err
    assert status.code == 1
    assert [condition["code"] for condition in status.json()["conditions"]] == ["not_enrolled"]
    events = [json.loads(line)["event"] for line in [*lines, *out.splitlines()]]
    assert events[0] == "agent.started"
    assert events[-1] == "agent.stopped"
    assert SECRET.encode() not in b"".join(lines) + out + err
    assert not (folder / "agent.sock").exists()


async def test_a_disk_that_fails_for_a_moment_does_not_keep_it_down(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "identity.json").symlink_to("/proc/self/mem")  # EIO for everybody
    result = await iggy_agent("run", **settings(folder))
    assert result.code == 74
    assert f"cannot read {folder / 'state' / 'identity.json'}: Input/output error" in result.err
