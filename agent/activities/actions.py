"""The actions start, stop and restart, for any driver; `reconfigure` is a transaction of its own.

Each is written as it reads: make the driver's verb true, then see that it is true.
"""

import structlog

from agent.activities.work import Result, Work
from agent.errors import Rejection
from agent.journal import KEEP
from agent.protocol import ReasonCode, RuntimeState
from agent.runtimes.driver import Incarnation, Observation
from agent.runtimes.readiness import Readiness

log = structlog.get_logger(__name__)


async def start(work: Work) -> Result:
    """Bring it up, and see it ready; already up and ready changes nothing."""
    outcome = await work.runtime.driver.start(work.record)
    work.note(outcome)
    return await finish_up(work, not_this=None)


async def stop(work: Work) -> Result:
    """Bring it down, and see it down, with nothing about to revive it."""
    outcome = await work.runtime.driver.stop(work.record)
    work.note(outcome)
    if outcome.before.state is RuntimeState.MISSING:
        raise Rejection(
            ReasonCode.NOT_FOUND,
            f"cannot stop {work.runtime.name}: it is not there",
            hint="install its unit, container or command, or correct the node's settings",
        )
    # The call was made: what came of it is told even when the driver is away just now.
    seen = await work.at_rest(patience=work.runtime.timeouts.stop)
    work.saw(seen)
    if seen.running:
        raise Rejection(
            ReasonCode.STOP_FAILED,
            "cannot stop it: it runs again",
            hint="look for what starts it: a restart policy, another supervisor, an operator",
        )
    return Result(changed=work.changed, evidence=work.all_evidence())


async def restart(work: Work) -> Result:
    """Bring it up in a new incarnation, and see that ready; a stopped one is started."""
    outcome = await work.runtime.driver.restart(work.record)
    work.note(outcome)
    return await finish_up(work, not_this=outcome.replaced)


async def finish_up(work: Work, *, not_this: Incarnation | None) -> Result:
    """See a runtime ready that was started or restarted.

    Args:
        work: The activity.
        not_this: The run that must not be the one that is ready: A of a restart.

    Raises:
        Rejection: `busy` when the restart had no effect, and what `Work.wait_until_ready` raises.
    """
    readiness = await work.wait_until_ready()
    refuse_old_run(readiness, not_this)
    return Result(
        changed=work.changed,
        evidence=work.all_evidence(),
        committed=await what_runs_is_committed(work, readiness.observation),
    )


def refuse_old_run(readiness: Readiness, not_this: Incarnation | None) -> None:
    """Refuse to call a restart done when the old run is still the one that runs.

    Raises:
        Rejection: `busy`.
    """
    if not_this is not None and readiness.observation.incarnation == not_this:
        raise Rejection(
            ReasonCode.BUSY,
            "cannot restart it: the call was made, and the old run still runs",
            hint="somebody else may be acting on it; look at its unit or container, then dispatch again",
        )


async def what_runs_is_committed(work: Work, observation: Observation) -> object:
    """Return the release to commit: the current one, when the run that was seen ready was started with it."""
    try:
        current = await work.runtime.current()
    except Rejection as rejection:  # that nothing can be said of it does not make it none
        log.warning("release.not_committed", runtime=work.runtime.name, cause=rejection.message)
        return KEEP
    expected = None if current is None else current.sha256
    if observation.config_sha256 != expected:
        return KEEP
    return None if current is None else current.name
