"""The last log lines of one run, from systemd's journal: what the run wrote, and what systemd said about it.

`journalctl` reads the journal, because its files have no stable reader but systemd's own library.
"""

import json
import subprocess
from typing import Any

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.driver import Incarnation

LINES = 50
"""Lines that are asked for; a report carries no more."""
TIMEOUT = 10.0
"""Seconds that reading may take: a large journal on a slow disk."""
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_HINT = "add the agent's user to the group systemd-journal (SupplementaryGroups= of its unit)"
_NOT_SEEN = ("insufficient permissions", "not seeing messages from other users")


def tail(unit: str, run: Incarnation, *, max_bytes: int, program: str = "journalctl") -> list[str]:
    """Return the last lines of a run, oldest first, at most `max_bytes` in all. Blocks, for `TIMEOUT` at most.

    Args:
        unit: For the sentences.
        run: Its InvocationID.
        max_bytes: Lines are left off at the beginning until the rest fits.
        program: What reads the journal.

    Raises:
        Rejection: It could not look; says why.
    """
    # What systemd says of a run carries its id in a field that any program may set, so it must be process 1 that did.
    wanted = (f"_SYSTEMD_INVOCATION_ID={run}", "+", f"INVOCATION_ID={run}", "_PID=1")
    command = (program, "--output=json", "--no-pager", "--all", f"--lines={LINES}", *wanted)
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and every argument is ours
            command, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise _unread(unit, f"journalctl took longer than {TIMEOUT:g} s", None) from None
    except OSError as error:
        raise _unread(unit, f"cannot run {program}: {error.strerror}", "install systemd's journalctl") from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode or (not done.stdout and said):
        denied = any(words in said for words in _NOT_SEEN)
        cause = said.splitlines()[-1] if said else f"journalctl ended with exit code {done.returncode}"
        raise _unread(unit, "this user may not read it" if denied else cause, _HINT)
    return _last([_line(entry) for entry in done.stdout.splitlines()], max_bytes)


def _line(entry: bytes) -> str:
    """Read the message of one entry: text, or numbers where it is not UTF-8, or several."""
    try:
        message: Any = json.loads(entry).get("MESSAGE")
    except (ValueError, AttributeError):
        return ""
    if isinstance(message, list) and all(isinstance(number, int) for number in message):
        return bytes(message).decode(errors="replace")
    return message if isinstance(message, str) else ""


def _last(lines: list[str], max_bytes: int) -> list[str]:
    kept: list[str] = []
    for line in reversed(lines):
        max_bytes -= len(line.encode()) + 1
        if max_bytes < 0:
            break
        kept.append(line)
    return kept[::-1]


def _unread(unit: str, cause: str, hint: str | None) -> Rejection:
    return Rejection(ReasonCode.NOT_PERMITTED, f"cannot read the log of {unit} in the journal: {cause}", hint=hint)
