"""Reading the log of a run; the program that reads the journal says here what the real one says."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes import journald
from agent.runtimes.driver import Incarnation

RUN = Incarnation("ab" * 16)


class Program:
    """Stands in for journalctl."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journalctl"
        self.arguments = folder / "arguments"

    def says(self, *entries: Any, stderr: str = "", code: int = 0) -> None:
        output = "\n".join(json.dumps(entry) for entry in entries)
        self.write(
            f'echo "$@" >{self.arguments}',
            f"printf %s {shlex.quote(output)}",
            f"printf %s {shlex.quote(stderr)} >&2",
            f"exit {code}",
        )

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        self.path.chmod(0o755)

    def tail(self, max_bytes: int = 1000) -> list[str]:
        return journald.tail("iggy.service", RUN, max_bytes=max_bytes, program=str(self.path))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_only_that_run_is_asked_for_and_what_systemd_said_of_it(program: Program) -> None:
    program.says({"MESSAGE": "one"}, {"MESSAGE": "two"})
    assert program.tail() == ["one", "two"]
    asked = program.arguments.read_text()
    assert f"_SYSTEMD_INVOCATION_ID={RUN} + INVOCATION_ID={RUN} _PID=1" in asked
    assert "--lines=50" in asked


def test_a_message_that_is_no_text_is_made_one(program: Program) -> None:
    program.says({"MESSAGE": [99, 233]}, {"MESSAGE": None}, {"MESSAGE": ["a", "b"]}, {}, ["no entry"])
    assert program.tail() == ["c\N{REPLACEMENT CHARACTER}", "", "", "", ""]


def test_lines_that_do_not_fit_are_left_off_at_the_beginning(program: Program) -> None:
    program.says({"MESSAGE": "x" * 40}, {"MESSAGE": "y" * 40}, {"MESSAGE": "z" * 40})
    assert program.tail(90) == ["y" * 40, "z" * 40]


def test_a_run_that_wrote_nothing_has_no_lines(program: Program) -> None:
    program.says()
    assert program.tail() == []


@pytest.mark.parametrize(
    ("stderr", "code", "words"),
    [
        ("No journal files were opened due to insufficient permissions.", 1, "this user may not read it"),
        (
            "Hint: You are currently not seeing messages from other users and the system.",
            0,
            "this user may not read it",
        ),
        ("No journal files were found.", 0, "No journal files were found."),
        ("", 3, "exit code 3"),
    ],
)
def test_what_could_not_be_looked_at_is_said(program: Program, stderr: str, code: int, words: str) -> None:
    program.says(stderr=stderr, code=code)
    with pytest.raises(Rejection) as caught:
        program.tail()
    assert caught.value.code is ReasonCode.NOT_PERMITTED
    assert words in caught.value.message
    assert "systemd-journal" in str(caught.value.hint)


def test_a_journal_that_does_not_answer_is_given_up(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journald, "TIMEOUT", 0.1)
    program.write("exec sleep 20")
    with pytest.raises(Rejection, match=r"took longer than 0\.1 s"):
        program.tail()


def test_a_machine_without_journalctl_says_so(program: Program) -> None:
    with pytest.raises(Rejection, match="No such file"):
        program.tail()
