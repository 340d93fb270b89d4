import os
from pathlib import Path

import pytest

from agent.runtimes.driver import Incarnation
from agent.runtimes.logfile import MARKER, LogFile, RunNotInLogError

ONE, TWO = Incarnation("boot.1.10"), Incarnation("boot.2.20")


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "iggy.log", max_bytes=200, keep=2)


def begin(log: LogFile, run: Incarnation) -> None:
    append(log, MARKER.replace("{incarnation}", run))


def append(log: LogFile, text: str) -> None:
    with log.path.open("a") as file:
        file.write(text)


def test_each_run_has_its_own_lines(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "a\nb\n")
    begin(log, TWO)
    append(log, "c\n")
    assert log.tail(TWO, latest=True, max_bytes=100) == ["c"]
    assert log.tail(ONE, latest=False, max_bytes=100) == ["a", "b"]


def test_a_run_that_wrote_nothing_has_no_lines(log: LogFile) -> None:
    append(log, "of another run\n")
    begin(log, ONE)
    assert log.tail(ONE, latest=True, max_bytes=100) == []


def test_only_the_last_bytes_are_returned(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "0123456789\nabcdef\nlast\n")
    lines = log.tail(ONE, latest=True, max_bytes=9)
    assert lines[-1] == "last"
    assert sum(len(line) for line in lines) <= 9
    begin(log, TWO)
    append(log, "x\n" * 50)
    assert log.tail(ONE, latest=False, max_bytes=9) == lines


def test_a_line_longer_than_all_that_is_read_at_once_keeps_its_end(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "x" * 300_000 + "end")
    assert log.tail(ONE, latest=True, max_bytes=10) == ["xxxxxxxend"]
    begin_of_line = LogFile(log.path, max_bytes=10**7, keep=1)
    append(log, "\nshort\n")
    assert begin_of_line.tail(ONE, latest=True, max_bytes=20) == ["xxxxxxxxxxxend", "short"]


def test_colours_and_control_characters_are_removed(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "\x1b[2m2026\x1b[0m \x1b[32m INFO\x1b[0m ok\r\n\x1b]0;title\x07tab\there \x00\n")
    assert log.tail(ONE, latest=True, max_bytes=1000) == ["2026  INFO ok", "tab\there "]


def test_rotation_keeps_the_lines_of_a_run_together(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "".join(f"line {number}\n" for number in range(30)))
    assert log.rotate()
    assert log.path.stat().st_size == 0
    append(log, "after\n")
    lines = log.tail(ONE, latest=True, max_bytes=40)
    assert lines[-3:] == ["line 28", "line 29", "after"]


def test_a_line_that_rotation_cut_in_two_is_whole_again(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "x\n" * 100 + "begin")
    log.rotate()
    append(log, "ning\nnext\n")
    assert log.tail(ONE, latest=True, max_bytes=20)[-2:] == ["beginning", "next"]


def test_lines_are_found_also_when_the_beginning_of_the_run_was_rotated_away(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "x\n" * 200)
    log.rotate()
    assert log.tail(ONE, latest=True, max_bytes=4) == ["x", "x"]
    assert len(log.tail(ONE, latest=True, max_bytes=10_000)) == 100


def test_lines_of_an_older_run_that_were_rotated_away_are_not_guessed(log: LogFile) -> None:
    begin(log, ONE)
    append(log, "x\n" * 200)
    begin(log, TWO)
    append(log, "y\n" * 80)
    log.rotate()
    with pytest.raises(RunNotInLogError):
        log.tail(ONE, latest=False, max_bytes=100)
    assert log.tail(TWO, latest=True, max_bytes=4) == ["y", "y"]


def test_a_log_that_is_not_there_has_no_run(log: LogFile) -> None:
    with pytest.raises(RunNotInLogError):
        log.tail(ONE, latest=True, max_bytes=100)
    assert not log.rotate()


def test_rotation_is_bounded_in_size_and_count(log: LogFile, tmp_path: Path) -> None:
    for round_ in range(5):
        append(log, f"{round_}" * 1000)
        assert log.rotate()
        assert not log.rotate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iggy.log", "iggy.log.1", "iggy.log.2"]
    assert (tmp_path / "iggy.log.1").read_text() == "4" * 200
    assert (tmp_path / "iggy.log.2").read_text() == "3" * 200


def test_who_holds_the_log_open_goes_on_writing_to_it(log: LogFile, tmp_path: Path) -> None:
    writer = os.open(log.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(writer, b"x" * 300)
    log.rotate()
    os.write(writer, b"after\n")
    os.close(writer)
    assert log.path.read_bytes() == b"after\n"


def test_a_rotation_that_fails_leaves_the_log_as_it_was(log: LogFile, tmp_path: Path) -> None:
    append(log, "x" * 300)
    (tmp_path / "iggy.log.2").mkdir()
    with pytest.raises(OSError, match="directory"):
        log.rotate()
    assert log.path.stat().st_size == 300
    assert not [path for path in tmp_path.iterdir() if "rotating" in path.name]
