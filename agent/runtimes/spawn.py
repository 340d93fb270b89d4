"""Start the program that becomes a runtime (`launch.py`), and hear whether it did."""

import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import means
from agent.errors import Rejection
from agent.files import FULL
from agent.protocol import ReasonCode, RuntimeName

PROGRAM = Path(__file__).with_name("launch.py")

TIMEOUT = 30.0
"""Seconds that it may take to become the runtime; usually it takes 0.03, a stuck disk longer."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that is needed to start a runtime.

    Args:
        runtime: For the sentences.
        command: What to execute; its first word is looked up in the PATH of `environment`.
        environment: All of it; nothing is added.
        working_directory: To change to before.
        log: The file that its output is appended to.
        record: The file that says which process it is.
        marker: The line that divides its log from the one of the run before, with `{incarnation}` in it.
        boot_id: Of the machine, now.
        facts: What else goes into the record.
    """

    runtime: RuntimeName
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    working_directory: Path
    log: Path
    record: Path
    marker: str
    boot_id: str
    facts: Mapping[str, str | None]

    def as_json(self) -> bytes:
        """Return it as the launcher reads it."""
        spec = {
            "command": list(self.command),
            "environment": dict(self.environment),
            "working_directory": str(self.working_directory),
            "log": str(self.log),
            "record": str(self.record),
            "marker": self.marker,
            "boot_id": self.boot_id,
            "facts": dict(self.facts),
        }
        return json.dumps(spec).encode()


def launch(plan: Launch, lock: int, *, timeout: float = TIMEOUT) -> None:
    """Start a runtime and return once it was executed. Blocks.

    What to start travels in a memory file: complete before the fork, never on a disk or in an argument list, for it
    holds secrets. The new process is a child of the caller, to be reaped through its pidfd.

    Args:
        plan: What to start.
        lock: Descriptor that holds the runtime's lock; stays open here.
        timeout: Seconds until it is given up and killed.

    Raises:
        Rejection: `not_found` when there is no such command, `no_space`, else `start_failed`.
    """
    source, errors, errors_of_child = _channels(plan)
    try:
        child = _spawn(plan, source, errors_of_child, lock)
        os.close(errors_of_child)
        errors_of_child = -1
        answer = _read_to_end(errors, timeout)
        if answer:
            child.wait()
            raise _explain(plan, json.loads(answer))
        if answer is None:
            child.kill()
            child.wait()
            msg = f"cannot start {plan.runtime}: it was not executed within {timeout:g} s"
            raise Rejection(ReasonCode.START_FAILED, msg, hint="look at the disk of the state folder")
        if not _was_recorded(plan, child.pid):
            child.wait()
            msg = f"cannot start {plan.runtime}: its launcher was killed before it could execute it"
            raise Rejection(ReasonCode.START_FAILED, msg, hint="see the system's log for an out-of-memory kill")
        child.returncode = 0  # it is reaped through its pidfd, by whichever driver watches it; Popen is to keep off
    finally:
        for descriptor in (source, errors, errors_of_child):
            if descriptor >= 0:
                os.close(descriptor)


def _channels(plan: Launch) -> tuple[int, int, int]:
    """Open what the launcher is told by, and both ends of what it answers by."""
    opened: list[int] = []
    try:
        opened.append(os.memfd_create("iggy-agent-launch"))
        os.write(opened[0], plan.as_json())
        os.lseek(opened[0], 0, os.SEEK_SET)
        opened += os.pipe()
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        raise _without_means(plan, "say what to start", error) from error
    source, errors, errors_of_child = opened
    return source, errors, errors_of_child


def _spawn(plan: Launch, source: int, errors: int, lock: int) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", str(PROGRAM), str(source), str(errors), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(source, errors, lock),
            env={},
            start_new_session=True,
        )
    except OSError as error:
        if means.hint(error) is not None:
            raise _without_means(plan, "make a process", error) from error
        msg = f"cannot start {plan.runtime}: cannot execute {sys.executable}: {error.strerror}"
        raise Rejection(
            ReasonCode.START_FAILED, msg, hint="the agent's own Python is needed to start it; was it removed?"
        ) from error


def _without_means(plan: Launch, doing: str, error: OSError) -> Rejection:
    msg = f"cannot start {plan.runtime}: cannot {doing}: {error.strerror}"
    return Rejection(ReasonCode.START_FAILED, msg, hint=means.hint(error) or "look at the system's log")


def _read_to_end(descriptor: int, timeout: float) -> bytes | None:
    """Read until the other side is closed; None when it takes too long."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content = b""
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        part = os.read(descriptor, 65536)
        if not part:
            return content
        content += part
    return None


def _was_recorded(plan: Launch, pid: int) -> bool:
    """Tell an exec from a death before it: both close the pipe, but the record is always written before exec.

    One that cannot be read just now is left to the next look at the runtime.
    """
    try:
        return bool(json.loads(plan.record.read_bytes())["pid"] == pid)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _explain(plan: Launch, failure: Mapping[str, Any]) -> Rejection:
    command, doing, number = plan.command[0], failure["doing"], failure["errno"]
    executing = doing == "execute it"
    if number in FULL:
        msg = f"cannot start {plan.runtime}: cannot {doing}: the disk is full"
        return Rejection(ReasonCode.NO_SPACE, msg, hint="free space where the agent keeps its state")
    if executing and number == errno.ENOENT:
        return command_not_found(plan.runtime, command)
    what = f"execute {command}" if executing else doing
    msg = f"cannot start {plan.runtime}: cannot {what}: {failure['error']}"
    return Rejection(ReasonCode.START_FAILED, msg, hint="check the command, its permissions and its working directory")


def command_not_found(runtime: RuntimeName, command: str) -> Rejection:
    """Say that there is nothing to execute."""
    return Rejection(
        ReasonCode.NOT_FOUND,
        f"cannot start {runtime}: there is no command {command!r}",
        hint=f"install it, or correct `command` of [runtimes.{runtime}]; give its full path if it is not on PATH",
    )
