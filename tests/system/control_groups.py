"""A control group for each booted systemd, so that two at once do not take each other's units for their own.

systemd-nspawn puts the groups of its system below its own: two that are started from one group would share them.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

END_TIMEOUT = 10.0
"""Seconds until a killed system's processes have left their groups."""


def make_groups(name: str) -> list[Path]:
    """Make a group of this name below this process's own, in each hierarchy in which a systemd keeps its units."""
    groups = [own / name for own in _own_groups()]
    for group in groups:
        group.mkdir()
    return groups


def remove_groups(groups: list[Path]) -> None:
    """Remove groups and all below them, whose processes were killed.

    Raises:
        OSError: Something is still in there.
    """
    deadline = time.monotonic() + END_TIMEOUT
    for group in groups:
        while True:
            try:
                for folder, _, _ in os.walk(group, topdown=False):
                    Path(folder).rmdir()
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)


def _own_groups() -> Iterator[Path]:
    """Find the folders of this process's groups: cgroups(7), proc_pid_mountinfo(5)."""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines())
    paths = {controllers: path for _, controllers, path in lines}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        root, mounted_on = fields.split()[3:5]
        kind, _, options = rest.split(maxsplit=2)
        own = paths.get("") if kind == "cgroup2" else paths.get("name=systemd")
        keeps_units = kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(","))
        if keeps_units and own is not None:
            yield Path(mounted_on, os.path.relpath(own, root))
