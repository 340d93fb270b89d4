"""The daemon: the only place that knows everybody. It builds the parts, runs them in one TaskGroup, and ends them.

It ends in the order of trust: nothing new is received, what is under way may finish, its results are sent, the runtimes
are left as they are (but for those that the agent owns), the journal is closed.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import structlog

from agent.activities.lanes import Lanes
from agent.activities.owned import OwnedRuntimes
from agent.conditions import Conditions
from agent.errors import JournalDamagedError, JournalError, Rejection, SettingsError
from agent.journal import Journal, StateLock
from agent.link.client import SupervisorClient
from agent.link.clock import SupervisorClock
from agent.link.health import Channel
from agent.link.heartbeat import Heartbeat
from agent.link.identity import Identity
from agent.link.instances import Instances
from agent.link.joining import Joining
from agent.link.pace import Pace
from agent.link.receiver import Receiver
from agent.link.reporter import Reporter
from agent.link.standing import Standing
from agent.link.tokens import Rotation, Tokens
from agent.local import views
from agent.local.machine import read_node_status
from agent.local.notify import ServiceManager
from agent.local.server import LocalServer
from agent.progress import Progress
from agent.protocol import DriverKind, NodeStatus, RuntimeName, RuntimeStatus, format_time
from agent.redaction import Redactor
from agent.runtimes.driver import read_boot_id
from agent.runtimes.runtime import Runtime
from agent.settings import ENROLLMENT_TOKEN, Settings, read_credential
from agent.wiring import Shared, make_runtime

log = structlog.get_logger(__name__)

ACTING_PAUSE = 0.3
"""Seconds that a pushed change is left alone while an action is under way, which looks for itself, and is often over by
then: what is pushed meanwhile is told in one heartbeat."""
LOOK_AGAIN = 10.0
"""Seconds between two looks at a runtime of which no change was pushed."""
MEND_EVERY, MEND_SOON = 5.0, 1.0
"""Seconds between two looks whether the disk has room, so that the journal's reserve is whole; while it has none."""
PRUNE_EVERY = 600.0
"""Seconds between two times of forgetting old activities."""
JOURNAL_ANSWERS_WITHIN = 15.0
"""Seconds after which the journal's thread is taken to be stuck: a disk that hangs, not one that is slow."""
SET_ASIDE_PAUSE = 60.0
"""Seconds between two damaged journals that are set aside: a disk that spoils each new one is not filled with them, nor
is the agent started again and again."""
SET_ASIDE_AGAIN = 10.0
"""Seconds between two tries to set one aside."""
LOOK_AFTER = 0.25
"""Seconds between a change of a runtime and the look at what it has come to."""
FLUSH_TIMEOUT = 2.0
"""Seconds that the last reports get when the agent ends; what is not sent then is sent after the next start."""


def run(settings: Settings, redactor: Redactor) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code.

    Raises:
        AgentError: It cannot run: wrong settings, a foreign identity, a state folder that somebody else holds.
    """
    refuse_children_of_a_unit(settings, os.environ)
    state_dir = settings.agent.state_dir
    try:
        state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the state folder {state_dir}: {error.strerror}"
        raise JournalError(msg, hint="create it, owned by the agent's user, or set agent.state_dir") from error
    with StateLock(state_dir):
        asyncio.run(Daemon(settings, redactor).run())
    return 0


def refuse_children_of_a_unit(settings: Settings, environ: Mapping[str, str]) -> None:
    """Refuse to be the main process of a systemd service that would take the runtimes down with it.

    systemd ends a service's whole control group; SYSTEMD_EXEC_PID names the main process it started: systemd.exec(5).

    Raises:
        SettingsError: A runtime has the process driver and is not `owned`.
    """
    if environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return
    for name, runtime in settings.runtimes.items():
        if runtime.driver is DriverKind.PROCESS and not runtime.owned:
            msg = f"cannot run {name} as a child of a systemd service: restarting the agent would kill it"
            raise SettingsError(
                msg,
                hint=f'give it a unit of its own (runtimes.{name}.driver = "systemd"), or set '
                f"runtimes.{name}.owned = true if it shall live and end with the agent",
            )


class Daemon:
    """One run of the agent.

    Args:
        settings: Checked.
        redactor: Learns the node's secrets, so that no log and no report shows them.
    """

    def __init__(self, settings: Settings, redactor: Redactor) -> None:
        self._settings = settings
        self._state_dir = settings.agent.state_dir
        self._redactor = redactor
        self._version = metadata.version("iggy-node-agent")
        self._started_at = datetime.now(UTC)
        self._stopping = asyncio.Event()
        self._conditions = Conditions()
        self._standing = Standing(self._conditions)
        self._clock = SupervisorClock(self._conditions)
        self._progress = Progress()
        self._manager = ServiceManager(os.environ)
        self._machine = ThreadPoolExecutor(1, "machine")
        self._identity: Identity | None = None
        self._journal: Journal | None = None
        self._runtimes: dict[RuntimeName, Runtime] = {}
        self._lanes: Lanes | None = None
        self._client: SupervisorClient | None = None

    async def run(self) -> None:
        """Run until a signal; see the module's text for how it ends."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        log.info("agent.started", version=self._version, python=sys.version.split()[0], pid=os.getpid())
        async with AsyncExitStack() as stack:
            stack.callback(self._machine.shutdown, wait=False)
            self._conditions.on_change(self._manager.wake)
            await stack.enter_async_context(self._manager.telling(self._status_line, self._stuck))
            server = LocalServer(
                self._settings.agent.socket, status=self._status, activities=self._activities, activity=self._activity
            )
            await server.open()
            stack.push_async_callback(server.close)
            identity = await self._find_identity()
            if identity is not None:
                await self._run_as(identity, stack)
        log.info("agent.stopped")

    def _stop(self) -> None:
        self._stopping.set()
        self._manager.stopping()

    def _status_line(self) -> str:
        identity, lanes = self._identity, self._lanes
        current = {} if lanes is None else {name: lanes.current(name) for name in self._runtimes}
        line = views.status_line(
            None if identity is None else identity.node_id,
            acting={name: activity_id for name, activity_id in current.items() if activity_id is not None},
            conditions=self._conditions.all(),
            stopping=self._stopping.is_set(),
        )
        return self._redactor.text(line)

    async def _stuck(self) -> list[str]:
        """Name the loops that do not go round, and the journal if its thread does not answer."""
        stuck = self._progress.late()
        if self._journal is not None and self._journal.rescue.damage is None:  # a disk may take its time to give pages
            try:
                async with asyncio.timeout(JOURNAL_ANSWERS_WITHIN):
                    await self._journal.counts()
            except TimeoutError:
                stuck.append("journal")
            except JournalError as error:  # it moves; what is wrong with it is a condition
                log.debug("watchdog.journal", cause=error.message)
        return stuck

    # --- who this node is

    async def _find_identity(self) -> Identity | None:
        """Load the identity, or enrol with the credential, or wait for `iggy-agent enroll`; None when told to stop."""
        supervisor = self._settings.supervisor
        joining = Joining(
            url=supervisor.url,
            ca_file=supervisor.ca_file,
            state_dir=self._state_dir,
            conditions=self._conditions,
            credential=lambda: read_credential(ENROLLMENT_TOKEN, os.environ),
            credential_name=ENROLLMENT_TOKEN,
            learned=self._redactor.add,
            ready=self._manager.ready,
        )
        return await joining.identity(self._stopping)

    # --- the whole

    async def _run_as(self, identity: Identity, stack: AsyncExitStack) -> None:
        self._identity = identity
        journal = await Journal.open(
            self._state_dir, journal_id=identity.journal_id, conditions=self._conditions, boot_id=read_boot_id
        )
        stack.push_async_callback(journal.close)
        self._journal = journal
        try:
            await self._run_on(journal, identity, stack)
        except JournalDamagedError:
            self._manager.ready()  # the agent may have to stay as it is for long
            await self._set_aside(journal)
            if not self._stopping.is_set():
                raise

    async def _run_on(self, journal: Journal, identity: Identity, stack: AsyncExitStack) -> None:
        shared = Shared()
        for name, settings in self._settings.runtimes.items():
            runtime = make_runtime(name, settings, self._state_dir / "runtimes" / name, self._redactor, shared)
            await runtime.open()
            stack.push_async_callback(runtime.close)
            await self._meet(journal, runtime)
            self._runtimes[name] = runtime
        tokens = Tokens(identity, self._state_dir, clock=self._clock, learned=self._redactor.add)
        instances = await Instances.open(self._state_dir)
        supervisor = self._settings.supervisor
        self._client = await stack.enter_async_context(
            SupervisorClient(
                url=supervisor.url,
                ca_file=supervisor.ca_file,
                token=tokens.current,
                token_refused=tokens.refused,
                token_accepted=tokens.accepted,
                instance=instances.current,
                renew=instances.renew,
                revision=lambda: journal.revision,
                clock=self._clock,
                standing=self._standing,
                conditions=self._conditions,
                version=self._version,
            )
        )
        await self._run_parts(journal, self._client, tokens)

    async def _meet(self, journal: Journal, runtime: Runtime) -> None:
        """Have the journal know a runtime; where it cannot be told now, its lane does so before it begins anything."""
        try:
            await journal.know_runtime(runtime.name, current=await runtime.current_name())
        except JournalDamagedError:
            raise
        except (Rejection, JournalError) as error:
            log.debug("runtime.not_met", runtime=runtime.name, cause=error.message)  # a condition says so

    async def _run_parts(self, journal: Journal, client: SupervisorClient, tokens: Tokens) -> None:
        """Run every loop until a signal, or until the journal turns out damaged, then end them in order.

        Raises:
            JournalDamagedError: It did.
        """
        standing, conditions, pace = self._standing, self._conditions, Pace()
        mark = self._progress.mark
        reporter = Reporter(client, journal, standing=standing, conditions=conditions, mark=mark("reporter"))
        receiver = Receiver(
            client,
            journal,
            standing=standing,
            conditions=conditions,
            pace=pace,
            swept=reporter.try_refused,
            mark=mark("receiver"),
        )
        heartbeat = Heartbeat(
            client,
            journal,
            standing=standing,
            conditions=conditions,
            pace=pace,
            version=self._version,
            started_at=self._started_at,
            runtimes=self._runtime_statuses,
            node=self._node_status,
        )
        rotation = Rotation(client, tokens, clock=self._clock, standing=standing, conditions=conditions)
        owned = OwnedRuntimes(
            {name: runtime for name, runtime in self._runtimes.items() if self._settings.runtimes[name].owned},
            journal,
            conditions,
        )
        self._lanes = lanes = Lanes(
            self._runtimes,
            journal,
            now=self._clock.now,
            permitted=lambda: standing.permitted,
            conditions=conditions,
            on_recovered=owned.start,
            progress=self._progress,
        )
        async with asyncio.TaskGroup() as group:
            self._manager.ready()
            receiving = group.create_task(receiver.run(), name="receiver")
            acting = group.create_task(lanes.run(), name="lanes")
            others = [
                group.create_task(reporter.run(), name="reporter"),
                group.create_task(heartbeat.run(), name="heartbeat"),
                group.create_task(rotation.run(), name="rotation"),
                group.create_task(self._prune(journal), name="pruning"),
                group.create_task(self._mend_reserve(journal), name="reserve"),
                *(
                    group.create_task(self._watch(runtime, heartbeat, owned), name=f"watch {name}")
                    for name, runtime in self._runtimes.items()
                ),
            ]
            await self._until_any(self._stopping, journal.rescue.noticed)
            log.info("agent.stopping", grace=self._settings.agent.shutdown_grace)
            receiving.cancel()
            lanes.stop()
            over = group.create_task(journal.rescue.over.wait(), name="what a damaged journal leaves to do")
            await asyncio.wait(
                {acting, over}, timeout=self._settings.agent.shutdown_grace, return_when=asyncio.FIRST_COMPLETED
            )
            acting.cancel()
            await asyncio.wait({acting})
            if journal.rescue.damage is not None:  # before what is owned is stopped: it may take a while
                self._progress.rest()
                await self._set_aside(journal)
            await owned.stop_all()
            await self._flush(journal)
            for task in (over, *others):
                task.cancel()
        if journal.rescue.damage is not None:
            raise journal.rescue.damage

    async def _until_any(self, *events: asyncio.Event, seconds: float | None = None) -> None:
        """Wait until one of these events is set, or so many seconds are over."""
        waiting = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _set_aside(self, journal: Journal) -> None:
        """Set a damaged journal aside, before the agent ends: so the next one cannot find it damaged once more.

        Where that fails the agent stays, and says so: to end would be to start again and again on the same file.
        """
        while not journal.is_set_aside:
            try:
                since = await journal.since_set_aside()
                if since is not None and 0 <= since < SET_ASIDE_PAUSE:
                    await self._until_any(self._stopping, seconds=SET_ASIDE_PAUSE - since)
                await journal.set_aside()
            except JournalError as error:
                log.error("journal.not_set_aside", cause=error.message, hint=error.hint)
                if self._stopping.is_set():
                    return
                await self._until_any(self._stopping, seconds=SET_ASIDE_AGAIN)

    async def _flush(self, journal: Journal) -> None:
        """Give the last reports a moment; the outbox keeps what is not sent."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                while self._standing.permitted and not journal.is_set_aside and (await journal.counts()).unreported:  # noqa: ASYNC110 - a table has no event
                    await asyncio.sleep(0.02)
        except (TimeoutError, JournalError) as error:
            log.warning("agent.reports_left", cause=str(error) or "the Supervisor did not answer in time")

    async def _prune(self, journal: Journal) -> None:
        agent = self._settings.agent
        while True:
            try:
                pruned = await journal.prune(days=agent.retention_days, count=agent.retention_count)
                if pruned:
                    log.info("journal.pruned", count=pruned)
            except JournalError as error:
                log.warning("journal.not_pruned", cause=error.message)
            await asyncio.sleep(PRUNE_EVERY)

    async def _mend_reserve(self, journal: Journal) -> None:
        """Show a full disk before anything is dispatched, and that it is over."""
        while True:
            await asyncio.sleep(MEND_SOON if "disk_full" in self._conditions else MEND_EVERY)
            try:
                await journal.mend_reserve()
            except JournalError as error:  # a condition says so
                log.debug("journal.reserve_not_mended", cause=error.message)

    async def _watch(self, runtime: Runtime, heartbeat: Heartbeat, owned: OwnedRuntimes) -> None:
        """Send a heartbeat soon when a runtime changes by itself.

        After the look, not before it: so what the look has consumed is in the heartbeat. Should a push be lost, a look
        every now and then finds the change.
        """
        before: tuple[object, ...] | None = None
        await self._look_at_configs(runtime)
        while True:
            pushed = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await runtime.driver.wait_for_change()
                    pushed = True
            if pushed and self._lanes is not None and self._lanes.current(runtime.name) is not None:
                await asyncio.sleep(ACTING_PAUSE)
            try:
                await self._look_at_configs(runtime)
                seen = await runtime.driver.observe()
            except Rejection as error:
                after: tuple[object, ...] = (error.code,)
                if after != before:
                    log.warning("runtime.unreadable", runtime=runtime.name, cause=error.message)
            except Exception as error:  # a look that only serves the heartbeat ends no action that is under way
                after = (repr(error),)
                if after != before:
                    log.exception("runtime.look_failed", runtime=runtime.name)
            else:
                after = (seen.state, seen.incarnation, seen.restarts)
                if seen.running:
                    owned.seen_running(runtime.name)
            if pushed or after != before:
                heartbeat.beat()
            before = after

    async def _look_at_configs(self, runtime: Runtime) -> None:
        """Say it while the folder of a runtime's configs cannot be read."""
        code = f"{runtime.name}_folder_unreadable"
        try:
            await runtime.look_at_configs()
        except Rejection as error:
            unknown = f"; until it can be read, the log of {runtime.name} is not shown"
            message = error.message if runtime.knows_secrets else error.message + unknown
            self._conditions.set(code, message, hint=error.hint)
        else:
            self._conditions.clear(code)

    # --- what others are told

    async def _runtime_statuses(self) -> list[RuntimeStatus]:
        lanes = self._lanes
        return [
            await runtime.status(None if lanes is None else lanes.current(name))
            for name, runtime in list(self._runtimes.items())  # more may be opened meanwhile
        ]

    async def _node_status(self) -> NodeStatus:
        return await asyncio.get_running_loop().run_in_executor(self._machine, read_node_status, self._state_dir)

    async def _status(self) -> dict[str, Any]:
        """Make the local API's status."""
        conditions = self._conditions.all()
        counts = None
        if self._journal is not None:
            try:
                counts = (await self._journal.counts()).model_dump()
            except JournalError as error:
                log.debug("status.without_counts", cause=error.message)  # a condition says so
        identity = self._identity
        return {
            "healthy": not conditions,
            "agent": {
                "version": self._version,
                "started_at": format_time(self._started_at),
                "pid": os.getpid(),
                "stopping": self._stopping.is_set(),
                "node_id": identity and identity.node_id,
                "deployment_id": identity and identity.deployment_id,
                "supervisor_url": self._settings.supervisor.url,
            },
            "link": self._link_status(),
            "conditions": [views.condition(condition) for condition in conditions],
            "journal": counts,
            "runtimes": [status.model_dump(mode="json") for status in await self._runtime_statuses()],
        }

    def _link_status(self) -> dict[str, Any] | None:
        """Show how each kind of call does; an error that a success came after is history, and left to the log."""
        if self._client is None:
            return None
        shown = {}
        for channel in Channel:
            facts = asdict(self._client.status(channel))
            success, failure = facts["last_success_at"], facts["last_error_at"]
            if success is not None and failure is not None and failure < success:
                del facts["last_error"], facts["last_error_at"]
            shown[str(channel)] = facts
        return shown

    async def _activities(self, limit: int) -> list[dict[str, Any]]:
        return [] if self._journal is None else [views.summary(row) for row in await self._journal.recent(limit)]

    async def _activity(self, activity_id: int) -> dict[str, Any] | None:
        row = None if self._journal is None else await self._journal.get(activity_id)
        return None if row is None else views.detail(row)
