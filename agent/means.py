"""Say what to do when the system refuses the agent the means to act: a process, a thread, a file descriptor, memory."""

import errno

HINTS = {
    errno.EAGAIN: "no more processes or threads: look at TasksMax= of the agent's unit, pids.max and `ulimit -u`",
    errno.EMFILE: "the agent has too many files open: look at LimitNOFILE= of its unit, and at its log for the cause",
    errno.ENFILE: "the whole machine has too many files open: find what opens them (lsof)",
    errno.ENOMEM: "there is not enough memory: look at MemoryMax= of the agent's unit, and at what else runs here",
}


def hint(error: OSError) -> str | None:
    """Return the next step for a person; None when nothing was used up."""
    return HINTS.get(error.errno) if error.errno is not None else None
