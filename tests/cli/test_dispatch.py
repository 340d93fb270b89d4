import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import errors
from agent.cli import ask, dispatch, main
from agent.cli.parser import EXIT_CODES, build_parser
from tests.cli.conftest import iggy_agent
from tests.local.conftest import Agent

COMMANDS = ["run", "enroll", "status", "activities", "check-config", "version"]


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_that_of_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for command in COMMANDS:
        assert f"    {command}" in shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_that_can_be_parsed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    example = capsys.readouterr().out.rstrip().splitlines()[-1].split()
    assert example[:2] == ["iggy-agent", command]
    assert build_parser().parse_args(example[1:]).command == command


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["run", "--log-level", "loud"],
        ["status", "--format", "xml"],
        ["activities", "0"],
        ["activities", "x"],
        ["activities", str(2**63)],
        ["activities", "--limit", "1001"],
        ["enroll", "--token", "visible-in-ps"],
        ["version", "extra"],
    ],
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_help_names_every_exit_code_of_the_errors() -> None:
    tree = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.AgentError)]
    codes = {one.exit_code for one in tree}
    assert 78 in codes
    assert codes <= {int(line.split()[0]) for line in EXIT_CODES.splitlines()[1:]}


async def test_the_version_is_the_installed_one() -> None:
    result = await iggy_agent("version", "--format", "json")
    version = result.json()["version"]
    assert (await iggy_agent("version")).out.startswith(f"iggy-agent {version} (Python 3.")


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("iggy-agent")
    result = subprocess.run([command, "version"], capture_output=True, check=True, text=True)
    assert result.stdout.startswith("iggy-agent ")


def test_a_fault_of_the_program_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr(ask, "ask", fault)
    assert main(["status", "--socket", "/nowhere"]) == dispatch.INTERNAL
    shown = capsys.readouterr()
    assert "KeyError" in shown.err
    assert "please report it" in shown.err
    assert shown.out == ""


def test_an_interrupt_is_told_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "ask", interrupt)
    assert main(["activities"]) == 130


def test_a_reader_that_goes_away_is_no_fault(agent: Agent) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "agent", "status", "--socket", str(agent.socket)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")
