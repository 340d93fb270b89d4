"""The process driver: the agent starts the runtime itself, as a process that survives it and never runs twice.

Iggy has no lock of its own, so this driver gives it one: the process holds an inherited `flock` for as long as it
lives, taken before it was forked. Which process it is stands in a record that is durable before exec. So, whenever the
agent is killed, the next one reads the truth: lock and record are never ahead of what runs.

    lock held, the record's process lives      running
    lock held, it does not, no child of it     starting: a launcher is on its way
    lock held, it does not, a child holds it   stopping: the main process ended, a child of it still runs
    lock free                                  stopped, or failed when its exit code is known and not 0

Ending a run means the main process first (SIGTERM, then SIGKILL after `stop_timeout`), then what is left of its
children, the same way: otherwise one that stays would keep the next start `busy` for ever.
"""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, ReasonCode, RuntimeName, RuntimeState
from agent.runtimes import disk, logfile, proc, runs, spawn
from agent.runtimes import environment as environments
from agent.runtimes.driver import Call, Incarnation, Observation, Outcome, Recorder, Step, read_boot_id
from agent.runtimes.releases import Releases
from agent.runtimes.watch import Watcher
from agent.runtimes.worker import Worker

log = structlog.get_logger(__name__)

LOG_MAX_BYTES = 16 * 1024 * 1024
LOG_KEEP = 3
ROTATE_EVERY = 10.0
"""Seconds between two looks at the size of the log."""

KILL_TIMEOUT = 10.0
"""Seconds that a process may take to go after SIGKILL; one that hangs in the kernel never does."""
START_GRACE = 10.0
"""Seconds that a launcher on its way, of an agent that died, is waited for before the lock counts as busy."""
CHILD_GRACE = 2.0
"""Seconds that the children of an ended main process may take to follow it by themselves."""
_NOT_HELD = -1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.2
"""Seconds between looks at what cannot be pushed."""


class ProcessDriver:
    """Controls one runtime as a process; see the module's text.

    What blocks runs in one thread, in order. So a caller that is cancelled leaves nothing half done: a launch that is
    under way comes up, and the next look sees it.

    Args:
        runtime: Its name.
        command: What to execute, in the foreground; the first word is looked up in PATH.
        folder: `<state>/runtimes/<runtime>`.
        releases: Of this runtime; the current one's values go into the environment, before all others.
        environment: From the settings.
        working_directory: Of the runtime; its folder when None, so that it never depends on the agent's own.
        stop_timeout: Seconds between SIGTERM and SIGKILL.
        log_max_bytes: Size at which the log is rotated.
        log_keep: How many rotated logs are kept.
    """

    kind = DriverKind.PROCESS

    def __init__(  # noqa: PLR0913 - each is a setting, given by name in one place
        self,
        *,
        runtime: RuntimeName,
        command: Sequence[str],
        folder: Path,
        releases: Releases,
        environment: Mapping[str, str],
        working_directory: Path | None,
        stop_timeout: float,
        log_max_bytes: int = LOG_MAX_BYTES,
        log_keep: int = LOG_KEEP,
    ) -> None:
        self._runtime = runtime
        self._command = tuple(command)
        self._folder = folder.absolute()
        self._files = runs.RunFiles(self._folder)
        self._releases = releases
        self._environment = dict(environment)
        self._working_directory = (working_directory or self._folder).absolute()
        self._stop_timeout = stop_timeout
        self._log = logfile.LogFile(self._folder / "log" / f"{runtime}.log", max_bytes=log_max_bytes, keep=log_keep)
        self._worker = Worker(f"process-{runtime}")
        self._verb = asyncio.Lock()
        self._changed = asyncio.Event()
        self._watcher = Watcher(runtime, self._files, self._worker, self._changed.set)
        self._housekeeping: asyncio.Task[None] | None = None
        self._lock = _NOT_HELD  # a descriptor; belongs to the worker's thread
        self._lock_was_dropped = False

    # --- the driver protocol -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Adopt what runs, watch it, and keep its log bounded; without its folder it tries again with each look."""
        self._watcher.open()
        try:
            await self._worker.run(self._make_folders)
            await self.observe()
        except Rejection as error:  # whoever looks or starts it next is told
            log.warning("process.folder_unusable", runtime=self._runtime, cause=error.message, hint=error.hint)
        self._housekeeping = asyncio.create_task(self._keep_log_bounded())

    async def close(self) -> None:
        """Stop watching; the runtime is left as it is. Closing twice, or what was never opened, does nothing."""
        if self._housekeeping is None:
            return
        self._housekeeping.cancel()
        await asyncio.gather(self._housekeeping, return_exceptions=True)
        self._housekeeping = None
        await self._watcher.close()
        await self._worker.close()

    async def observe(self) -> Observation:
        """Look at the runtime now."""
        self._changed.clear()
        return await self._worker.run(self._look)

    async def settle(self) -> Observation:
        """Look at it once nothing is under way; children that stay behind their main process count as that."""
        return await self._rest(grace=None)

    async def start(self, record: Recorder) -> Outcome:
        """Bring it up; already running makes no call."""
        async with self._verb:
            return await self._start(record)

    async def stop(self, record: Recorder) -> Outcome:
        """Bring it down; already down makes no call."""
        async with self._verb:
            before = await self._rest(START_GRACE)
            if before.state is RuntimeState.STARTING:
                raise self._busy(Call.STOP, before)
            if before.state not in {RuntimeState.RUNNING, RuntimeState.STOPPING}:
                return Outcome(before)
            boot_id = await self._worker.run(read_boot_id)
            await record(Step(Call.STOP, decisive=True, before=before, boot_id=boot_id))
            return await self._bring_down(before)

    async def restart(self, record: Recorder) -> Outcome:
        """Stop it if it runs, then start it; nothing is stopped that could not be started again."""
        async with self._verb:
            before = await self._rest(START_GRACE)
            await self._worker.run(self._check_startable)
            stopped = Outcome(before)
            if before.state in {RuntimeState.RUNNING, RuntimeState.STOPPING}:
                await record(Step(Call.STOP, before=before))
                stopped = await self._bring_down(before)
            started = await self._start(record)
            return replace(stopped, calls=stopped.calls + started.calls)

    async def wait_for_change(self) -> None:
        """Return when the runtime changed since the last `observe`."""
        await self._changed.wait()

    async def log_tail(self, incarnation: Incarnation | None, *, max_bytes: int) -> list[str]:
        """Return the last log lines of one run."""
        return [] if incarnation is None else await self._worker.run(self._tail, incarnation, max_bytes)

    def check_config(self, config: Config) -> None:
        """Accept it: a process can be given any environment and any file."""

    async def tidy(self, committed: str | None) -> None:
        """Leave all as it is: this driver leaves nothing behind."""

    def warnings(self) -> list[str]:
        """Say when the runtime gave up the lock that protects it."""
        if not self._lock_was_dropped:
            return []
        return [f"{self._runtime} closed its inherited lock: only its record keeps it from being started twice"]

    # --- looking; all of it in the worker's thread ---------------------------------------------------------------

    def _look(self) -> Observation:
        with disk.explained(f"look at {self._runtime}", otherwise=ReasonCode.DRIVER_UNAVAILABLE):
            return self._look_once() or self._look_once() or self._held()

    def _look_once(self) -> Observation | None:
        """Read the record, then the lock; None when they do not fit: the record may have been written in between."""
        run, known = self._files.last_run()
        alive = run is not None and self._watcher.is_alive(run)
        held = self._files.lock_is_held()
        if run is not None and alive:
            self._lock_was_dropped = not held
            return self._running(run)
        return None if held else self._resting(run, known=known)

    def _running(self, run: runs.Run) -> Observation:
        stat = proc.read_stat(run.pid)
        return Observation(
            RuntimeState.RUNNING,
            incarnation=run.incarnation,
            pid=run.pid,
            started_at=run.started_at,
            memory_bytes=stat.memory_bytes if stat else None,
            cpu_seconds=stat.cpu_seconds if stat else None,
            config_sha256=run.config_sha256,
        )

    def _resting(self, run: runs.Run | None, *, known: bool) -> Observation:
        ended = self._watcher.exit_of(run) if run else None
        state = RuntimeState.FAILED if ended and ended.exit_code and not ended.requested else RuntimeState.STOPPED
        return Observation(
            state if self._command_exists() else RuntimeState.MISSING,
            incarnation=run.incarnation if run else None,
            incarnation_known=known,
            exit_code=ended.exit_code if ended else None,
        )

    def _held(self) -> Observation:
        """Tell a launcher on its way from children that outlived their main process, or their record."""
        run, known = self._files.last_run()
        last = run.incarnation if run else None
        holders = self._holders()
        if not holders or (run is None and known):
            return Observation(RuntimeState.STARTING, incarnation=last, incarnation_known=known)
        note = "its main process ended, a child of it still runs" if run else "it runs, but its record is lost"
        detail = {"note": note, "held_by": holders}
        return Observation(RuntimeState.STOPPING, incarnation=last, incarnation_known=known, detail=detail)

    def _holders(self) -> list[int]:
        """Find who holds the lock, but for this agent and launchers on their way."""
        pids = set(proc.holders_of_flock(self._files.lock)) - {os.getpid()}
        return sorted(pid for pid in pids if str(spawn.PROGRAM) not in proc.command_line(pid))

    def _command_exists(self) -> bool:
        path = self._environment.get("PATH", os.environ.get("PATH"))
        return runs.find_command(self._command[0], path=path, working_directory=self._working_directory)

    # --- verbs ---------------------------------------------------------------------------------------------------

    async def _rest(self, grace: float | None) -> Observation:
        """Look until nothing is under way, or for `grace` seconds of a start, or a while of children left behind."""
        began = time.monotonic()
        pause = _FIRST_PAUSE
        left_behind_since: float | None = None
        while True:
            seen = await self.observe()
            now = time.monotonic()
            if seen.state is RuntimeState.STOPPING:
                left_behind_since = left_behind_since or now
                if now - left_behind_since >= CHILD_GRACE:
                    return seen
            elif seen.at_rest or (grace is not None and now - began >= grace):
                return seen
            else:
                left_behind_since = None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    async def _start(self, record: Recorder) -> Outcome:
        seen = await self._rest(START_GRACE)
        if seen.running:
            return Outcome(seen)
        if not seen.at_rest:
            raise self._busy(Call.START, seen)
        await self._worker.run(self._check_startable)
        try:
            if not await self._worker.run(self._take_lock):
                return await self._overtaken()
            before = await self._worker.run(self._look_locked)
            if before.running:
                return Outcome(before)
            boot_id = await self._worker.run(read_boot_id)
            await record(Step(Call.START, decisive=True, before=before, boot_id=boot_id))
            await self._worker.run(self._launch, boot_id)
        finally:
            self._worker.submit(self._release_lock)  # behind whatever of the above is still queued
        return Outcome(before, (Call.START,))

    async def _overtaken(self) -> Outcome:
        """Somebody else took the lock first: what comes up is theirs, and counts."""
        seen = await self._rest(START_GRACE)
        if seen.running:
            return Outcome(seen)
        raise self._busy(Call.START, seen)

    def _check_startable(self) -> None:
        """Refuse what cannot be started before anything is touched."""
        if not self._command_exists():
            raise spawn.command_not_found(self._runtime, self._command[0])
        self._releases.environment()

    def _take_lock(self) -> bool:
        with disk.explained(f"take the lock of {self._runtime}", otherwise=ReasonCode.START_FAILED):
            self._make_folders()
            for _ in range(20):  # somebody who looks whether it is held, holds it for a moment
                if (lock := self._files.take_lock()) is not None:
                    self._lock = lock
                    return True
                time.sleep(_FIRST_PAUSE)
            return False

    def _release_lock(self) -> None:
        if self._lock != _NOT_HELD:
            os.close(self._lock)
            self._lock = _NOT_HELD

    def _look_locked(self) -> Observation:
        """Read A: nothing else can start the runtime now."""
        with disk.explained(f"look at {self._runtime}", otherwise=ReasonCode.DRIVER_UNAVAILABLE):
            run, known = self._files.last_run()
            alive = run is not None and self._watcher.is_alive(run)
            return self._running(run) if run is not None and alive else self._resting(run, known=known)

    def _launch(self, boot_id: str) -> None:
        release = self._releases.current()
        environment = environments.inherited(os.environ) | self._environment | self._releases.environment()
        plan = spawn.Launch(
            runtime=self._runtime,
            command=self._command,
            environment=environment,
            working_directory=self._working_directory,
            log=self._log.path,
            record=self._files.record,
            marker=logfile.MARKER,
            boot_id=boot_id,
            facts={
                "release": release.name if release else None,
                "config_sha256": release.sha256 if release else None,
            },
        )
        try:
            spawn.launch(plan, self._lock)
        finally:
            self._release_lock()
        with suppress(Rejection):  # it was started: whoever waits for it looks again
            self._look()  # from now on its end is noticed, also when the caller was cancelled meanwhile

    async def _bring_down(self, before: Observation) -> Outcome:
        """End the run that was read as `before`, and no other, and then what is left of its children."""
        began = time.monotonic()
        watch = self._watcher.of(before.incarnation) if before.running else None
        killed = False
        if watch is not None and not await watch.end(signal.SIGTERM, within=self._stop_timeout):
            killed = True
            if not await watch.end(signal.SIGKILL, within=KILL_TIMEOUT):
                raise self._stays([watch.run.pid])
        left = self._stop_timeout - (time.monotonic() - began)
        killed |= await self._end_children(max(CHILD_GRACE, left))
        return Outcome(
            before,
            (Call.STOP,),
            exit_code=watch.exit.exit_code if watch and watch.exit else None,
            killed=killed,
            detail={"stop_seconds": round(time.monotonic() - began, 3)},
        )

    async def _end_children(self, patience: float) -> bool:
        """End the children that outlived their main process; return whether SIGKILL was needed."""
        seen = await self.observe()
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, KILL_TIMEOUT)):
            if seen.state is not RuntimeState.STOPPING:
                return False
            await self._worker.run(self._signal_children, number)
            seen = await self._children_gone(seconds)
            if seen.state is not RuntimeState.STOPPING:
                return number is signal.SIGKILL
        raise self._stays(seen.detail["held_by"])

    def _signal_children(self, number: signal.Signals) -> None:
        for pid in self._holders():
            proc.signal_holder(pid, self._files.lock, number)

    async def _children_gone(self, seconds: float) -> Observation:
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while True:
            seen = await self.observe()
            if seen.state is not RuntimeState.STOPPING or time.monotonic() >= deadline:
                return seen
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    # --- the log, and sentences ----------------------------------------------------------------------------------

    def _make_folders(self) -> None:
        with disk.explained(f"prepare the folder of {self._runtime}", otherwise=ReasonCode.DRIVER_UNAVAILABLE):
            self._log.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)

    def _tail(self, incarnation: Incarnation, max_bytes: int) -> list[str]:
        try:
            with disk.explained(f"read the log of {self._runtime}", otherwise=ReasonCode.DRIVER_UNAVAILABLE):
                last, _ = self._files.last_run()
                latest = last is not None and last.incarnation == incarnation
                return self._log.tail(incarnation, latest=latest, max_bytes=max_bytes)
        except logfile.RunNotInLogError:
            msg = f"cannot read the log of {self._runtime}: no line of that run is left in it"
            raise Rejection(ReasonCode.NOT_FOUND, msg) from None

    async def _keep_log_bounded(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(ROTATE_EVERY)
            try:
                await self._worker.run(self._log.rotate)
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("process.log_not_rotated", runtime=self._runtime, error=str(error))
                failing = True

    def _busy(self, verb: Call, seen: Observation) -> Rejection:
        hint = f"see who holds {self._files.lock}; `restart` ends what is left of the last run"
        if holders := seen.detail.get("held_by"):
            pids = ", ".join(str(pid) for pid in holders)
            msg = f"cannot {verb} {self._runtime}: {seen.detail['note']} (pid {pids})"
            return Rejection(ReasonCode.BUSY, msg, hint=hint, evidence=seen.as_evidence())
        msg = f"cannot {verb} {self._runtime}: something else holds its lock, and does not come up"
        return Rejection(ReasonCode.BUSY, msg, hint=f"see who holds {self._files.lock}")

    def _stays(self, pids: Sequence[int]) -> Rejection:
        names = ", ".join(str(pid) for pid in pids)
        msg = f"cannot stop {self._runtime}: process {names} still runs {KILL_TIMEOUT:g} s after SIGKILL"
        return Rejection(ReasonCode.STOP_FAILED, msg, hint="it hangs in the kernel: look at its disk")
