"""The systemd driver: the runtime is a unit, and systemd is asked over the system bus to act on it.

A job of systemd's that is `done` is no success: a start whose condition is not met is done, and so is one whose process
ended a moment later. So each call is followed until its job ends, and then the unit itself is read. A start that takes
its time (Type=notify, a unit that it needs) is handed over to the wait for readiness, which a later action may end.

    active, reloading                  running
    activating, also auto-restart      starting
    inactive, a start job is queued    starting
    deactivating                       stopping
    inactive / failed / not-found      stopped / failed / missing

Start leaves other jobs alone (mode `fail`), so an operator's is never trampled; stop and restart take the place of what
is queued (`replace`), so that a start that hangs never blocks its remedy.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, ReasonCode, RuntimeName, RuntimeState
from agent.runtimes import journald, refusals
from agent.runtimes.bus import AwayError, BusError, SystemdBus
from agent.runtimes.driver import (
    Call,
    Incarnation,
    Observation,
    Outcome,
    Recorder,
    Step,
    counted_as_running,
    read_boot_id,
)
from agent.runtimes.live_unit import LiveUnit
from agent.runtimes.releases import Releases
from agent.runtimes.started_with import StartedWith
from agent.runtimes.units import Unit
from agent.runtimes.worker import Worker

MARGIN = 5.0
"""Seconds that a job may take beyond the time of what it does: a kill, a signal that is late."""
PATIENCE = 5.0
"""Seconds that an action waits for systemd to come back within reach before it begins."""
SETTLE_PAUSE = 2.0
"""Seconds between two looks that have to agree: a call of an agent that died may still be on its way in the bus."""
_FIRST_LOOK, _LONGEST_LOOK = 0.25, 2.0
"""Seconds after which a job is looked at, should nothing be said of it; doubling."""

_METHODS = {
    Call.START: ("StartUnit", "fail"),
    Call.STOP: ("StopUnit", "replace"),
    Call.RESTART: ("RestartUnit", "replace"),
}
_DONE, _UNDER_WAY, _NOT_SEEN = "done", "under way", "not seen"
_TAKEN_OVER = {"canceled", "collected"}


class SystemdDriver:
    """Controls one runtime as a systemd unit; see the module's text.

    Args:
        runtime: Its name.
        unit: The unit.
        folder: `<state>/runtimes/<runtime>`.
        releases: Of this runtime; the unit reads the current one by EnvironmentFile=.
        start_timeout: Seconds that it may be on its way up.
        stop_timeout: Seconds that a stop may take.
        bus: Systemd's end of the bus; the runtimes of an agent share it.
        settle_pause: Seconds between the two looks of `settle`.
    """

    kind = DriverKind.SYSTEMD

    def __init__(
        self,
        *,
        runtime: RuntimeName,
        unit: str,
        folder: Path,
        releases: Releases,
        start_timeout: float,
        stop_timeout: float,
        bus: SystemdBus,
        settle_pause: float = SETTLE_PAUSE,
    ) -> None:
        self._runtime = runtime
        self._name = unit
        self._environment_file = folder.absolute() / "current" / "environment"
        self._releases = releases
        self._started_with = StartedWith(releases, self._environment_file)
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._settle_pause = settle_pause
        self._changed = asyncio.Event()
        self._unit = LiveUnit(unit, bus, on_change=self._changed.set)
        self._worker = Worker(f"systemd-{runtime}")
        self._log_worker = Worker(f"journal-{runtime}")
        self._verb = asyncio.Lock()
        self._boot_id = ""
        self._job: str | None = None
        self._last: Unit | None = None
        self._is_open = False

    # --- the driver protocol -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and look at the unit; without a bus it stays open, and tries again by itself."""
        self._is_open = True
        self._boot_id = await self._worker.run(read_boot_id)
        await self._unit.open()
        with suppress(Rejection):  # whoever looks next is told
            await self.observe()

    async def close(self) -> None:
        """Disconnect; the unit is left as it is. Closing twice, or what was never opened, does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        await self._unit.bus.close()
        await self._worker.close()
        await self._log_worker.close()

    async def observe(self) -> Observation:
        """Look at the unit now."""
        self._changed.clear()
        return await self._observation(await self._read())

    async def settle(self) -> Observation:
        """Look at it once no job is pending and it is up or down, and two looks in a row agree."""
        before = None
        while True:
            unit = await self._read()
            now = _moment(unit) if unit.settled else None
            if now is not None and now == before:
                return await self._observation(unit)
            before = now
            await asyncio.sleep(self._settle_pause)

    async def start(self, record: Recorder) -> Outcome:
        """Bring it up; already running makes no call."""
        async with self._verb:
            unit, before = await self._read_before(Call.START)
            return Outcome(before) if before.running else await self._bring_up(Call.START, unit, before, record)

    async def stop(self, record: Recorder) -> Outcome:
        """Bring it down; already down makes no call."""
        async with self._verb:
            unit, before = await self._read_before(Call.STOP)
            if before.state is RuntimeState.MISSING:
                raise self._missing(Call.STOP)
            if before.at_rest and not before.running:
                return Outcome(before)
            began = time.monotonic()
            await self._record(record, Call.STOP, before)
            result = await self._queue(Call.STOP, before)
            unit = await self._read_after(Call.STOP)
            self._refuse_failed_stop(result, unit, before)
            return _stopped(before, unit, {"job_result": result, "stop_seconds": round(time.monotonic() - began, 3)})

    async def restart(self, record: Recorder) -> Outcome:
        """Bring it up in a new incarnation, by one call; a stopped one is started."""
        async with self._verb:
            unit, before = await self._read_before(Call.RESTART)
            return await self._bring_up(Call.RESTART, unit, before, record)

    async def wait_for_change(self) -> None:
        """Return when the unit changed since the last `observe`, or may have."""
        await self._changed.wait()

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        """Return the last lines that systemd's journal has of one run.

        Raises:
            Rejection: `not_permitted`: it could not look.
        """
        if incarnation is None:
            return []
        return await self._log_worker.run(journald.tail, self._name, incarnation, max_bytes=max_bytes)

    def check_config(self, config: Config) -> None:  # noqa: ARG002 - any config fits a unit that reads configs
        """Refuse any config when the unit would not read it.

        Raises:
            Rejection: `config_invalid`.
        """
        if self._last is not None and self._reads_no_configs(self._last):
            msg = f"cannot apply a config to {self._runtime}: {self._name} does not read {self._environment_file}"
            hint = f"add EnvironmentFile=-{self._environment_file} to the unit, then systemctl daemon-reload"
            raise Rejection(ReasonCode.CONFIG_INVALID, msg, hint=hint)

    async def tidy(self, committed: str | None) -> None:
        """Leave all as it is: this driver leaves nothing behind."""

    def warnings(self) -> list[str]:
        """Say what about the unit may surprise: it was edited, it stops slowly, it reads no configs."""
        unit = self._last
        found: list[str] = []
        if unit is None:
            return found
        if unit.properties.get("NeedDaemonReload"):
            found.append(f"{self._name} was changed on disk and systemd does not know yet: systemctl daemon-reload")
        patience = unit.number("TimeoutStopUSec") / 1e6
        if unit.text("LoadState") == "loaded" and patience > self._stop_timeout + MARGIN:
            how_long = f"TimeoutStopSec= of {self._name} is longer than stop_timeout ({self._stop_timeout:g} s)"
            found.append(f"{how_long}: a stop that is reported as failed may still succeed")
        if self._reads_no_configs(unit):
            found.append(f"{self._name} does not read {self._environment_file}: it cannot be reconfigured")
        return found

    # --- looking -------------------------------------------------------------------------------------------------

    async def _read(self, call: Call | None = None) -> Unit:
        try:
            unit = await self._unit.read()
        except BusError as error:
            raise self._rejection(error, call) from error
        if unit.state is RuntimeState.RUNNING:
            self._job = None
        result = self._unit.jobs.result(self._job)
        self._last = unit = unit if result in {None, _DONE} else replace(unit, job_result=result)
        return unit

    async def _read_before(self, call: Call) -> tuple[Unit, Observation]:
        """Read A."""
        await self._unit.bus.wait_until_up(PATIENCE)
        unit = await self._read(call)
        # Nothing is switched meanwhile: whoever makes a call also switches, one after the other.
        return unit, unit.observation(await self._worker.run(self._started_with.seen_before_call, unit))

    async def _read_after(self, call: Call) -> Unit:
        """Read what a call came to, also when systemd or the bus begins anew just then."""
        try:
            return await self._read(call)
        except Rejection:
            await self._unit.bus.wait_until_up(PATIENCE)
            return await self._read(call)

    async def _observation(self, unit: Unit) -> Observation:
        known = self._started_with.remembered(unit.incarnation)
        if known is None and unit.state is RuntimeState.RUNNING:
            known = await self._worker.run(self._started_with.find_out, unit)
        return unit.observation(known)

    def _reads_no_configs(self, unit: Unit) -> bool:
        return unit.text("LoadState") == "loaded" and not self._started_with.is_read_by(unit)

    # --- acting --------------------------------------------------------------------------------------------------

    async def _record(self, record: Recorder, call: Call, before: Observation) -> None:
        self._job = None
        await record(Step(call, decisive=True, before=counted_as_running(before), boot_id=self._boot_id))

    async def _bring_up(self, call: Call, unit: Unit, before: Observation, record: Recorder) -> Outcome:
        if before.state is RuntimeState.MISSING:
            raise self._missing(call)
        if cause := unit.unusable():
            hint = f"systemctl status {self._name} says more"
            raise Rejection(ReasonCode.START_FAILED, f"{self._cannot(call)}: {cause}", hint=hint)
        if self._started_with.is_read_by(unit):  # with what cannot be read it would start with defaults, silently
            await self._worker.run(self._releases.environment)
        began = time.monotonic()
        calls: tuple[Call, ...] = (call,)
        await self._record(record, call, before)
        if _start_limit_hit(unit):
            await self._reset_failed(call)
        result = await self._queue(call, before)
        if result == "failed" and _start_limit_hit(again := await self._read_after(call)):
            # The limit counts also what was asked for; an action that was asked for has to get its try.
            calls = (*calls, Call.START)
            now = await self._observation(again)
            await self._record(record, Call.START, now)
            await self._reset_failed(Call.START)
            result = await self._queue(Call.START, now)
        detail = {"job_result": result, "job_seconds": round(time.monotonic() - began, 3)}
        if result in _TAKEN_OVER:
            raise self._taken_over(call, before, detail)
        return Outcome(before, calls, detail=detail)

    async def _queue(self, call: Call, before: Observation) -> str:
        """Make the call, and follow its job; returns how that ended."""
        try:
            job = await self._unit.queue(*_METHODS[call])
        except AwayError as error:
            if not error.uncertain:
                raise self._rejection(error, call) from error
            await self._reconcile(call, before, error)
            return _NOT_SEEN
        except BusError as error:
            raise self._rejection(error, call) from error
        self._job = job
        result = await self._follow(call, job, before)
        if result in _TAKEN_OVER and await self._unit.system_is_stopping():
            # Nobody acts against us: the shutdown ends the agent in a moment, and after the boot recovery goes on.
            await asyncio.Event().wait()
        return result

    async def _follow(self, call: Call, job: str, before: Observation) -> str:
        """Wait until a job ends; one that nothing is said of is looked at (systemd or the bus began anew)."""
        give_up_at = time.monotonic() + self._stop_timeout + MARGIN
        pause = _FIRST_LOOK
        while (result := await self._unit.jobs.wait(job, pause)) is None:
            pause = min(pause * 2, _LONGEST_LOOK)
            overdue = time.monotonic() >= give_up_at
            try:
                unit = await self._unit.read()
            except BusError as error:
                if overdue:
                    raise self._rejection(error, call) from error
                continue
            if unit.job != job:
                return self._unit.jobs.result(job) or _NOT_SEEN
            if _is_on_its_way_up(call, unit, before):
                return _UNDER_WAY
            if overdue:
                raise self._overdue(call, unit)
        return result

    async def _reconcile(self, call: Call, before: Observation, error: AwayError) -> None:
        """See what became of a call whose answer was lost.

        Raises:
            Rejection: `driver_unavailable` when it had no effect; `outcome_unknown` when that cannot be seen.
        """
        try:
            async with asyncio.timeout(self._stop_timeout + self._start_timeout):
                seen = await self._settle_when_back()
        except TimeoutError:
            msg = f"{self._cannot(call)}: {error}, and what became of the call could not be seen since"
            hint = "look at the unit, and dispatch the action again if it is still wanted"
            raise Rejection(ReasonCode.OUTCOME_UNKNOWN, msg, hint=hint) from error
        if _had_no_effect(call, before, seen):
            raise Rejection(
                ReasonCode.DRIVER_UNAVAILABLE,
                f"{self._cannot(call)}: {error}; the call had no effect",
                hint="dispatch the action again",
                evidence={"before": before.as_evidence()},
            ) from error

    async def _settle_when_back(self) -> Observation:
        while True:
            try:
                return await self.settle()
            except Rejection:
                await asyncio.sleep(_FIRST_LOOK)

    async def _reset_failed(self, call: Call) -> None:
        try:
            await self._unit.reset_failed()
        except BusError as error:
            raise self._rejection(error, call) from error

    # --- sentences -----------------------------------------------------------------------------------------------

    def _refuse_failed_stop(self, result: str, unit: Unit, before: Observation) -> None:
        detail = {"job_result": result}
        if result in _TAKEN_OVER:
            raise self._taken_over(Call.STOP, before, detail)
        still_runs = unit.state is RuntimeState.RUNNING and unit.incarnation == before.incarnation
        if result not in {_DONE, _NOT_SEEN} or still_runs:
            why = "it still runs" if still_runs else f"its stop job ended as {result}"
            hint = f"systemctl status {self._name} says more"
            raise Rejection(ReasonCode.STOP_FAILED, f"{self._cannot(Call.STOP)}: {why}", hint=hint, evidence=detail)

    def _taken_over(self, call: Call, before: Observation, detail: dict[str, Any]) -> Rejection:
        msg = f"{self._cannot(call)}: another job took the place of ours"
        hint = "somebody else acts on the unit; look at it, then dispatch again"
        return Rejection(ReasonCode.BUSY, msg, hint=hint, evidence={"before": before.as_evidence(), **detail})

    def _overdue(self, call: Call, unit: Unit) -> Rejection:
        after = f"after {self._stop_timeout + MARGIN:g} s"
        evidence = {"active_state": unit.active, "job": unit.job_type}
        if call is Call.STOP or unit.state is RuntimeState.STOPPING:
            hint = f"compare TimeoutStopSec= of {self._name} with stop_timeout of [runtimes.{self._runtime}]"
            msg = f"{self._cannot(call)}: the old run is still {unit.active} {after}"
            return Rejection(ReasonCode.STOP_FAILED, msg, hint=hint, evidence=evidence)
        msg = f"{self._cannot(call)}: its job still waits {after}"
        return Rejection(ReasonCode.TIMEOUT, msg, hint="systemctl list-jobs shows what for", evidence=evidence)

    def _missing(self, call: Call) -> Rejection:
        msg = f"{self._cannot(call)}: there is no unit {self._name}"
        hint = f"install it, or correct runtimes.{self._runtime}.unit in the settings"
        return Rejection(ReasonCode.NOT_FOUND, msg, hint=hint)

    def _rejection(self, error: BusError, call: Call | None) -> Rejection:
        doing = f"look at {self._runtime}" if call is None else f"{call} {self._runtime}"
        return refusals.rejection(error, doing, self._name, call)

    def _cannot(self, call: Call) -> str:
        return f"cannot {call} {self._runtime}"


def _stopped(before: Observation, unit: Unit, detail: dict[str, Any]) -> Outcome:
    """Say how a run ended, where systemd still knows: it forgets a unit that it unloads."""
    known = before.incarnation is not None and unit.incarnation == before.incarnation
    return Outcome(
        before,
        (Call.STOP,),
        exit_code=unit.exit_code() if known else None,
        killed=unit.was_killed() if known else None,
        detail=detail,
    )


def _is_on_its_way_up(call: Call, unit: Unit, before: Observation) -> bool:
    """Tell whether what is left of a job is only to come up, which the wait for readiness watches over."""
    if call is Call.STOP or unit.state is not RuntimeState.STARTING:
        return False
    old_run_is_over = unit.incarnation != before.incarnation or unit.active in {"inactive", "failed"}
    return call is Call.START or old_run_is_over


def _had_no_effect(call: Call, before: Observation, seen: Observation) -> bool:
    if seen.incarnation != before.incarnation:
        return False
    match call:
        case Call.START:
            return not seen.running
        case Call.STOP:
            return seen.running
        case _:
            return seen.running or not before.running


def _start_limit_hit(unit: Unit) -> bool:
    return unit.text("Result") == "start-limit-hit"


def _moment(unit: Unit) -> tuple[object, ...]:
    """Return what has to be equal for two looks to agree."""
    changed_at = unit.number("StateChangeTimestampMonotonic")
    return unit.state, unit.incarnation, unit.number("NRestarts"), unit.number("MainPID"), changed_at
