"""Reconfigure, a transaction: check, stage, switch, restart, see it ready, commit; or go back.

The decision to go back is journaled before `current` is touched; from then on, also after a crash, it only goes back.
A runtime that was stopped only gets the config, and is never started by it. Every report states three facts: what was
attempted, what became of it, and what runs now.
"""

import asyncio
import contextlib
from typing import Any

from agent.activities.actions import refuse_old_run
from agent.activities.work import Result, Superseded, Work
from agent.errors import Rejection
from agent.journal import KEEP, GoingBack
from agent.protocol import Activity, Config, DriverKind, Reason, ReasonCode, ReconfigureOutcome, RuntimeState
from agent.runtimes.driver import Call, Incarnation, Observation, Step
from agent.runtimes.releases import Release
from agent.runtimes.runtime import Runtime

REST_PATIENCE = 2.0
"""Seconds that a runtime on its way is waited for to come to rest, before it is restarted all the same."""


async def check(runtime: Runtime, activity: Activity, config_id: int | None) -> Config:
    """Check a reconfigure before anything is touched.

    Raises:
        Rejection: `config_missing`, `config_invalid`, `config_checksum`; with the three facts as evidence.
    """
    config = activity.config
    try:
        if config is None:
            raise Rejection(
                ReasonCode.CONFIG_MISSING,
                "cannot reconfigure: the activity carries no config",
                hint="the Supervisor has to send the config inside the activity; compare its version",
            )
        if config.id != config_id:
            raise Rejection(
                ReasonCode.CONFIG_INVALID,
                f"cannot reconfigure: the action names config {config_id}, the activity carries config {config.id}",
                hint="dispatch the reconfigure again",
            )
        await runtime.check_config(config)
    except Rejection as rejection:
        rejection.evidence.update(await facts(runtime, config, ReconfigureOutcome.NOT_APPLIED))
        raise
    return config


async def facts(
    runtime: Runtime, config: Config | None, outcome: ReconfigureOutcome | None, seen: Observation | None = None
) -> dict[str, Any]:
    """State the three facts: attempted, outcome (None when it cannot be known), running."""
    attempted = config and {"config_id": config.id, "version": config.version, "sha256": config.sha256}
    return {"attempted": attempted, "outcome": outcome and str(outcome), "running": await _running(runtime, seen)}


async def _running(runtime: Runtime, seen: Observation | None) -> dict[str, Any]:
    current = await runtime.current_or_none()
    config = current and {"config_id": current.config_id, "version": current.version, "sha256": current.sha256}
    found = seen or await runtime.seen_or_why_not()
    if isinstance(found, str):
        return {"current": config, "unreadable": found}
    return {
        "state": str(found.state),
        "incarnation": found.incarnation,
        "config_sha256": found.config_sha256 if found.running else None,
        "current": config,
    }


async def reconfigure(work: Work) -> Result:
    """Carry a reconfigure out from its beginning, or from wherever a crash left it before its decisive call.

    Raises:
        Rejection: It failed before anything but staging was done; else it goes back by itself.
        Superseded: By a later action; the caller goes back.
    """
    config, runtime = _config(work), work.runtime
    seen = await runtime.driver.observe()
    work.evidence.setdefault("before", seen.as_evidence())
    if seen.state is RuntimeState.MISSING:
        raise Rejection(
            ReasonCode.NOT_FOUND,
            f"cannot reconfigure {runtime.name}: it is not there",
            hint="install its unit, container or command, or correct the node's settings",
        )
    release = await runtime.stage(config)
    current = await runtime.current_or_none()
    if current is not None and current.name == release.name:
        if await _has_it(runtime, seen, release) and (await runtime.probe_once()).ready:
            return await _applied(work, seen, committed=release.name)
    else:
        detail = {"from": current.name if current else "none", "to": release.name}
        await work.record(Step(Call.SWITCH, detail=detail))
        await runtime.switch(release.name)
    seen = await _at_rest_or_coming_up(work)
    if seen.at_rest and not seen.running and not _restart_was_begun(work):
        return await _applied(work, seen, committed=KEEP)
    outcome = await runtime.driver.restart(work.record)
    work.note(outcome)
    return await finish_forward(work, not_this=outcome.replaced)


async def _has_it(runtime: Runtime, seen: Observation, release: Release) -> bool:
    """Tell whether a config runs already; not where its release was mended since: who knows what was in it before."""
    running = seen.running and seen.config_sha256 == release.sha256
    return running and not await runtime.began_before(seen, release)


async def _at_rest_or_coming_up(work: Work) -> Observation:
    """Wait until it comes to rest; one that is still on its way up then is not stopped: a crash loop never rests."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_PATIENCE):
                return await work.at_rest()
        seen = await work.runtime.driver.observe()
        if seen.state is not RuntimeState.STOPPING:
            return seen


async def finish_forward(work: Work, *, not_this: Incarnation | None) -> Result:
    """See the runtime ready with the new config, and commit it."""
    readiness = await work.wait_until_ready()
    refuse_old_run(readiness, not_this)
    seen, config = readiness.observation, _config(work)
    known = seen.config_sha256 is not None or work.runtime.driver.kind is DriverKind.DOCKER
    if known and seen.config_sha256 != config.sha256:
        raise Rejection(
            ReasonCode.START_FAILED,
            "cannot apply the config: a run that was started without it is up",
            hint="something else started it meanwhile; look for a restart policy or an operator",
        )
    return await _applied(work, seen, committed=f"{config.id}-{config.version}")


async def _applied(work: Work, seen: Observation, *, committed: object) -> Result:
    work.saw(seen)
    evidence = work.all_evidence(await facts(work.runtime, work.config, ReconfigureOutcome.APPLIED, seen))
    evidence["committed"] = committed is not KEEP
    return Result(changed=work.changed, evidence=evidence, committed=committed)


def touched(work: Work) -> bool:
    """Say whether a call was journaled, so that there is something to go back from."""
    return bool(work.row.phase() or work.calls)


async def decide_to_go_back(work: Work, cause: Rejection | Superseded) -> GoingBack:
    """Journal the decision to go back, with why and without secrets; nothing is touched yet.

    Raises:
        JournalError: It could not be written; then recovery takes the activity up again.
    """
    rejection = cause.rejection() if isinstance(cause, Superseded) else cause
    await work.explain(rejection)
    redactor = work.runtime.redactor
    decision = GoingBack(
        superseded=isinstance(cause, Superseded),
        reason=Reason.model_validate(redactor.data(rejection.reason().model_dump())),
        evidence=redactor.data(work.all_evidence(rejection.evidence)),
    )
    await work.journal.go_back(
        work.row.id, superseded=decision.superseded, reason=decision.reason, evidence=decision.evidence
    )
    return decision


async def go_back(work: Work, decision: GoingBack) -> Rejection:
    """Go back to the last committed release; returns what the activity reports.

    Superseded, or when the runtime was never touched, `current` alone goes back. Otherwise the runtime is restarted
    with the committed release and has to get ready.
    """
    runtime = work.runtime
    target = await work.journal.committed(work.row.runtime)
    try:
        current = await _current_name(runtime)
        if current != target:
            detail = {"from": current or "none", "to": target or "none"}
            await work.record(Step(Call.SWITCH, detail=detail))
            await runtime.switch(target)
        if decision.superseded or await _is_untouched(work):
            return await _not_applied(work, decision)
        with contextlib.suppress(TimeoutError):  # a crash loop never comes to rest
            async with asyncio.timeout(REST_PATIENCE):
                await work.at_rest()
        outcome = await runtime.driver.restart(work.record)
    except Rejection as rejection:
        return await rollback_failed(work, decision, rejection)
    return await finish_back(work, decision, outcome.replaced)


async def _current_name(runtime: Runtime) -> str | None:
    """Name what `current` points to; a damaged release is not what it is called."""
    try:
        current = await runtime.current()
    except Rejection:
        return "a damaged release"
    return None if current is None else current.name


async def finish_back(work: Work, decision: GoingBack, not_this: Incarnation | None) -> Rejection:
    """See the committed release ready again; returns what the activity reports."""
    try:
        readiness = await work.wait_until_ready()
        refuse_old_run(readiness, not_this)
    except Superseded as superseded:
        return await _not_applied(work, _superseded(superseded, decision))
    except Rejection as rejection:
        return await rollback_failed(work, decision, rejection)
    evidence = await facts(work.runtime, work.config, ReconfigureOutcome.ROLLED_BACK, readiness.observation)
    return Rejection(
        ReasonCode.ROLLED_BACK,
        f"cannot apply the config: {decision.reason.message}; the last committed one runs again",
        hint=decision.reason.hint or "mend the config, and dispatch it as a new version",
        evidence={**decision.evidence, **evidence, "cause": decision.reason.model_dump()},
    )


async def rollback_failed(work: Work, decision: GoingBack, rejection: Rejection) -> Rejection:
    """Say that neither config got ready; returns what the activity reports."""
    await work.explain(rejection)
    evidence = await facts(work.runtime, work.config, ReconfigureOutcome.ROLLBACK_FAILED)
    current = evidence["running"]["current"]
    return Rejection(
        ReasonCode.ROLLBACK_FAILED,
        f"cannot apply the config: {decision.reason.message}; and cannot go back: {rejection.message}",
        hint=f"look at the runtime's log; its current config is {current['config_id'] if current else 'none'} now",
        evidence={
            **decision.evidence,
            **evidence,
            "cause": decision.reason.model_dump(),
            "rollback": {**work.evidence, **rejection.evidence, "reason": rejection.reason().model_dump()},
        },
    )


def _superseded(cause: Superseded, decision: GoingBack) -> GoingBack:
    return GoingBack(superseded=True, reason=cause.rejection().reason(), evidence=decision.evidence)


async def _not_applied(work: Work, decision: GoingBack) -> Rejection:
    return Rejection(
        ReasonCode(decision.reason.code),
        decision.reason.message,
        hint=decision.reason.hint,
        evidence={
            **decision.evidence,
            **await facts(work.runtime, work.config, ReconfigureOutcome.NOT_APPLIED),
        },
    )


def _config(work: Work) -> Config:
    if work.config is None:
        msg = "a reconfigure is checked before it begins"
        raise RuntimeError(msg)
    return work.config


async def _is_untouched(work: Work) -> bool:
    """Say whether the run goes on as it did: making a container beside it does not touch it, as long as it is up."""
    if work.made(Call.START, Call.STOP, Call.RESTART):
        return False
    return not work.made(Call.RECREATE) or (await work.runtime.driver.observe()).running


def _restart_was_begun(work: Work) -> bool:
    """Say whether a call that acts on the runtime was made in any direction: then it has to be brought up again."""
    return work.made(Call.START, Call.STOP, Call.RESTART, Call.RECREATE)
