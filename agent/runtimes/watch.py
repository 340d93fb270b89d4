"""Notice the end of a process at once, whether it is a child of this agent or was adopted, and keep how it ended."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from agent.protocol import RuntimeName
from agent.runtimes import proc
from agent.runtimes.driver import Incarnation, read_boot_id
from agent.runtimes.runs import Exit, Run, RunFiles
from agent.runtimes.worker import Worker

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Watch:
    """One run whose end is waited for; its pidfd names the process beyond doubt, so signals go through it.

    Args:
        requested: Whether this agent asked it to stop.
        exit: How it ended, once that was collected.
    """

    run: Run
    pidfd: int
    requested: bool = False
    exit: Exit | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _collected: bool = False
    _closed: bool = False

    async def end(self, number: signal.Signals, *, within: float) -> bool:
        """Send a signal to exactly this process, and tell whether it ended within so many seconds.

        One that ended is never taken for one that did not, also when this agent got no processor for that long.
        """
        self.requested = True
        if not self._closed:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)
        try:
            async with asyncio.timeout(within):
                await self._ended.wait()
        except TimeoutError:
            if self._closed or not proc.has_ended(self.pidfd):
                return False
            await self._ended.wait()
        return True

    def collect(self) -> int | None:
        """Reap it, if it is a child of this agent; return its exit code, None when only its parent could ask."""
        self._collected = True
        with suppress(ChildProcessError):
            if result := os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED):
                by_signal = result.si_code in {os.CLD_KILLED, os.CLD_DUMPED}
                return result.si_status + (128 if by_signal else 0)
        return None

    @property
    def collected(self) -> bool:
        """Whether it ended and was reaped."""
        return self._collected

    def finish(self) -> None:
        """Wake who waits for its end."""
        self._ended.set()

    def close(self) -> None:
        """Stop watching it."""
        self._closed = True
        os.close(self.pidfd)
        if self._collected:
            self._ended.set()


class Watcher:
    """Watches the last run of one runtime.

    What blocks is called in the worker's thread, in which nothing else of the driver runs meanwhile; the pidfds are
    watched in the event loop.

    Args:
        runtime: For the log.
        files: Where exits are kept.
        worker: The driver's thread.
        on_end: Called in the event loop when a run ended and that was kept.
    """

    def __init__(self, runtime: RuntimeName, files: RunFiles, worker: Worker, on_end: Callable[[], None]) -> None:
        self._runtime = runtime
        self._files = files
        self._worker = worker
        self._tell = on_end
        self._watch: Watch | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Bind it to the running event loop."""
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Forget the run; it goes on."""
        await self._worker.run(self._replace, None)
        await asyncio.gather(*self._tasks)

    def of(self, incarnation: Incarnation | None) -> Watch | None:
        """Return the watch of a run, if it is the one that is watched."""
        watch = self._watch
        return watch if watch is not None and watch.run.incarnation == incarnation else None

    def is_alive(self, run: Run) -> bool:
        """Tell whether a run still lives, and watch it from now on; never takes another process with its pid for it."""
        watch = self.of(run.incarnation)
        if watch is None:
            if run.boot_id != read_boot_id():
                return False
            pidfd = proc.open_process(run.pid, run.start_ticks)
            if pidfd is None:
                return False
            watch = Watch(run, pidfd)
            self._replace(watch)
        if not proc.has_ended(watch.pidfd):
            return True
        self._collect(watch)
        return False

    def exit_of(self, run: Run) -> Exit | None:
        """Return how a run ended, as far as that is known."""
        watch = self.of(run.incarnation)
        return watch.exit if watch is not None else self._files.last_exit(run)

    def _replace(self, watch: Watch | None) -> None:
        old, self._watch = self._watch, watch
        if old is not None:
            if proc.has_ended(old.pidfd):
                self._collect(old)
            self._in_loop(self._stop_watching, old)
        if watch is not None:
            self._in_loop(self._begin_watching, watch)

    def _collect(self, watch: Watch) -> None:
        if watch.collected:
            return
        exit_code = watch.collect()
        watch.exit = Exit.of(watch.run, exit_code, requested=watch.requested)
        try:
            known = self._files.last_exit(watch.run)
            if known is not None and known.exit_code is not None:
                watch.exit = known
            else:
                self._files.keep_exit(watch.exit)
        except OSError as error:
            log.warning("process.exit_not_kept", runtime=self._runtime, exit_code=exit_code, error=str(error))

    def _in_loop(self, call: Callable[[Watch], None], watch: Watch) -> None:
        if self._loop is None:
            msg = "the driver is not open"
            raise RuntimeError(msg)
        self._loop.call_soon_threadsafe(call, watch)

    def _begin_watching(self, watch: Watch) -> None:
        asyncio.get_running_loop().add_reader(watch.pidfd, self._on_end, watch)

    def _stop_watching(self, watch: Watch) -> None:
        asyncio.get_running_loop().remove_reader(watch.pidfd)
        watch.close()

    def _on_end(self, watch: Watch) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(watch.pidfd)
        task = loop.create_task(self._finish(watch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, watch: Watch) -> None:
        await self._worker.run(self._collect, watch)
        watch.finish()
        self._tell()
