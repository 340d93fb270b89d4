"""Files of `/etc` that one process sees otherwise than the machine: how a name's address changes for an agent alone."""

import ctypes
import os
from pathlib import Path

# linux/sched.h, sys/mount.h
NEW_USERS, NEW_MOUNTS = 0x10000000, 0x00020000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000


def enter(folder: Path) -> None:
    """Put this process into a mount namespace of its own, in which each file of a folder is that of its name in `/etc`.

    The process must have one thread. A change to a file, written in place, is seen at once.

    Raises:
        OSError: The kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        _check(libc.unshare(NEW_MOUNTS))
    else:
        user, group = os.geteuid(), os.getegid()
        _check(libc.unshare(NEW_USERS | NEW_MOUNTS))
        for name, content in {
            "setgroups": "deny",
            "uid_map": f"{user} {user} 1",
            "gid_map": f"{group} {group} 1",
        }.items():
            Path("/proc/self", name).write_text(content, encoding="ascii")
    _check(libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
    for file in folder.iterdir():
        _check(libc.mount(bytes(file), b"/etc/" + file.name.encode(), None, BIND, None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
