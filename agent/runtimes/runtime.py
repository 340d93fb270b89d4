"""One managed runtime: its driver, its probe and its releases, as one thing that actions and the heartbeat use."""

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from agent.errors import Rejection
from agent.protocol import Config, DriverKind, RuntimeName, RuntimeStatus
from agent.redaction import Redactor, config_secrets
from agent.runtimes.driver import Driver, Incarnation, Observation
from agent.runtimes.probe import Probe, ProbePlan, ProbeResult
from agent.runtimes.readiness import Readiness, Wait
from agent.runtimes.releases import Release, Releases
from agent.runtimes.worker import Worker

log = structlog.get_logger(__name__)

TAIL_BYTES = 16 * 1024
TAIL_LINES = 50


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a runtime may take: to come up, to go down, and for an action in all."""

    start: float = 90.0
    stop: float = 60.0
    action: float = 300.0


@dataclass(frozen=True, slots=True)
class _Sample:
    incarnation: Incarnation | None
    at: float
    cpu_seconds: float


class Runtime:
    """One runtime of this node.

    Args:
        name: Which.
        driver: How it is controlled; opened and closed here.
        releases: Its configs.
        plan: How to see that it is ready; None means that running is ready.
        timeouts: From the settings.
        redactor: Learns the secret values of its configs; cleans its log lines.
    """

    def __init__(
        self,
        name: RuntimeName,
        *,
        driver: Driver,
        releases: Releases,
        plan: ProbePlan | None,
        timeouts: Timeouts,
        redactor: Redactor,
    ) -> None:
        self.name = name
        self.driver = driver
        self.releases = releases
        self.timeouts = timeouts
        self.redactor = redactor
        self._plan = plan
        self._probe = Probe(plan) if plan else None
        self._worker = Worker(f"releases-{name}")
        self._sample: _Sample | None = None
        self.knows_secrets = False
        """Whether all that is secret in its configs is known: until then its log is not shown."""

    async def open(self) -> None:
        """Learn what is secret, then open the driver; never starts or stops anything.

        A folder that cannot be read is no reason not to: whoever needs what is in it is told, and looks again.
        """
        with suppress(Rejection):
            await self.learn_secrets()
        await self.driver.open()

    async def close(self) -> None:
        """Let go of it; the runtime is left as it is."""
        await self.driver.close()
        if self._probe is not None:
            await self._probe.close()
        await self._worker.close()

    async def learn_secrets(self) -> None:
        """Learn what is secret in its configs, unless that is known.

        Raises:
            Rejection: They cannot be read.
        """
        if not self.knows_secrets:
            self.redactor.add(await self._worker.run(self.releases.secret_values))
            self.knows_secrets = True

    async def look_at_configs(self) -> None:
        """See that its configs can be read, and learn what is secret in them; a damaged one can be.

        Raises:
            Rejection: They cannot be read.
        """
        await self.learn_secrets()
        await self._worker.run(self.releases.look)

    # --- readiness -----------------------------------------------------------------------------------------------

    async def probe_once(self) -> ProbeResult:
        """Ask once whether it is ready; without a probe, running is ready."""
        if self._probe is not None:
            return await self._probe.check()
        seen = await self.driver.observe()
        why = seen.hindrance if seen.running else f"it is {seen.state}"
        return ProbeResult(ready=why is None, why=why)

    async def wait_until_ready(self) -> Readiness:
        """Wait until it is ready and stable.

        Raises:
            Rejection: `start_failed`, `not_ready`, `unstable` or `timeout`, with `after` and `probe` in its evidence;
                or `driver_unavailable`.
        """
        return await Wait(self.name, self.driver, self._probe, self._plan, self.timeouts.start).run()

    # --- status and log ------------------------------------------------------------------------------------------

    async def status(self, activity_id: int | None) -> RuntimeStatus:
        """Say how it is, for the heartbeat and for people; never raises, what cannot be read is null.

        Args:
            activity_id: The activity that acts on it now.
        """
        try:
            seen = await self.driver.observe()
            probe = await self.probe_once() if seen.running else None
            release, damage = await self._current_or_why_not()
        except Rejection as error:
            return self._unknown(activity_id, error.message)
        except Exception:  # a heartbeat goes out whatever is wrong with one runtime
            log.exception("runtime.status_failed", runtime=self.name)
            return self._unknown(activity_id, "cannot tell how it is: a fault of the agent, see its log")
        return RuntimeStatus(
            runtime=self.name,
            driver=self.driver.kind,
            state=seen.state,
            ready=probe.ready if probe else False,
            incarnation=seen.incarnation,
            pid=seen.pid,
            started_at=seen.started_at,
            restarts=seen.restarts,
            exit_code=seen.exit_code,
            version=release.runtime_version if release else None,
            config_id=release.config_id if release else None,
            config_version=release.version if release else None,
            drifted=self._drifted(seen, release) if damage is None else None,
            cpu_percent=self._cpu_percent(seen),
            memory_bytes=seen.memory_bytes,
            activity_id=activity_id,
            message=self._message(probe.why if probe else None, damage),
            warnings=self.driver.warnings(),
        )

    async def seen_or_why_not(self) -> Observation | str:
        """Look at it for a report; never raises, for a verdict is told whatever else is wrong."""
        try:
            return await self.driver.observe()
        except Rejection as error:
            return error.message
        except Exception:  # see above
            log.exception("runtime.look_failed", runtime=self.name)
            return "cannot look at it: a fault of the agent, see its log"

    async def log_tail(self, incarnation: Incarnation | None) -> dict[str, Any]:
        """Return the last log lines of one run as evidence, redacted and bounded, or why there are none."""
        try:
            await self.learn_secrets()
            lines = await self.driver.log_tail(incarnation, max_bytes=TAIL_BYTES)
        except Rejection as error:
            return {"log_tail_missing": error.message}
        except Exception:  # as above
            log.exception("runtime.log_failed", runtime=self.name)
            return {"log_tail_missing": "cannot read it: a fault of the agent, see its log"}
        return {"log_tail": _bounded([self.redactor.text(line) for line in lines[-TAIL_LINES:]])}

    def _unknown(self, activity_id: int | None, message: str) -> RuntimeStatus:
        return RuntimeStatus(
            runtime=self.name, driver=self.driver.kind, state=None, activity_id=activity_id, message=message
        )

    async def _current_or_why_not(self) -> tuple[Release | None, str | None]:
        try:
            return await self.current(), None
        except Rejection as error:
            return None, error.message

    def _message(self, *sentences: str | None) -> str | None:
        said = [self.redactor.text(sentence) for sentence in sentences if sentence]
        return "; ".join(said) or None

    def _drifted(self, seen: Observation, release: Release | None) -> bool | None:
        if not seen.running:
            return None
        if seen.config_sha256 is None and self.driver.kind is DriverKind.SYSTEMD:
            return None  # the others know for certain that it was started with none
        return seen.config_sha256 != (release.sha256 if release else None)

    def _cpu_percent(self, seen: Observation) -> float | None:
        """Return its use of CPU between the last status and this one; 100 is one whole core."""
        before, self._sample = self._sample, None
        if seen.cpu_seconds is None:
            return None
        self._sample = now = _Sample(seen.incarnation, time.monotonic(), seen.cpu_seconds)
        if before is None or before.incarnation != now.incarnation or now.at <= before.at:
            return None
        return round(100 * max(0.0, now.cpu_seconds - before.cpu_seconds) / (now.at - before.at), 1)

    # --- releases, off the event loop ----------------------------------------------------------------------------

    async def check_config(self, config: Config) -> None:
        """Refuse a config that breaks a rule, or that the driver cannot apply, before anything is touched."""
        await self._worker.run(self.releases.check, config)
        self.driver.check_config(config)

    async def stage(self, config: Config) -> Release:
        """Learn what is secret in a checked config, then write it to the disk; see `Releases.stage`."""
        files = {file.path: file.content for file in config.files}
        self.redactor.add(await self._worker.run(config_secrets, config.values, config.secret_keys, files))
        return await self._worker.run(self.releases.stage, config)

    async def began_before(self, seen: Observation, release: Release) -> bool:
        """Tell whether a run began before a release was last written: what it was given then may have been damaged."""
        written_at = await self._worker.run(self.releases.written_at, release.name)
        return seen.started_at is not None and seen.started_at < written_at

    async def switch(self, release_name: str | None) -> None:
        """Point `current` at a release, or at none; see `Releases.switch`."""
        await self._worker.run(self.releases.switch, release_name)

    async def current(self) -> Release | None:
        """Return the release in use; see `Releases.current`."""
        return await self._worker.run(self.releases.current)

    async def current_name(self) -> str | None:
        """Return what the release in use is called, also when it is damaged; see `Releases.current_name`."""
        return await self._worker.run(self.releases.current_name)

    async def current_or_none(self) -> Release | None:
        """Return the release in use; None also when it is damaged: then another config mends it."""
        try:
            return await self.current()
        except Rejection as error:
            log.warning("release.unreadable", runtime=self.name, cause=error.message)
            return None

    async def get_release(self, name: str) -> Release | None:
        """Return a release by its name; see `Releases.get`."""
        return await self._worker.run(self.releases.get, name)

    async def tidy(self, committed: str | None) -> None:
        """Have the driver let go of what an action left behind; see `Driver.tidy`.

        Args:
            committed: Name of the committed release; None when there is none.
        """
        if committed is None:
            await self.driver.tidy(None)
        elif release := await self.get_release(committed):
            await self.driver.tidy(release.sha256)

    async def prune(self, keep: Collection[str]) -> None:
        """Remove old releases; see `Releases.prune`."""
        await self._worker.run(self.releases.prune, keep)


def _bounded(lines: list[str]) -> list[str]:
    """Keep the last lines that fit: redaction may have made them longer."""
    kept: list[str] = []
    room = TAIL_BYTES
    for line in reversed(lines):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return kept[::-1]
