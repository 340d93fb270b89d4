"""Runtimes that live and end with the agent."""

import asyncio

import pytest

from agent.activities import lanes as lanes_module
from agent.activities.owned import OwnedRuntimes
from agent.errors import JournalError, Rejection
from agent.protocol import ReasonCode, ReportStatus, RuntimeName
from agent.runtimes.driver import Call, Outcome, Recorder, Step
from agent.runtimes.process import ProcessDriver
from agent.runtimes.runtime import Runtime
from tests.activities.conftest import Bench, until


def owned_by(bench: Bench, runtime: Runtime) -> OwnedRuntimes:
    return OwnedRuntimes({RuntimeName.IGGY: runtime}, bench.journal, bench.conditions)


async def test_it_is_started_with_the_agent(bench: Bench) -> None:
    runtime = bench.make_runtime()
    await owned_by(bench, runtime).start(runtime)
    assert (bench.world.began, bench.world.running) == (1, 1)


async def test_it_stays_down_when_the_last_action_was_a_stop(bench: Bench) -> None:
    bench.world.begin()
    await bench.run()
    await bench.finished(await bench.dispatch("stop"))
    await owned_by(bench, bench.runtime).start(bench.runtime)
    assert bench.world.running is None
    await bench.finished(await bench.dispatch("start"))
    bench.world.end()
    await owned_by(bench, bench.runtime).start(bench.runtime)
    assert bench.world.running is not None


async def test_one_that_is_not_owned_is_left_alone(bench: Bench) -> None:
    runtime = bench.make_runtime()
    owned = OwnedRuntimes({}, bench.journal, bench.conditions)
    await owned.start(runtime)
    bench.world.begin()
    await owned.stop_all()
    assert (bench.world.began, bench.world.ended) == (1, 0)


async def test_one_that_cannot_be_started_is_said_until_it_runs(bench: Bench) -> None:
    runtime = bench.make_runtime()
    owned = owned_by(bench, runtime)
    bench.world.unavailable = True
    assert await owned.start(runtime)
    assert "iggy_not_started" in bench.conditions
    owned.seen_running(RuntimeName.IGGY)
    assert "iggy_not_started" not in bench.conditions


@pytest.mark.parametrize("action", ["start", "restart"])
async def test_what_an_activity_started_meanwhile_is_not_started_once_more(
    bench: Bench, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have ended at once, which is reported: that is no reason to start it behind the report."""
    monkeypatch.setattr(lanes_module, "TIDY_AGAIN", 0.02)
    owned, tries = owned_by(bench, bench.make_runtime()), 0

    async def start(started: Runtime) -> bool:
        nonlocal tries
        tries += 1
        return await owned.start(started)

    bench.world.unavailable = bench.world.starts_fail = True
    bench.on_recovered = start
    await bench.run()
    await until(lambda: asyncio.sleep(0, tries > 1), what="it was tried again")
    number = await bench.dispatch(action)
    bench.world.unavailable = False
    await bench.finished(number)
    began, tried = bench.world.began, tries
    await asyncio.sleep(0.2)
    assert (bench.world.began, tries) == (began, tried)


async def test_one_whose_folder_cannot_be_used_for_a_while_is_started_when_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "TIDY_AGAIN", 0.02)
    runtime = bench.make_runtime()
    owned = owned_by(bench, runtime)
    tries = 0

    async def start(started: Runtime) -> bool:
        nonlocal tries
        tries += 1
        return await owned.start(started)

    async def tried(times: int) -> bool:
        return tries >= times

    bench.world.unavailable = True
    bench.on_recovered = start
    await bench.run()
    await until(lambda: tried(3), what="it was tried again")
    bench.world.unavailable = False
    await until(lambda: asyncio.sleep(0, bench.world.running is not None), what="it was started")
    assert bench.world.began == 1


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (ReasonCode.NOT_PERMITTED, True),
        (ReasonCode.NO_SPACE, True),
        (ReasonCode.START_FAILED, True),
        (ReasonCode.BUSY, True),
        (ReasonCode.NOT_FOUND, False),
        (ReasonCode.CONFIG_MISSING, False),
    ],
)
async def test_it_is_tried_again_unless_somebody_has_to_mend_something_first(
    bench: Bench, code: ReasonCode, again: bool
) -> None:
    async def refuse(_record: Recorder) -> Outcome:
        raise Rejection(code, "cannot start iggy: it is refused")

    bench.driver.start = refuse  # type: ignore[method-assign,assignment]
    runtime = bench.make_runtime()
    assert await owned_by(bench, runtime).start(runtime) is again
    assert "iggy_not_started" in bench.conditions


async def test_one_whose_config_cannot_be_read_for_a_while_is_started_when_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of its configs only: its record, and with it whether it runs, can be read."""
    monkeypatch.setattr(lanes_module, "TIDY_AGAIN", 0.02)
    folder = bench.folder / "runtimes" / "iggy"
    await asyncio.to_thread(folder.mkdir, parents=True)
    await asyncio.to_thread((folder / "current").write_text, "no link")
    driver = ProcessDriver(
        runtime=RuntimeName.IGGY,
        command=("sleep", "60"),
        folder=folder,
        releases=bench.releases,
        environment={},
        working_directory=None,
        stop_timeout=10,
    )
    bench.driver = driver  # type: ignore[assignment]
    owned = owned_by(bench, bench.make_runtime())
    bench.on_recovered = owned.start
    await bench.run()
    await until(lambda: asyncio.sleep(0, "iggy_not_started" in bench.conditions), what="it was refused")
    await asyncio.to_thread((folder / "current").unlink)
    try:
        await until(lambda: _runs(driver), what="it was started")
    finally:
        await driver.stop(_not_recorded)


async def _runs(driver: ProcessDriver) -> bool:
    return (await driver.observe()).running


async def _not_recorded(_step: Step) -> None: ...


async def test_it_is_stopped_with_the_agent(bench: Bench) -> None:
    bench.world.begin()
    await owned_by(bench, bench.make_runtime()).stop_all()
    assert (bench.world.running, bench.world.ended) == (None, 1)


async def test_one_that_cannot_be_stopped_ends_nothing_else(bench: Bench) -> None:
    bench.world.begin()
    bench.world.unavailable = True
    await owned_by(bench, bench.make_runtime()).stop_all()
    assert bench.world.ended == 0


async def test_a_fault_in_stopping_one_keeps_no_other_from_being_stopped(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.world.begin()
    faulty, other = bench.make_runtime(), bench.make_runtime()
    faulty.driver = Faulty()  # type: ignore[assignment]
    owned = OwnedRuntimes({RuntimeName.CONNECTORS: faulty, RuntimeName.IGGY: other}, bench.journal, bench.conditions)
    await owned.stop_all()
    assert bench.world.running is None
    assert "owned.not_stopped" in capsys.readouterr().out


class Faulty:
    """A driver with a fault of the agent's own."""

    async def stop(self, _record: Recorder) -> Outcome:
        raise ZeroDivisionError


async def test_a_restart_that_the_end_of_the_agent_cut_short_is_completed_by_the_next_one(bench: Bench) -> None:
    """Its run began, and the agent itself ended it: that is no failed start."""
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    activity_id = await bench.dispatch("restart")

    async def waits() -> bool:
        return bench.world.began == 2

    await until(waits, what="the restart waits for readiness")
    assert bench.task is not None
    bench.task.cancel()
    await asyncio.wait({bench.task})
    await owned_by(bench, bench.runtime).stop_all()
    row = await bench.row(activity_id)
    assert [call.call for call in row.calls] == [Call.STOP, Call.START, Call.STOP]
    bench.world.ready = True
    await bench.kill()
    await bench.start_again(listed=False)
    row = await bench.finished(activity_id)
    assert (row.status, row.recovered) == (ReportStatus.COMPLETED, True)
    assert row.evidence["recovery"]["decision"] == "start_only"


async def test_a_journal_that_cannot_be_written_does_not_keep_it_up(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await bench.run()
    await bench.dispatch("restart")

    async def waits() -> bool:
        return bench.world.began == 2

    await until(waits, what="the restart waits for readiness")

    assert bench.task is not None
    bench.task.cancel()
    await asyncio.wait({bench.task})

    async def fail(*_args: object, **_options: object) -> None:
        msg = "cannot use the journal: disk full"
        raise JournalError(msg)

    bench.journal.record = fail  # type: ignore[method-assign]
    await owned_by(bench, bench.runtime).stop_all()
    assert bench.world.running is None
    bench.journal.unfinished = fail  # type: ignore[method-assign,assignment]
    bench.world.begin()
    await owned_by(bench, bench.runtime).stop_all()
    assert bench.world.running is None


async def test_a_journal_that_cannot_be_read_is_said_and_asked_again(bench: Bench) -> None:
    async def fail(_runtime: str) -> None:
        msg = "cannot use the journal: disk full"
        raise JournalError(msg)

    bench.journal.last_verb = fail  # type: ignore[method-assign,assignment]
    runtime = bench.make_runtime()
    assert await owned_by(bench, runtime).start(runtime), "it is tried again"
    assert "iggy_not_started" in bench.conditions
    assert bench.world.began == 0
