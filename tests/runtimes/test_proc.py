import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.runtimes import proc


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def test_a_process_is_read_with_its_memory_and_its_cpu_time() -> None:
    seen = proc.read_stat(os.getpid())
    assert seen is not None
    assert seen.memory_bytes > 5_000_000
    assert seen.cpu_seconds > 0
    assert seen.start_ticks > 0


def test_a_process_that_ended_is_none_once_it_was_reaped(sleeper: "subprocess.Popen[bytes]") -> None:
    seen = proc.read_stat(sleeper.pid)
    assert seen is not None
    pidfd = proc.open_process(sleeper.pid, seen.start_ticks)
    assert pidfd is not None
    assert not proc.has_ended(pidfd)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert proc.has_ended(pidfd)
    os.close(pidfd)
    sleeper.wait()
    assert proc.read_stat(sleeper.pid) is None
    assert proc.open_process(sleeper.pid, seen.start_ticks) is None
    assert proc.command_line(sleeper.pid) == []


def test_other_ticks_are_another_process(sleeper: "subprocess.Popen[bytes]") -> None:
    seen = proc.read_stat(sleeper.pid)
    assert seen is not None
    assert proc.open_process(sleeper.pid, seen.start_ticks + 1) is None


def test_what_cannot_be_opened_for_another_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", no_more)
    with pytest.raises(OSError, match="Too many"):
        proc.open_process(1, 1)


def test_only_who_holds_the_lock_is_signalled(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    path = tmp_path / "lock"
    assert proc.holders_of_flock(path) == []
    path.touch()
    command = f"exec 9<{path}; flock -x 9; exec sleep 60"
    looker = ["sh", "-c", f"exec 9<{path}; exec sleep 60"]
    with subprocess.Popen(["sh", "-c", command]) as holder, subprocess.Popen(looker) as other:
        try:
            while proc.holders_of_flock(path) != [holder.pid]:
                assert holder.poll() is None
            proc.signal_holder(other.pid, path, signal.SIGKILL)
            proc.signal_holder(sleeper.pid, path, signal.SIGKILL)
            proc.signal_holder(holder.pid, path, signal.SIGKILL)
            assert holder.wait(10) == -signal.SIGKILL
            proc.signal_holder(holder.pid, path, signal.SIGKILL)
            assert (other.poll(), sleeper.poll()) == (None, None)
        finally:
            holder.kill()
            other.kill()
