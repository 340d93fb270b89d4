"""The Docker driver: the runtime is a named container, and the Engine is asked over its socket to act on it.

A restart is a stop and then a start, each journaled: the Engine's own restart goes on after its caller died, unseen.
Calls name the container by its id, so that they never reach another one that took its name meanwhile. A container whose
label is not that of the current release is made anew before it is started; see `recreation`.

While a verb is under way, an Engine that goes away is waited for: what was begun is finished when it is back.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import structlog

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, ReasonCode, RuntimeName, RuntimeState
from agent.runtimes import engine_refusals
from agent.runtimes.containers import SIGKILLED, Container, Usage, container_of, log_window, read_usage
from agent.runtimes.driver import Call, Incarnation, Observation, Outcome, Recorder, Step, read_boot_id
from agent.runtimes.engine import CALL_TIMEOUT, SLOW, AwayError, Engine, EngineError, RefusedError
from agent.runtimes.engine_events import SILENCE, Events
from agent.runtimes.patient_calls import PatientCalls
from agent.runtimes.recipe import Target
from agent.runtimes.recreation import Do, Found, Recreation, left_over, next_step
from agent.runtimes.recreation import Step as RecreationStep
from agent.runtimes.releases import Releases
from agent.runtimes.worker import Worker

log = structlog.get_logger(__name__)

PATIENCE = 5.0
"""Seconds that an action waits for an Engine that is away before it begins."""
SETTLE_PAUSE = 2.0
"""Seconds between two looks that have to agree: a call of an agent that died may still be on its way in the Engine."""
MOST_STEPS = 40
"""Of one recreation; it takes eight, and more only when somebody else works against it."""
MOST_STOPS = 3
"""How often a container that comes up again by itself is stopped before it is given up."""
SAMPLE_EVERY = 5.0
"""Seconds between two readings of memory and CPU, which the Engine may take a second for."""
LOG_LINES = 200


class DockerDriver:
    """Controls one runtime as a container; see the module's text.

    Args:
        runtime: Its name.
        container: Name of the container.
        folder: `<state>/runtimes/<runtime>`.
        releases: Of this runtime; the current one's values are in the container's environment.
        start_timeout: Seconds that an Engine that went away in the middle of an action is waited for.
        stop_timeout: Seconds between SIGTERM and SIGKILL.
        address: Of the Engine; the system's socket when None.
        call_timeout: Seconds that the Engine may take for a short call.
        settle_pause: Seconds between the two looks of `settle`.
        silence: Seconds without an event after which the stream of events is opened anew.
    """

    kind = DriverKind.DOCKER

    def __init__(  # noqa: PLR0913 - each is a setting, given by name in one place
        self,
        *,
        runtime: RuntimeName,
        container: str,
        folder: Path,
        releases: Releases,
        start_timeout: float,
        stop_timeout: float,
        address: str | None = None,
        call_timeout: float = CALL_TIMEOUT,
        settle_pause: float = SETTLE_PAUSE,
        silence: float = SILENCE,
    ) -> None:
        self._runtime = runtime
        self._name = container
        self._folder = folder.absolute()
        self._releases = releases
        self._stop_timeout = stop_timeout
        self._settle_pause = settle_pause
        self._engine = Engine(f"docker-{runtime}", address, call_timeout=call_timeout)
        self._calls = PatientCalls(
            self._engine, self._rejection, name=container, patience=start_timeout, settle_pause=settle_pause
        )
        self._recreation = Recreation(self._engine, container)
        self._changed = asyncio.Event()
        self._events = Events(
            self._engine, self._recreation.names, self._changed.set, name=f"docker-{runtime}-events", silence=silence
        )
        self._worker = Worker(f"docker-{runtime}-releases")
        self._boot_id = ""
        self._verb = asyncio.Lock()
        self._last: Container | None = None
        self._stopped_by_us: Incarnation | None = None
        self._usage: Usage | None = None
        self._sampled_at = 0.0
        self._sampling: asyncio.Task[None] | None = None
        self._is_tidy = False
        """Whether nothing of a recreation is left beside the container in use, as far as this driver knows."""
        self._tidy_from = 0.0
        """Until then a call of a recreation that nobody waits for any more may still be on its way in the Engine."""
        self._is_open = False

    # --- the driver protocol -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen, and look at the container; without an Engine it stays open, and tries again by itself."""
        self._is_open = True
        self._boot_id = await self._worker.run(read_boot_id)
        self._events.open()
        with suppress(Rejection):  # whoever looks next is told
            await self.observe()

    async def close(self) -> None:
        """Stop listening; the container is left as it is. Closing twice, or what was never opened, does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self._events.close()
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)
        self._engine.close()
        await self._worker.close()

    async def observe(self) -> Observation:
        """Look at the container now."""
        self._changed.clear()
        try:
            seen = self._observation(await self._find_in_use())
        except EngineError as error:
            raise self._rejection(error, None) from error
        self._sample(seen)
        return seen

    async def settle(self) -> Observation:
        """Look at it once nothing is under way, and two looks in a row agree."""
        before = None
        while True:
            seen = await self.observe()
            now = (seen.state, seen.incarnation, seen.restarts, seen.config_sha256) if seen.at_rest else None
            if now is not None and now == before:
                return seen
            before = now
            await asyncio.sleep(self._settle_pause)

    async def start(self, record: Recorder) -> Outcome:
        """Bring it up: made anew first if it has not the current config, unpaused if it is paused."""
        async with self._verb:
            found, before = await self._first_look(Call.START)
            container = self._usable(found, before, Call.START)
            if container.paused:
                await self._unpause(container, record)
                return Outcome(before, (Call.START,))
            if container.is_up:
                return Outcome(before)
            return await self._bring_up(before, record)

    async def stop(self, record: Recorder) -> Outcome:
        """Bring it down; already down makes no call."""
        async with self._verb:
            found, before = await self._first_look(Call.STOP)
            if found.in_use is None:
                raise engine_refusals.missing(self._doing(Call.STOP), self._name)
            if not found.in_use.is_up:
                return Outcome(before)
            self._refuse_vanishing(found.in_use, Call.STOP)
            await record(Step(Call.STOP, decisive=True, before=before, boot_id=self._boot_id))
            return (await self._bring_down(found.in_use, before))[0]

    async def restart(self, record: Recorder) -> Outcome:
        """Bring it up in a new incarnation: what can be made anew is made before anything is stopped."""
        async with self._verb:
            found, before = await self._first_look(Call.RESTART)
            container = self._usable(found, before, Call.RESTART)
            target = await self._target()
            down: Container | None = None
            if self._is_other(container, target):
                stopped = await self._recreate(record)
            elif container.is_up:
                await record(Step(Call.STOP, before=before))
                stopped, down = await self._bring_down(container, before)
            else:
                stopped = Outcome(before)
            # What the stop has left was read just now; anything else is looked for.
            read = Found(down) if down is not None and not self._is_other(down, target) else None
            started = await self._bring_up(before, record, read)
            return Outcome(
                before,
                stopped.calls + started.calls,
                exit_code=stopped.exit_code,
                killed=stopped.killed,
                detail={**stopped.detail, **started.detail},
            )

    async def wait_for_change(self) -> None:
        """Return when the container changed since the last `observe`, or may have."""
        await self._changed.wait()

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        """Return the last lines that the Engine has of one run.

        Raises:
            Rejection: They cannot be read: the container is gone, its log driver keeps nothing.
        """
        if incarnation is None:
            return []
        container, began = container_of(incarnation)
        if began is None:
            return []
        try:
            data = await self._engine.inspect(container)
            if data is None:
                msg = f"cannot read the log of {self._runtime}: container {container} is gone"
                raise Rejection(ReasonCode.NOT_FOUND, msg)
            since, until = log_window(Container(data), incarnation)
            text = await self._engine.logs(container, since=since, until=until, lines=LOG_LINES, max_bytes=max_bytes)
        except EngineError as error:
            raise engine_refusals.rejection(error, f"read the log of {self._runtime}", self._name, None) from error
        return [line.rstrip("\r") for line in text.decode(errors="replace").splitlines()]

    def check_config(self, config: Config) -> None:
        """Refuse a config that could not reach the container, or whose restart would lose it.

        Raises:
            Rejection: `config_invalid`: it has files, and the container has not the folder for them mounted;
                `not_permitted`: the container has AutoRemove.
        """
        container = self._last
        if container is None:
            return  # it cannot be read just now, and is refused for that, or is not there
        doing = f"apply config {config.id} to {self._runtime}"
        if container.auto_remove:
            raise engine_refusals.vanishes(doing, self._name)
        if config.files and not _has_mounted(container, self._folder):
            msg = f"cannot {doing}: it has files, and {self._name} does not have {self._folder} mounted at that path"
            hint = f"mount {self._folder} itself, not `current` in it, read-only at the same path"
            raise Rejection(ReasonCode.CONFIG_INVALID, msg, hint=hint)

    async def tidy(self, committed: str | None) -> None:
        """Remove what a recreation left beside the container in use; the kept one, once the one in use is committed.

        A kept one that is to be in use again, because the action was superseded, is put back while nothing runs.
        Where nothing was found once, and no call can be on its way, nothing is looked for until the next recreation.
        """
        async with self._verb:
            if self._is_tidy:
                return
            wanted, unreadable = await self._wanted()
            left = None
            try:
                await self._recreation.drop_unfinished()
                for _ in range(MOST_STEPS):
                    found = await self._recreation.find()
                    if unreadable is not None and (beside := found.new or found.kept) is not None:
                        raise engine_refusals.kept_for(unreadable, self._name, beside.name)
                    step = left_over(found, committed=committed, wanted=wanted)
                    if step is None:
                        alone = found.new is None and found.kept is None
                        self._is_tidy = alone and time.monotonic() >= self._tidy_from
                        return
                    if step.do is Do.STOP:
                        log.warning("docker.kept_container_runs", container=step.container.name)
                        return
                    left = step.container.name
                    await self._recreation.carry_out(step, Target(None, {}))
            except EngineError as error:
                raise engine_refusals.not_tidied(error, self._name, left) from error

    def warnings(self) -> list[str]:
        """Say what about the container may surprise: it vanishes when it stops, it comes back when it should not."""
        container = self._last
        found: list[str] = []
        if container is None:
            return found
        if container.auto_remove:
            found.append(f"the Engine removes {self._name} when it stops (AutoRemove): the agent does not act on it")
        if container.policy.get("Name") == "always":
            found.append(f"{self._name} has restart policy `always`: stopped, it comes back with the Engine")
        return found

    # --- looking -------------------------------------------------------------------------------------------------

    async def _find_in_use(self) -> Found:
        """Find the container by its name; between two renames of a recreation by the other ones."""
        named = await self._recreation.find_named()
        return Found(named) if named is not None else await self._recreation.find()

    def _observation(self, found: Found) -> Observation:
        self._last = container = found.in_use
        if container is None:
            return Observation(RuntimeState.MISSING)
        seen = container.observation(stopped_by_us=self._stopped_by_us, usage=self._usage)
        if found.under_way:
            seen = replace(seen, detail={**seen.detail, "recreation": "cut off between two steps"})
        return seen

    async def _first_look(self, call: Call) -> tuple[Found, Observation]:
        """Read A; an Engine that is away is given a moment."""
        found = await self._calls.insist(call, self._find_in_use, patience=PATIENCE)
        return found, self._observation(found)

    def _usable(self, found: Found, before: Observation, call: Call) -> Container:
        if found.in_use is None:
            raise engine_refusals.missing(self._doing(call), self._name)
        if not (call is Call.START and before.running):
            self._refuse_vanishing(found.in_use, call)
        return found.in_use

    def _refuse_vanishing(self, container: Container, call: Call) -> None:
        if container.auto_remove:
            raise engine_refusals.vanishes(self._doing(call), self._name)

    async def _target(self) -> Target:
        """Read the current release.

        Raises:
            Rejection: `config_missing`: it is named, and cannot be read.
        """

        def read() -> Target:
            release = self._releases.current()
            return Target(None, {}) if release is None else Target(release.sha256, self._releases.environment())

        return await self._worker.run(read)

    async def _wanted(self) -> tuple[str | None, Rejection | None]:
        """Read the checksum of the current release, or why that cannot be known."""
        try:
            release = await self._worker.run(self._releases.current)
        except Rejection as rejection:
            return None, rejection
        return None if release is None else release.sha256, None

    def _is_other(self, container: Container, target: Target) -> bool:
        return container.name != self._name or container.config_sha256 != target.sha256

    def _sample(self, seen: Observation) -> None:
        """Have memory and CPU read in the background; the next look shows them."""
        now = time.monotonic()
        busy = self._sampling is not None and not self._sampling.done()
        if seen.running and not busy and not self._verb.locked() and now - self._sampled_at >= SAMPLE_EVERY:
            self._sampled_at = now
            self._sampling = asyncio.create_task(self._read_usage(seen.incarnation))

    async def _read_usage(self, run: Incarnation | None) -> None:
        if run is not None:
            with suppress(EngineError):  # it is not needed for anything but to be shown
                stats = await self._engine.usage(container_of(run)[0])
                self._usage = read_usage(run, stats) if stats is not None else None

    # --- acting --------------------------------------------------------------------------------------------------

    async def _bring_up(self, before: Observation, record: Recorder, read: Found | None = None) -> Outcome:
        """Start it, made anew first if it has another config.

        Args:
            before: What the verb decided by.
            record: Writes each call.
            read: The container with the current config, as it was a moment ago.
        """
        calls: tuple[Call, ...] = ()
        for _ in range(MOST_STOPS):
            current = read is not None
            found = await self._calls.insist(Call.START, self._find_in_use) if read is None else read
            seen = self._observation(found)
            container = self._usable(found, seen, Call.START)
            if container.is_up:
                return Outcome(before, calls)
            read = None
            if not current and self._is_other(container, await self._target()):
                calls += (await self._recreate(record)).calls
                continue
            await record(Step(Call.START, decisive=True, before=seen, boot_id=self._boot_id))
            calls += (Call.START,)
            if await self._calls.arrives(Call.START, container, self._engine.start(container.id)):
                return Outcome(before, calls)
            now = await self._calls.insist(Call.START, self._recreation.find_named)
            if now is None or now.is_up or now.incarnation != container.incarnation:
                return Outcome(before, calls)  # it came up; whether it stayed, the wait for readiness finds out
        raise engine_refusals.revived(self._doing(Call.START), self._name)

    async def _recreate(self, record: Recorder) -> Outcome:
        """Make the container that has the current config the one in use; it is down then.

        Returns:
            What it stopped for that.
        """
        self._is_tidy = False
        target = await self._target()
        outcome: Outcome | None = None
        calls: tuple[Call, ...] = ()
        stops = 0
        for _ in range(MOST_STEPS):
            found = await self._calls.insist(Call.RECREATE, self._recreation.find)
            step = next_step(found, target.sha256)
            if step is None:
                break
            if not calls:
                await record(Step(Call.RECREATE, detail=_journaled(found, target)))
                calls = (Call.RECREATE,)
            if step.do is Do.STOP:
                stops += 1
                if found.named is None or step.container.id != found.named.id or stops > MOST_STOPS:
                    raise engine_refusals.revived(self._doing(Call.RECREATE), step.container.name)
                seen = self._observation(found)
                await record(Step(Call.STOP, before=seen))
                outcome, _ = await self._bring_down(step.container, seen)
                calls += outcome.calls
                continue
            await self._carry_out(step, target)
        else:
            raise engine_refusals.revived(self._doing(Call.RECREATE), self._name)
        last = outcome or Outcome(self._observation(found))
        return Outcome(last.before, calls, exit_code=last.exit_code, killed=last.killed, detail=last.detail)

    async def _carry_out(self, step: RecreationStep, target: Target) -> None:
        """Carry a step out; when the Engine goes away in it, what it did shows at the next look."""
        self._tidy_from = time.monotonic() + SLOW * self._engine.call_timeout
        try:
            await self._recreation.carry_out(step, target)
        except AwayError as error:
            log.warning("docker.away", container=self._name, step=str(step.do), cause=str(error))
        except RefusedError as error:
            raise self._rejection(error, Call.RECREATE) from error

    async def _bring_down(self, container: Container, before: Observation) -> tuple[Outcome, Container | None]:
        """End the run that was read as `before`; the Engine sends SIGKILL when its grace is over.

        Returns:
            What was done, and the container as it then was, if it is the same one and down.
        """
        began = time.monotonic()
        self._stopped_by_us = before.incarnation
        if container.paused:  # it would not take SIGTERM
            await self._calls.arrives(Call.STOP, container, self._engine.unpause(container.id), tolerate=(409, 500))
        stop = self._engine.stop(container.id, grace=self._stop_timeout)
        if not await self._calls.arrives(Call.STOP, container, stop):
            await self._calls.insist(Call.STOP, lambda: self._stop_again(container))
        data = await self._calls.insist(Call.STOP, lambda: self._engine.inspect(container.id))
        after = Container(data) if data is not None else None
        if after is not None and after.is_up and after.incarnation == before.incarnation:
            hint = f"docker inspect {self._name} says more; it may hang in the kernel"
            raise Rejection(ReasonCode.STOP_FAILED, f"{self._cannot(Call.STOP)}: it still runs", hint=hint)
        detail = {"stop_seconds": round(time.monotonic() - began, 3)}
        if after is None or after.is_up or after.incarnation != before.incarnation:
            return Outcome(before, (Call.STOP,), detail=detail), None
        exit_code = after.state.get("ExitCode")
        killed = exit_code == SIGKILLED and not after.state.get("OOMKilled")
        return Outcome(before, (Call.STOP,), exit_code=exit_code, killed=killed, detail=detail), after

    async def _stop_again(self, container: Container) -> None:
        """Stop it if the run that was meant is still up after the Engine came back; never another one."""
        data = await self._engine.inspect(container.id)
        now = Container(data) if data is not None else None
        if now is not None and now.is_up and now.incarnation == container.incarnation:
            await self._engine.stop(container.id, grace=self._stop_timeout)

    async def _unpause(self, container: Container, record: Recorder) -> None:
        """Let a paused one go on; not decisive, for recovery has to see whether it is still paused."""
        await record(Step(Call.START, before=self._observation(Found(container)), detail={"how": "unpause"}))
        await self._calls.arrives(Call.START, container, self._engine.unpause(container.id), tolerate=(409, 500))

    # --- sentences -----------------------------------------------------------------------------------------------

    def _rejection(self, error: EngineError, call: Call | None) -> Rejection:
        return engine_refusals.rejection(error, self._doing(call), self._name, call)

    def _doing(self, call: Call | None) -> str:
        return f"look at {self._runtime}" if call is None else f"{call} {self._runtime}"

    def _cannot(self, call: Call) -> str:
        return f"cannot {self._doing(call)}"


def _journaled(found: Found, target: Target) -> Mapping[str, str]:
    """Say what a recreation begins with, for whoever reads the journal."""
    container = found.in_use
    if container is None:
        return {"to": target.sha256 or "none"}
    return {
        "container": container.short_id,
        "from": container.config_sha256 or "none",
        "to": target.sha256 or "none",
        "restart_policy": str(container.policy.get("Name")),
    }


def _has_mounted(container: Container, folder: Path) -> bool:
    """Tell whether a container sees a folder of ours at the same path: it, or one that it is in, is mounted there."""
    mounts: list[Mapping[str, Any]] = container.data.get("Mounts") or []
    targets = [PurePosixPath(str(mount.get("Destination"))) for mount in mounts]
    return any(folder == Path(target) or Path(target) in folder.parents for target in targets)
