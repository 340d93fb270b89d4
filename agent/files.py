"""Files that survive a crash: written whole or not at all."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers that say that a disk, or a share of it, is full."""

LASTING = frozenset(
    {errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
"""Error numbers that say how files lie and who may use them: that stays until a person changes it. What all others say
(no space, an I/O error, no descriptors, a file that is not there just now) may pass by itself."""


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    A rename is durable only once its folder was synced: fsync(2), NOTES.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file's content so that a reader, or a crash, sees either the old or the new one.

    Args:
        path: The file; its folder must exist.
        content: The whole new content.
        mode: Permission bits, in force before the content is there.

    Raises:
        OSError: It could not be written; the old file is as it was.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)
