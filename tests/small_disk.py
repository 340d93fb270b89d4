"""A small file system of its own, which a test fills and frees again; only root may mount one."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class SmallDisk:
    """A mounted tmpfs.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filling = folder / "filling"

    def fill(self) -> None:
        """Take every block that is left, also those that were freed since the last time."""
        with self._filling.open("ab", buffering=0) as file:
            for size in (1024 * 1024, 4096):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give them back."""
        self._filling.unlink(missing_ok=True)

    @property
    def left(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def remount(self, *options: str) -> None:
        """Change how it is mounted, such as `ro`.

        Raises:
            subprocess.CalledProcessError: It is busy: something has a file open for writing.
        """
        command = ["mount", "-o", ",".join(("remount", *options)), str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)


class CannotMountError(Exception):
    """Mounting needs root."""


@contextmanager
def mounted(folder: Path, *, size: str) -> Iterator[SmallDisk]:
    """Mount one, and unmount it whatever happens; lazily when something still uses it.

    Args:
        folder: It is made if it is not there.
        size: Such as `16m`.

    Raises:
        CannotMountError: This user may not.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "small", str(folder)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode != 0:
        raise CannotMountError(answer.stderr)
    try:
        yield SmallDisk(folder)
    finally:
        if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode != 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        with suppress(OSError):
            folder.rmdir()
