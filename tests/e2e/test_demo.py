"""The demo is a program, so it is run as one: its last line and its exit code are what people and CI rely on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.process import clean_environment
from tests.e2e.programs import Programs

LAST_LINE = re.compile(r"demo: completed=(\d+) rejected=(\d+) repeated=(\d+) lost=(\d+) seconds=\d+\.\d")
TIMEOUT = 150.0
"""Seconds; it takes 20 where nothing else runs."""

pytestmark = pytest.mark.timeout(TIMEOUT + 10)


def start_demo(temporary: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demo with a temporary folder of its own, so that what it leaves can be seen."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo", *arguments],
        env=clean_environment() | {"TMPDIR": str(temporary)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(demo: subprocess.Popen[str], beginning: str) -> list[str]:
    """Read what it prints up to a line that contains something."""
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line.rstrip("\n"))
        if beginning in line:
            return lines
    return pytest.fail(f"ended before it printed {beginning!r}:\n" + "\n".join(lines))


def end(demo: subprocess.Popen[str]) -> tuple[str, int]:
    """Interrupt it as Ctrl-C does, and return the rest of what it printed, and its exit code."""
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    return output, demo.returncode


def processes_below(folder: Path) -> list[str]:
    """List the command lines of all processes that name a folder in their arguments or their environment."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:  # it ended meanwhile, or belongs to somebody else
                continue
            if str(folder).encode() in said:
                found.append((process / "cmdline").read_bytes().decode(errors="replace"))
    return found


def test_the_demo_shows_the_main_job_and_says_so_in_its_last_line(programs: Programs, tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if name in {"IGGY_SERVER", "IGGY_CONNECTORS"}}
    demo = start_demo(tmp_path, "--programs", "real" if programs.real else "standin", **given)
    output, _ = demo.communicate(timeout=TIMEOUT)

    last = LAST_LINE.fullmatch(output.splitlines()[-1])
    assert last is not None, output
    assert (last.groups(), demo.returncode) == (("13", "3", "0", "0"), 0), output
    assert programs.description in output.splitlines()[0]
    assert list(tmp_path.iterdir()) == []
    assert processes_below(tmp_path) == []


def test_ctrl_c_ends_everything_that_the_demo_started(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--programs", "standin")
    wait_for_line(demo, "connectors start: completed")
    assert len(processes_below(tmp_path)) >= 5, "the demo, the Supervisor, the agent and both runtimes"

    output, code = end(demo)

    assert code == 130
    assert output.splitlines()[-1] == "demo: interrupted; everything that it had started has ended"
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_demo_sets_up_leaves_nothing(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--programs", "standin")
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*/supervisor/*")):
        assert time.monotonic() < deadline, "the demo does not begin"
        time.sleep(0.01)

    output, code = end(demo)

    assert code == 130, output
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_where_real_programs_are_wanted_and_missing_the_demo_says_how_to_give_them(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--programs", "real", PATH=str(tmp_path))
    output, _ = demo.communicate(timeout=30)

    assert demo.returncode == 1
    assert output == (
        "error: cannot run the real iggy-server: it is not on PATH; give it with IGGY_SERVER=/path/to/iggy-server\n"
    )


def test_a_real_program_that_is_named_and_not_there_is_no_reason_for_a_stand_in(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, IGGY_SERVER=str(tmp_path / "nothing"))
    output, _ = demo.communicate(timeout=30)

    assert demo.returncode == 1
    assert "nothing is not a program" in output
