"""The duties of a container's first process, in a process of their own: the agent is an ordinary one beneath it.

The kernel hands the first process of a PID namespace every orphan, drops the signals that it has no handler for, and
ends all others with it: pid_namespaces(7). Orphans are reaped here, by whoever comes, while the agent reaps its own
children: neither can take the exit code of the other's. Standard library only: it stays small.
"""

import os
import signal
import time
from contextlib import suppress

PASSED_ON = frozenset({signal.SIGTERM, signal.SIGINT})
"""What ends the agent. Nothing else is passed on, and nothing to anybody else: the runtimes are the agent's to stop."""
LEFT_BEHIND = 60.0
"""Seconds that processes which outlive the agent may take to end, having been asked to."""
_WATCHED = PASSED_ON | {signal.SIGCHLD}


def stay_behind() -> int | None:
    """Go on in a child if this process is the first one of its container, and do that one's duties here.

    To be called while there is one thread, and little in memory.

    Returns:
        None to whoever is to go on: a process that is not the first one, or the child. The exit code when all is over.
    """
    if os.getpid() != 1:
        return None
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        return None
    code = _until_ended(child)
    _end_what_is_left()
    return code


def _until_ended(child: int) -> int:
    """Pass signals on and reap until the child has ended; returns its exit code, 128 and more for a signal."""
    while True:
        received = signal.sigwaitinfo(_WATCHED).si_signo
        if received in PASSED_ON:
            os.kill(child, received)  # it was not reaped yet, so the number is still its own
        ended = dict(_reap())
        if child in ended:
            code = os.waitstatus_to_exitcode(ended[child])
            return code if code >= 0 else 128 - code


def _end_what_is_left() -> None:
    """Ask every process that is left to end, and wait: with this one they would be killed."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGTERM)
    deadline = time.monotonic() + LEFT_BEHIND
    while _has_children() and time.monotonic() < deadline:
        signal.sigtimedwait({signal.SIGCHLD}, max(0.0, deadline - time.monotonic()))
        _reap()


def _reap() -> list[tuple[int, int]]:
    """Reap every child that has ended; returns their pids and wait statuses."""
    reaped = []
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            reaped.append(ended)
    return reaped


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
