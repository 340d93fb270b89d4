"""The first process of a PID namespace, made by unshare(1): what it reaps, what it passes on, how it ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import pid_one
from tests.cli.conftest import clean_environment

PRELUDE = """\
import os, pathlib, signal, subprocess, sys, time
from agent.pid_one import stay_behind
if (code := stay_behind()) is not None:
    sys.exit(code)

def children_of_first():
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = path.read_text().rpartition(")")[2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = rest.split()[:2]
        if parent == "1" and path.parent.name != str(os.getpid()):
            found[path.parent.name] = state
    return found

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, children_of_first()
        time.sleep(0.01)
"""
BYSTANDER = "exec 2>/dev/null; trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done"

needs_a_namespace = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare (Debian: util-linux)"
)


@contextmanager
def first_process(program: str, prelude: str = PRELUDE) -> Iterator["subprocess.Popen[str]"]:
    """Run a program as the first process of a PID namespace, which ends with it."""
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", prelude + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(),
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def inside(process: "subprocess.Popen[str]") -> int:
    """Return the pid, out here, of the first process."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def ended(program: str, prelude: str = PRELUDE) -> tuple[int, str]:
    with first_process(program, prelude) as process:
        out, _ = process.communicate(timeout=40)
    return process.returncode, out


def test_any_other_process_goes_on_as_it_is() -> None:
    assert pid_one.stay_behind() is None


@needs_a_namespace
def test_orphans_are_reaped_and_the_exit_codes_of_the_agents_own_children_stay_its_own() -> None:
    code, out = ended("""
own = subprocess.Popen(["sh", "-c", "exit 7"])
subprocess.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done"], check=True)
assert len(children_of_first()) == 8
until(lambda: not children_of_first())
assert pathlib.Path(f"/proc/{own.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
print("own child ended with", own.wait())
""")
    assert (code, out) == (0, "own child ended with 7\n")


@needs_a_namespace
@pytest.mark.parametrize(
    ("program", "expected"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)]
)
def test_it_ends_as_the_agent_ended(program: str, expected: int) -> None:
    assert ended(program) == (expected, "")


@needs_a_namespace
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_the_agent_alone_and_what_outlives_it_is_asked_to_end(number: signal.Signals) -> None:
    program = f"""
told = []
signal.signal({number:d}, lambda number, frame: told.append(number))
other = subprocess.Popen(["sh", "-c", {BYSTANDER!r}], start_new_session=True)
until(lambda: told)
print("told", *told)
print("other runs" if other.poll() is None else "other ended", flush=True)
other.returncode = 0
"""
    with first_process(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.kill(inside(process), number)
        out = process.stdout.read()
        process.wait(20)
    assert (process.returncode, out) == (0, f"told {number:d}\nother runs\nasked\n")


@needs_a_namespace
def test_other_signals_are_passed_on_to_nobody() -> None:
    program = """
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: print("told", number, flush=True))
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
print("up", flush=True)
until(lambda: False)
"""
    with first_process(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(inside(process), number)
        out = process.stdout.read()
        process.wait(20)
    assert (process.returncode, out) == (3, "")


@needs_a_namespace
def test_what_does_not_end_when_asked_does_not_hold_the_container_for_ever() -> None:
    prelude = PRELUDE.replace("\nif ", "\nfrom agent import pid_one\npid_one.LEFT_BEHIND = 0.3\nif ", 1)
    code, out = ended(
        """
deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; echo up; sleep 1000"], start_new_session=True, stdout=-1)
assert deaf.stdout.readline() == b"up\\n"
deaf.returncode = 0
""",
        prelude,
    )
    assert (code, out) == (0, "")
