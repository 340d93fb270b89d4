import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import JournalError, JournalInUseError
from agent.journal import StateLock

HOLDER = """
import sys
from pathlib import Path
from agent.journal.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another agent on the same folder."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_in_one_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with (
        StateLock(tmp_path),
        pytest.raises(JournalInUseError, match=f"another agent holds it, process {os.getpid()} "),
        StateLock(tmp_path),
    ):
        pass
    with StateLock(tmp_path):
        assert (tmp_path / "lock").read_text().split() == [str(os.getpid())]
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_another_process_is_named_and_kill_9_releases_its_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(JournalInUseError, match=f"process {holder.pid} ") as caught, StateLock(tmp_path):
        pass
    assert caught.value.hint is not None
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    with StateLock(tmp_path):
        pass


def test_a_holder_that_has_not_written_its_number_yet_is_unknown(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        os.truncate(tmp_path / "lock", 0)
        with pytest.raises(JournalInUseError, match="process unknown"), StateLock(tmp_path):
            pass


def test_a_holder_that_writes_its_number_late_is_named_and_not_the_one_before_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock = tmp_path / "lock"
    lock.write_text(f"{gone.pid}\n")
    late = threading.Timer(0.1, lock.write_text, [f"{holder.pid:<10}\n"])
    late.start()
    with pytest.raises(JournalInUseError, match=f"process {holder.pid} "), StateLock(tmp_path):
        pass
    late.join()
    lock.write_text(f"{gone.pid}\n")
    with pytest.raises(JournalInUseError, match="process unknown"), StateLock(tmp_path):
        pass


def test_a_refused_one_keeps_nothing_open(tmp_path: Path) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with StateLock(tmp_path):
        for _ in range(3):
            with pytest.raises(JournalInUseError), StateLock(tmp_path):
                pass
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_folder_that_is_not_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    lock = StateLock(tmp_path / "none")
    with (
        pytest.raises(JournalError, match=r"cannot use the state folder .*none: No such file or directory") as caught,
        lock,
    ):
        pass
    assert caught.value.hint == "create it, owned by the agent's user, or set agent.state_dir"
    lock.__exit__(None, None, None)


def test_a_lock_that_cannot_be_written_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(JournalError, match="No space left on device"), StateLock(tmp_path):
        pass
    monkeypatch.undo()
    with StateLock(tmp_path):
        pass
