"""A lane over a real journal, a real runtime and real releases; only the program is simulated."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.activities import lanes as lanes_module
from agent.activities import resume
from agent.activities.lanes import Lanes
from agent.conditions import Conditions
from agent.journal import Journal, Row, RowState
from agent.progress import Progress
from agent.protocol import RuntimeName, config_sha256
from agent.redaction import Redactor
from agent.runtimes.probe import ProbeResult
from agent.runtimes.releases import Releases
from agent.runtimes.runtime import Runtime, Timeouts
from tests.fakes.driver import SimulatedDriver, World

BOOT = "boot"


async def until(condition: Callable[[], Awaitable[bool]], *, what: str, seconds: float = 10.0) -> None:
    """Wait for something that is to come true."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - what it waits for is outside of this loop
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"did not come true in {seconds} s: {what}")


def boot_now() -> str:
    """Return the boot that recovery believes to be in; `boot_id` sets it."""
    boot: str = vars(resume)["read_boot_id"]()
    return boot


async def open_journal(folder: Path, conditions: Conditions) -> Journal:
    return await Journal.open(folder, journal_id=None, conditions=conditions, boot_id=boot_now)


class WorldProbe:
    def __init__(self, world: World) -> None:
        self._world = world

    async def check(self) -> ProbeResult:
        ready = self._world.is_ready
        return ProbeResult(ready=ready, why=None if ready else "it says no")

    async def close(self) -> None: ...


@dataclass
class Bench:
    """One node: what the agent has, and what a Supervisor would list."""

    folder: Path
    journal: Journal
    conditions: Conditions = field(default_factory=Conditions)
    world: World = field(default_factory=World)
    permitted: bool = True
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    action_timeout: float = 20.0
    patience: float = 10.0
    """Seconds that a test waits for what has to come."""
    on_recovered: Callable[[Runtime], Awaitable[bool | None]] = field(default=lambda _: asyncio.sleep(0))
    progress: Progress = field(default_factory=Progress)
    lanes: Lanes | None = None
    task: asyncio.Task[None] | None = None
    listed: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.releases = Releases(self.folder / "runtimes" / "iggy", RuntimeName.IGGY)
        self.driver = SimulatedDriver(self.world, config=self._current_sha256)

    def _current_sha256(self) -> str | None:
        link = self.folder / "runtimes/iggy/current"
        return None if not link.is_symlink() else self._sha256_by_name[Path(link.readlink()).name]

    @property
    def _sha256_by_name(self) -> dict[str, str]:
        return {
            f"{item['config']['id']}-{item['config']['version']}": item["config"]["sha256"]
            for item in self.listed
            if item.get("config")
        }

    async def current(self) -> str | None:
        """Return the name of the release that `current` points to."""
        release = await asyncio.to_thread(self.releases.current)
        return None if release is None else release.name

    def make_runtime(self) -> Runtime:
        runtime = Runtime(
            RuntimeName.IGGY,
            driver=self.driver,
            releases=self.releases,
            plan=None,
            timeouts=Timeouts(start=0.3, stop=5, action=self.action_timeout),
            redactor=Redactor(),
        )
        runtime._probe = WorldProbe(self.world)  # type: ignore[assignment]
        return runtime

    async def run(self) -> None:
        """Start the lanes, as an agent that has just started does."""
        runtime = self.make_runtime()
        await runtime.open()
        self.runtime = runtime

        self.lanes = Lanes(
            {RuntimeName.IGGY: runtime},
            self.journal,
            now=lambda: self.now,
            permitted=lambda: self.permitted,
            conditions=self.conditions,
            on_recovered=self.on_recovered,
            progress=self.progress,
        )
        self.task = asyncio.create_task(self.lanes.run())

    async def kill(self) -> None:
        """End the lanes at once, as a kill would, and forget all that was in memory."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None
            await self.runtime.close()
        await self.journal.close()

    async def start_again(self, *, listed: bool = True) -> None:
        """Start an agent on what the disk holds; the Supervisor lists again what it has no report for."""
        self.journal = await open_journal(self.folder, self.conditions)
        await self.run()
        if listed:
            await self.list_again()

    async def list_again(self) -> None:
        token = await self.journal.begin_sweep()
        await self.journal.take(self.listed, sweep=token)
        await self.journal.end_sweep(token, last=len(self.listed))

    async def dispatch(self, action: str, *, runtime: str = "iggy", **more: Any) -> int:
        """List one more activity to the agent."""
        number = len(self.listed) + 1
        item = {
            "id": 1000 + number,
            "sequence": number,
            "runtime": runtime,
            "action": action,
            "author_id": 1,
            "created_at": "2026-11-24T10:00:00Z",
            **more,
        }
        self.listed.append(item)
        await self.journal.take([item], sweep=None)
        return 1000 + number

    async def row(self, activity_id: int) -> Row:
        row = await self.journal.get(activity_id)
        assert row is not None
        return row

    async def finished(self, activity_id: int) -> Row:
        async def is_finished() -> bool:
            if self.task is not None and self.task.done():
                self.task.result()  # says why the lanes ended
            return (await self.row(activity_id)).state is RowState.FINISHED

        await until(is_finished, what=f"activity {activity_id} is finished", seconds=self.patience)
        return await self.row(activity_id)

    def later(self, seconds: float) -> str:
        return (self.now + timedelta(seconds=seconds)).isoformat()


def make_config(
    config_id: int, *, version: int = 1, kind: str = "iggy", files: Mapping[str, str] | None = None, **values: str
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "kind": kind,
        "runtime_version": None,
        "values": values or {"IGGY_SYSTEM_PATH": f"/data/{config_id}"},
        "secret_keys": [],
        "files": [{"path": path, "content": text} for path, text in (files or {}).items()],
    }
    return {"id": config_id, "name": "c", "version": version, **content, "sha256": config_sha256(**content)}


@pytest.fixture
def boot_id(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the boot that recovery believes to be in."""

    def set_boot(boot: str) -> None:
        monkeypatch.setattr(resume, "read_boot_id", lambda: boot)

    set_boot(BOOT)
    return set_boot


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no Supervisor answers, do not wait for one for long."""
    monkeypatch.setattr(lanes_module, "COMPARE_PATIENCE", 0.02)


@pytest.fixture
async def bench(tmp_path: Path, boot_id: Callable[[str], None]) -> AsyncIterator[Bench]:
    await Journal.create(tmp_path)
    conditions = Conditions()
    journal = await open_journal(tmp_path, conditions)
    bench = Bench(tmp_path, journal, conditions)
    yield bench
    await bench.kill()
