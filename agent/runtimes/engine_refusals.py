"""What the Engine's errors mean: each becomes a rejection with a sentence of its own."""

import errno

from agent import means
from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.driver import Call
from agent.runtimes.engine import AwayError, DeniedError, EngineError, RefusedError, ThreadlessError
from agent.runtimes.recreation import ImageGoneError

_LONGEST_TEXT = 500
_START_FAILURES = (
    (
        ("port is already allocated", "address already in use"),
        "a port that it publishes is taken",
        "docker ps; ss -ltn",
    ),
    (("no such image",), "its image is gone", "load or pull the image, then dispatch again"),
    (("executable file not found", "no such file or directory"), "its command is not there", "check its image"),
    (("network", "not found"), "a network that it is connected to is gone", "docker network ls"),
    (("error setting rlimit", "rlimit"), "the Engine may not raise a limit that it asks for", "check its ulimits"),
    (("is already in use by container",), "a name that is needed is taken", "docker ps --all shows by which container"),
)
"""Words of the Engine's text (all of a group of two or more alternatives: any), the cause, the next step."""


def rejection(error: EngineError, doing: str, container: str, call: Call | None) -> Rejection:
    """Make the rejection of a call that did not succeed.

    Args:
        error: What came back.
        doing: Completes "cannot …".
        container: Its name.
        call: The verb; None for a reading.
    """
    if isinstance(error, RefusedError):
        return _refused(error, doing, container, call)
    if isinstance(error, DeniedError):
        hint = "put the agent's user into the group of the socket, or give it a filtering proxy by DOCKER_HOST"
    elif isinstance(error, ThreadlessError):
        hint = means.HINTS[errno.EAGAIN]
    else:
        hint = "see that the Docker Engine runs; the agent asks again by itself"
    uncertain = isinstance(error, AwayError) and error.uncertain and call is not None
    evidence = {"call_may_have_arrived": True} if uncertain else None
    message = f"cannot {doing}: the Docker Engine cannot be asked: {error}"
    return Rejection(ReasonCode.DRIVER_UNAVAILABLE, message, hint=hint, evidence=evidence)


def not_tidied(error: EngineError, container: str, left: str | None) -> Rejection:
    """Make the rejection of tidying up after a recreation.

    Args:
        error: What came back.
        container: Its name.
        left: The name of the container beside it that a step was about; None when there was none yet.
    """
    if left is None:
        return rejection(error, f"see whether a recreation of {container} left a container", container, None)
    doing = _putting_away(container, left)
    if not isinstance(error, RefusedError) or error.status == 403:
        return rejection(error, doing, container, None)
    message = f"cannot {doing}: the Engine refused it: {error}"
    hint = f"docker inspect {left} says more; the agent tries again by itself"
    return Rejection(ReasonCode.DRIVER_UNAVAILABLE, message[:_LONGEST_TEXT], hint=hint)


def kept_for(unreadable: Rejection, container: str, left: str) -> Rejection:
    """Make the rejection of tidying up while it cannot be told which container the current config is for."""
    message = f"cannot {_putting_away(container, left)}: {unreadable.message}"
    return Rejection(unreadable.code, message, hint=unreadable.hint)


def _putting_away(container: str, left: str) -> str:
    return f"put {left} away, which a recreation of {container} left"


def missing(doing: str, container: str) -> Rejection:
    """Make the rejection of an action on a container that is not there."""
    hint = "make it (docker compose up --no-start), or correct `container` in the settings"
    return Rejection(ReasonCode.NOT_FOUND, f"cannot {doing}: there is no container named {container}", hint=hint)


def vanishes(doing: str, container: str) -> Rejection:
    """Make the rejection of an action on a container that would be gone after it."""
    hint = "make it without --rm (AutoRemove)"
    return Rejection(
        ReasonCode.NOT_PERMITTED, f"cannot {doing}: the Engine removes {container} when it stops", hint=hint
    )


def revived(doing: str, container: str) -> Rejection:
    """Make the rejection of an action that somebody else works against."""
    hint = "look for what starts it: another supervisor, an operator"
    return Rejection(ReasonCode.BUSY, f"cannot {doing}: {container} is started again and again", hint=hint)


def _refused(error: RefusedError, doing: str, container: str, call: Call | None) -> Rejection:
    text = str(error)[:_LONGEST_TEXT]
    evidence = {"engine_status": error.status, "engine_error": text}
    if error.status == 403:
        hint = "a proxy in front of the Engine has to let through what docs/docker-driver.md lists"
        return Rejection(ReasonCode.NOT_PERMITTED, f"cannot {doing}: it was forbidden", hint=hint, evidence=evidence)
    if call is None:
        hint = "look at the Engine's own log"
        message = f"cannot {doing}: the Docker Engine refused to say: {text}"
        return Rejection(ReasonCode.DRIVER_UNAVAILABLE, message, hint=hint, evidence=evidence)
    if error.status == 404 and "no such container" in text.lower():
        return missing(doing, container)
    if call is Call.STOP:
        hint = f"docker inspect {container} says more"
        return Rejection(ReasonCode.STOP_FAILED, f"cannot {doing}: {text}", hint=hint, evidence=evidence)
    if error.status == 404 and text.strip() == "Not Found":  # an Engine's own 404 names what is not there
        hint = "look at what answers there in the Engine's place"
        if call is Call.RECREATE:
            hint = "Podman 4.3 cannot change a restart policy: make the container with the policy `no`"
        message = f"cannot {doing}: this Engine does not know that call"
        return Rejection(ReasonCode.START_FAILED, message, hint=hint, evidence=evidence)
    cause, hint = _why_not_started(error, text, container)
    return Rejection(ReasonCode.START_FAILED, f"cannot {doing}: {cause}", hint=hint, evidence=evidence)


def _why_not_started(error: RefusedError, text: str, container: str) -> tuple[str, str]:
    if isinstance(error, ImageGoneError):
        return text, "load or pull the image, then dispatch again"
    lower = text.lower()
    for words, cause, hint in _START_FAILURES:
        if all(word in lower for word in words) if words[0] == "network" else any(word in lower for word in words):
            return f"{cause}: {text}", hint
    return f"the Engine refused it: {text}", f"docker inspect {container} says more"
