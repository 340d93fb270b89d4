"""Which config a run of a unit was started with, told by times alone."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from agent.protocol import RuntimeName
from agent.runtimes.releases import Releases
from agent.runtimes.started_with import StartedWith
from agent.runtimes.units import Unit
from tests.runtimes.configs import config


class Node:
    """A runtime's folder, and the unit that reads it."""

    def __init__(self, folder: Path) -> None:
        self.releases = Releases(folder, RuntimeName.IGGY)
        self.file = folder / "current" / "environment"
        self.started_with = StartedWith(self.releases, self.file)

    def switch(self, version: int) -> str:
        staged = self.releases.stage(config(version=version, values={"IGGY_VERSION": str(version)}))
        self.releases.switch(staged.name)
        return staged.sha256

    def unit(self, *, run: int = 1, ended: float = 0.0, began: float, **properties: Any) -> Unit:
        """A run that began so many seconds from now, and the end of the one before it."""
        now, mono = time.time(), time.monotonic()
        return Unit(
            {
                "InvocationID": bytes([run]) * 16,
                "InactiveEnterTimestamp": int((now + ended) * 1e6) if ended else 0,
                "InactiveEnterTimestampMonotonic": int((mono + ended) * 1e6) if ended else 0,
                "ExecMainStartTimestamp": int((now + began) * 1e6),
                "ExecMainStartTimestampMonotonic": int((mono + began) * 1e6),
                "EnvironmentFiles": [["/etc/iggy/iggy.env", True], [str(self.file), True]],
                **properties,
            }
        )


@pytest.fixture
def node(folder: Path) -> Node:
    return Node(folder)


def test_a_run_after_the_switch_has_the_current_release(node: Node) -> None:
    sha256 = node.switch(1)
    assert node.started_with.find_out(node.unit(ended=2, began=2.1)) == sha256
    assert node.started_with.find_out(node.unit(began=5)) == sha256


def test_of_a_run_before_the_switch_or_about_then_nothing_is_known(node: Node) -> None:
    node.switch(1)
    assert node.started_with.find_out(node.unit(ended=-60, began=-30)) is None
    assert node.started_with.find_out(node.unit(ended=-60, began=0.5)) is None


def test_a_run_that_was_known_before_the_switch_stays_known_after_it(node: Node) -> None:
    first = node.switch(1)
    assert node.started_with.find_out(node.unit(run=1, ended=2, began=2.1)) == first
    second = node.switch(2)
    assert node.started_with.find_out(node.unit(run=1, ended=-2, began=-1)) == first
    assert node.started_with.remembered(node.unit(run=1, began=0).incarnation) == first
    assert node.started_with.find_out(node.unit(run=2, ended=2, began=2.1)) == second
    assert node.started_with.remembered(None) is None


def test_a_run_that_was_not_there_when_the_release_was_current_already_has_it(node: Node) -> None:
    sha256 = node.switch(1)
    old, new = node.unit(run=1, began=-30, ActiveState="active"), node.unit(run=2, ended=0.01, began=0.02)
    assert node.started_with.find_out(new) is None, "the times alone cannot tell"
    assert node.started_with.seen_before_call(old) is None
    assert node.started_with.find_out(old) is None
    assert node.started_with.find_out(new) == sha256


def test_what_was_seen_before_the_switch_tells_nothing_of_the_runs_after_it(node: Node) -> None:
    node.switch(1)
    first = node.releases.switched_at()
    node.started_with.seen_before_call(node.unit(run=1, ended=-60, began=-30, ActiveState="active"))
    while node.releases.switched_at() == first:  # the clock that files are stamped with ticks some milliseconds apart
        node.switch(2)
    assert node.started_with.find_out(node.unit(run=2, ended=0.01, began=0.02)) is None


def test_a_run_that_began_while_its_release_was_damaged_does_not_have_it_once_it_is_mended(
    node: Node, folder: Path
) -> None:
    """systemd revived it without the file that it could not find."""
    node.switch(1)
    node.started_with.seen_before_call(node.unit(run=1, ended=-60, began=-30, ActiveState="active"))
    revived = node.unit(run=2, ended=0.01, began=0.02)
    (folder / "current" / "environment").unlink()
    assert node.started_with.find_out(revived) is None
    first = node.releases.switched_at()
    while node.releases.switched_at() == first:  # as above
        (folder / "current" / "environment").unlink(missing_ok=True)
        node.switch(1)
    assert node.started_with.find_out(revived) is None


def test_a_run_that_was_known_before_its_release_was_damaged_stays_known_after_it_is_mended(
    node: Node, folder: Path
) -> None:
    sha256 = node.switch(1)
    run = node.unit(ended=2, began=2.1)
    assert node.started_with.find_out(run) == sha256
    (folder / "current" / "environment").unlink()
    assert node.started_with.find_out(run) == sha256
    node.switch(1)
    assert node.started_with.find_out(run) == sha256


def test_a_clock_that_was_set_back_since_does_not_make_a_run_later_than_it_was(node: Node) -> None:
    node.switch(1)
    an_hour_ahead = int((time.time() + 3600) * 1e6)
    run = node.unit(ended=-61, began=-60, ExecMainStartTimestamp=an_hour_ahead, InactiveEnterTimestamp=an_hour_ahead)
    assert node.started_with.find_out(run) is None


def test_a_unit_that_does_not_read_the_release_is_not_said_to_have_it(node: Node) -> None:
    node.switch(1)
    unit = node.unit(ended=2, began=2.1, EnvironmentFiles=[["/etc/other", False]])
    assert not node.started_with.is_read_by(unit)
    assert node.started_with.find_out(unit) is None


def test_without_a_release_or_with_a_damaged_one_nothing_is_known(node: Node, folder: Path) -> None:
    assert node.started_with.find_out(node.unit(ended=2, began=2.1)) is None
    node.switch(1)
    (folder / "current" / "release.json").unlink()
    assert node.started_with.find_out(node.unit(ended=2, began=2.1)) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_leaves_it_unknown(node: Node, folder: Path) -> None:
    node.switch(1)
    folder.chmod(0)
    try:
        assert node.started_with.find_out(node.unit(ended=2, began=2.1)) is None
    finally:
        folder.chmod(0o755)
