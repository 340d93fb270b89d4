"""The program that becomes a runtime, started as a program; what it does when all goes well is in test_process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.runtimes import launch, spawn
from agent.runtimes.driver import read_boot_id


def run(folder: Path, *, read_errors: bool = True, **changes: Any) -> tuple[int, dict[str, Any]]:
    """Start the launcher on its own; return its exit code and what it reported."""
    spec = {
        "command": ["true"],
        "environment": {"PATH": os.environ["PATH"]},
        "working_directory": str(folder),
        "log": str(folder / "log"),
        "record": str(folder / "process.json"),
        "marker": "--- {incarnation}\n",
        "boot_id": read_boot_id(),
        "facts": {"release": "7-1", "config_sha256": "abc"},
        **changes,
    }
    source = os.memfd_create("spec")
    os.write(source, json.dumps(spec).encode())
    os.lseek(source, 0, os.SEEK_SET)
    errors, errors_of_child = os.pipe()
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    if not read_errors:
        os.close(errors)
    child = subprocess.Popen(
        [sys.executable, str(spawn.PROGRAM), *map(str, (source, errors_of_child, lock))],
        pass_fds=(source, errors_of_child, lock),
        stdin=subprocess.DEVNULL,
    )
    for descriptor in (source, errors_of_child, lock):
        os.close(descriptor)
    report = b""
    if read_errors:
        with os.fdopen(errors, "rb") as pipe:
            report = pipe.read()
    return child.wait(20), json.loads(report or b"{}")


def test_the_record_is_there_when_the_runtime_runs_and_names_that_process(tmp_path: Path) -> None:
    proof = f"cat {tmp_path}/process.json; echo $$; cut -d' ' -f22 /proc/$$/stat"
    assert run(tmp_path, command=["sh", "-c", proof]) == (0, {})
    marker, record_text, *_ = (tmp_path / "log").read_text().replace("}", "}\n").splitlines()
    *_, pid, ticks = (tmp_path / "log").read_text().replace("}", "}\n").split()
    record = json.loads(record_text)
    assert (record["pid"], record["start_ticks"]) == (int(pid), int(ticks))
    assert (record["boot_id"], record["release"], record["config_sha256"]) == (read_boot_id(), "7-1", "abc")
    assert record["incarnation"] == f"{read_boot_id()}.{pid}.{ticks}"
    assert marker == f"--- {record['incarnation']}"
    assert (tmp_path / "process.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "lock").read_bytes() == launch.LOCK_NOTE


def test_the_log_goes_on_at_the_beginning_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("cut off")
    run(tmp_path, command=["echo", "hello"])
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[2]) == ("cut off", "hello")
    assert lines[1].startswith("---")


@pytest.mark.parametrize(
    ("changes", "doing", "number"),
    [
        ({"command": ["no-such-command"]}, "execute it", 2),
        ({"command": ["a\0b"]}, "execute it", None),
        ({"working_directory": "/no/such/folder"}, "enter its working directory /no/such/folder", 2),
        ({"log": "/no/such/log"}, "open its log /no/such/log", 2),
        ({"record": "/no/such/record"}, "write its record /no/such/record", 2),
        ({"log": "/dev/full"}, "write to its log /dev/full", 28),
    ],
)
def test_a_failure_is_reported_with_what_was_being_done(
    tmp_path: Path, changes: dict[str, Any], doing: str, number: int | None
) -> None:
    code, report = run(tmp_path, **changes)
    assert (code, report["doing"], report["errno"]) == (launch.EXIT_CODE, doing, number)
    assert report["error"]


def test_it_goes_on_when_the_agent_that_started_it_is_gone(tmp_path: Path) -> None:
    code, _ = run(tmp_path, read_errors=False, command=["sh", "-c", "exit 9"])
    assert code == 9
    code, _ = run(tmp_path, read_errors=False, command=["no-such-command"])
    assert code != 0


def test_a_moment_is_written_with_microseconds() -> None:
    assert launch.timestamp(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"
