import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import DriverKind, ReasonCode, RuntimeState
from agent.runtimes import process, spawn
from agent.runtimes.driver import Call, Incarnation, Observation, Step, read_boot_id
from tests.runtimes.conftest import BORN, MakeDriver, Steps, births, eventually, python, said, seen

STUBBORN = ("sh", "-c", f"trap '' TERM; {BORN}; echo ready; while :; do sleep 0.05; done")


async def test_a_runtime_that_never_ran_is_stopped_and_known_to_have_no_incarnation(make_driver: MakeDriver) -> None:
    driver = await make_driver()
    assert await driver.observe() == Observation(RuntimeState.STOPPED, incarnation=None, incarnation_known=True)
    assert driver.kind is DriverKind.PROCESS
    assert driver.warnings() == []


async def test_start_brings_it_up_once_and_records_the_decisive_call_before(
    make_driver: MakeDriver, folder: Path
) -> None:
    driver = await make_driver()
    at_record: list[tuple[Step, int]] = []

    async def record(step: Step) -> None:
        at_record.append((step, await asyncio.to_thread(births, folder)))

    outcome = await driver.start(record)
    now = await driver.observe()
    await eventually(lambda: births(folder) == 1)
    (step, before_it_ran) = at_record[0]
    assert (step.call, step.decisive, before_it_ran) == (Call.START, True, 0)
    assert step.boot_id == await asyncio.to_thread(read_boot_id)
    assert step.before == Observation(RuntimeState.STOPPED)
    assert outcome.calls == (Call.START,)
    assert now.running
    assert now.pid is not None
    assert now.incarnation is not None
    assert now.started_at is not None
    assert now.memory_bytes is not None
    assert now.cpu_seconds is not None
    assert now.config_sha256 is None


async def test_start_of_a_running_runtime_makes_no_call(make_driver: MakeDriver, steps: Steps, folder: Path) -> None:
    driver = await make_driver()
    await driver.start(steps)
    first = await driver.observe()
    outcome = await driver.start(steps)
    assert outcome.calls == ()
    assert outcome.before.incarnation == first.incarnation
    assert steps.words() == ["start!"]
    await eventually(lambda: births(folder) == 1)


async def test_stop_reports_the_exit_code_of_the_run_that_it_ended(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done"))
    await driver.start(steps)
    running = await driver.observe()
    await said(driver, running, "up")
    outcome = await driver.stop(steps)
    assert (outcome.calls, outcome.exit_code, outcome.killed) == ((Call.STOP,), 7, False)
    assert steps[-1].decisive
    assert steps[-1].before is not None
    assert steps[-1].before.incarnation == running.incarnation
    now = await driver.observe()
    assert (now.state, now.exit_code, now.incarnation) == (RuntimeState.STOPPED, 7, running.incarnation)
    assert (await driver.stop(steps)).calls == ()


async def test_stop_kills_what_ignores_sigterm_and_says_so(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(STUBBORN, stop_timeout=0.3)
    await driver.start(steps)
    await said(driver, await driver.observe(), "ready")
    outcome = await driver.stop(steps)
    assert (outcome.killed, outcome.exit_code) == (True, 137)
    assert (await driver.observe()).state is RuntimeState.STOPPED


async def test_stop_says_when_even_sigkill_does_not_end_it(
    make_driver: MakeDriver, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await make_driver(STUBBORN, stop_timeout=0.05)
    await driver.start(steps)
    await said(driver, await driver.observe(), "ready")
    with monkeypatch.context() as patch:
        patch.setattr(process, "KILL_TIMEOUT", 0.05)
        patch.setattr(signal, "SIGKILL", signal.SIGTERM)  # nothing here hangs in the kernel
        with pytest.raises(Rejection, match=r"cannot stop iggy: process \d+ still runs") as refused:
            await driver.stop(steps)
    assert refused.value.code is ReasonCode.STOP_FAILED
    assert (await driver.observe()).running


async def test_restart_is_a_stop_that_is_not_decisive_and_a_start_that_is(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    driver = await make_driver()
    await driver.start(steps)
    first = await driver.observe()
    await eventually(lambda: births(folder) == 1)
    steps.clear()
    outcome = await driver.restart(steps)
    second = await driver.observe()
    assert steps.words() == ["stop", "start!"]
    assert steps[1].before is not None
    assert (steps[1].before.running, steps[1].before.incarnation) == (False, first.incarnation)
    assert outcome.calls == (Call.STOP, Call.START)
    assert outcome.before.incarnation == first.incarnation
    assert outcome.exit_code is not None
    assert second.running
    assert second.incarnation != first.incarnation
    await eventually(lambda: births(folder) == 2)


async def test_restart_of_a_stopped_runtime_starts_it(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver()
    assert (await driver.restart(steps)).calls == (Call.START,)
    assert steps.words() == ["start!"]
    assert (await driver.observe()).running


@pytest.mark.parametrize(("code", "state"), [(0, RuntimeState.STOPPED), (3, RuntimeState.FAILED)])
async def test_an_end_by_itself_is_noticed_at_once_with_its_exit_code(
    make_driver: MakeDriver, steps: Steps, folder: Path, code: int, state: RuntimeState
) -> None:
    driver = await make_driver(("sh", "-c", f"while [ ! -e go ]; do sleep 0.02; done; exit {code}"))
    await driver.start(steps)
    running = await driver.observe()
    change = asyncio.create_task(driver.wait_for_change())
    await asyncio.sleep(0)
    assert not change.done()
    (folder / "go").touch()
    began = time.monotonic()
    await asyncio.wait_for(change, 10)
    assert time.monotonic() - began < 0.5
    now = await driver.observe()
    assert (now.state, now.exit_code, now.incarnation) == (state, code, running.incarnation)


async def test_a_signal_that_ended_it_is_part_of_the_exit_code(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(("sh", "-c", "kill -SEGV $$"))
    await driver.start(steps)
    now = await seen(driver, lambda now: not now.running)
    assert (now.state, now.exit_code) == (RuntimeState.FAILED, 128 + 11)


async def test_a_missing_command_is_refused_before_anything_is_recorded(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(("no-such-iggy-server",))
    assert (await driver.observe()).state is RuntimeState.MISSING
    with pytest.raises(Rejection, match="there is no command 'no-such-iggy-server'") as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.NOT_FOUND
    assert steps == []


async def test_a_running_runtime_whose_command_vanished_is_not_stopped_by_a_restart(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    command = folder / "server"
    command.write_text("#!/bin/sh\nexec sleep 60\n")
    command.chmod(0o755)
    driver = await make_driver(("./server",))
    await driver.start(steps)
    running = await driver.observe()
    command.unlink()
    steps.clear()
    with pytest.raises(Rejection, match="there is no command"):
        await driver.restart(steps)
    assert steps == []
    assert (await driver.observe()).incarnation == running.incarnation


@pytest.mark.parametrize(
    ("content", "mode", "code", "text"),
    [
        ("#!/no/such/interpreter\n", 0o755, ReasonCode.NOT_FOUND, "there is no command"),
        ("#!/bin/sh\n", 0o644, ReasonCode.START_FAILED, "cannot execute ./server: Permission denied"),
        ("not a program\n", 0o755, ReasonCode.START_FAILED, "cannot execute ./server: Exec format error"),
    ],
)
async def test_a_failing_exec_says_why(
    make_driver: MakeDriver, steps: Steps, folder: Path, content: str, mode: int, code: ReasonCode, text: str
) -> None:
    (folder / "server").write_text(content)
    (folder / "server").chmod(mode)
    driver = await make_driver(("./server",))
    with pytest.raises(Rejection, match=text) as refused:
        await driver.start(steps)
    assert refused.value.code is code
    assert steps.words() == ["start!"]
    assert not (await driver.observe()).running


async def test_a_missing_working_directory_is_start_failed(
    make_driver: MakeDriver, steps: Steps, tmp_path: Path
) -> None:
    driver = await make_driver(("sleep", "60"), working_directory=tmp_path / "gone")
    with pytest.raises(Rejection, match=r"cannot enter its working directory .*gone: No such file") as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.START_FAILED
    assert (await driver.observe()).incarnation is None


async def test_a_full_disk_is_no_space(make_driver: MakeDriver, steps: Steps, folder: Path) -> None:
    driver = await make_driver()
    (folder / "log" / "iggy.log").symlink_to("/dev/full")
    with pytest.raises(Rejection, match="the disk is full") as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.NO_SPACE


async def test_a_launcher_that_hangs_is_given_up_and_ended(
    make_driver: MakeDriver, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await make_driver()
    launch = spawn.launch
    monkeypatch.setattr(spawn, "launch", lambda plan, lock: launch(plan, lock, timeout=0))
    with pytest.raises(Rejection, match="it was not executed within 0 s") as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.START_FAILED
    assert (await driver.observe()).state is RuntimeState.STOPPED


async def test_a_launcher_that_is_killed_before_exec_is_start_failed_and_leaves_the_record_as_it_was(
    make_driver: MakeDriver, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await make_driver()
    killed = tmp_path / "launch.py"
    killed.write_text("import os; os.kill(os.getpid(), 9)")
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "PROGRAM", killed)
        with pytest.raises(Rejection, match="its launcher was killed") as refused:
            await driver.start(steps)
    assert refused.value.code is ReasonCode.START_FAILED
    assert (await driver.observe()).incarnation is None
    await driver.start(steps)
    last = await driver.observe()
    await driver.stop(steps)
    monkeypatch.setattr(spawn, "PROGRAM", killed)
    with pytest.raises(Rejection, match="its launcher was killed"):
        await driver.start(steps)
    assert (await driver.observe()).incarnation == last.incarnation


async def test_what_gave_up_its_lock_and_came_up_meanwhile_is_not_started_twice(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await make_driver(python("import os, time; os.closerange(3, 1000); open('closed', 'w'); time.sleep(60)"))
    other = await make_driver()
    await one.start(steps)
    await eventually((folder / "closed").exists)

    async def late(_grace: float | None) -> Observation:
        return Observation(RuntimeState.STOPPED)

    monkeypatch.setattr(other, "_rest", late)  # it looked just before
    assert (await other.start(steps)).calls == ()
    assert steps.words() == ["start!"]
    assert (await one.stop(steps)).calls == (Call.STOP,)


async def test_a_launcher_that_cannot_be_started_is_start_failed(
    make_driver: MakeDriver, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await make_driver()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(Rejection, match="cannot execute /no/such/python"):
        await driver.start(steps)
    assert (await driver.observe()).state is RuntimeState.STOPPED


async def test_nothing_is_started_when_its_step_cannot_be_recorded(make_driver: MakeDriver, folder: Path) -> None:
    driver = await make_driver()

    async def refuse(_step: Step) -> None:
        msg = "the journal cannot be written"
        raise OSError(msg)

    with pytest.raises(OSError, match="the journal"):
        await driver.start(refuse)
    assert (await driver.observe()).state is RuntimeState.STOPPED
    assert births(folder) == 0


async def test_a_launch_whose_caller_is_cancelled_still_comes_up_and_is_watched(
    make_driver: MakeDriver, folder: Path
) -> None:
    driver = await make_driver(("sh", "-c", f"{BORN}; while [ ! -e go ]; do sleep 0.02; done; exit 4"))
    recorded = asyncio.Event()

    async def record(_step: Step) -> None:
        recorded.set()

    start = asyncio.create_task(driver.start(record))
    await recorded.wait()
    await asyncio.sleep(0)  # now the launch is queued, and the verb waits for it
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert (await driver.settle()).running
    await eventually(lambda: births(folder) == 1)
    change = asyncio.create_task(driver.wait_for_change())
    (folder / "go").touch()
    await asyncio.wait_for(change, 10)
    assert (await driver.observe()).exit_code == 4


async def test_two_drivers_that_start_at_once_bring_up_one(make_driver: MakeDriver, folder: Path) -> None:
    one, other = await make_driver(), await make_driver()
    first, second = Steps(), Steps()
    outcomes = await asyncio.gather(one.start(first), other.start(second))
    assert sorted(outcome.calls for outcome in outcomes) == [(), (Call.START,)]
    assert len(first) + len(second) == 1
    assert (await one.observe()).incarnation == (await other.observe()).incarnation
    await eventually(lambda: births(folder) == 1)


async def test_it_goes_on_when_its_driver_is_closed(make_driver: MakeDriver, steps: Steps) -> None:
    first = await make_driver()
    await first.start(steps)
    running = await first.observe()
    await first.close()
    second = await make_driver()
    assert (await second.observe()).incarnation == running.incarnation
    assert (await second.stop(steps)).exit_code is not None


async def test_a_runtime_that_closes_the_lock_is_still_running_and_not_started_twice(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    daemon = "import os, time; os.closerange(3, 1000); open('closed', 'w'); time.sleep(60)"
    driver = await make_driver(python(daemon))
    await driver.start(steps)
    await eventually((folder / "closed").exists)
    now = await driver.observe()
    assert now.running
    assert driver.warnings() == ["iggy closed its inherited lock: only its record keeps it from being started twice"]
    assert (await driver.start(steps)).calls == ()
    other = await make_driver(python(daemon))
    assert (await other.start(steps)).calls == ()
    assert steps.words() == ["start!"]
    assert (await other.stop(steps)).calls == (Call.STOP,)


async def test_a_disk_that_does_not_let_the_last_run_be_read_is_no_fault_in_reading_its_log(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    driver = await make_driver()
    await driver.start(steps)
    seen = await driver.observe()
    record = folder / "process.json"
    aside = await asyncio.to_thread(record.rename, folder / "aside")
    await asyncio.to_thread(record.mkdir)
    with pytest.raises(Rejection, match=f"cannot read the log of iggy: Is a directory: {record}") as refused:
        await driver.log_tail(seen.incarnation, max_bytes=1000)
    assert refused.value.code is ReasonCode.DRIVER_UNAVAILABLE
    await asyncio.to_thread(record.rmdir)
    await asyncio.to_thread(aside.rename, record)


async def test_the_log_tail_is_that_of_one_run_without_colours(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(("sh", "-c", r"printf '\033[32mfirst\033[0m line\nsecond'; sleep 60"))
    assert await driver.log_tail(None, max_bytes=1000) == []
    await driver.start(steps)
    first = await driver.observe()
    await said(driver, first, "second")
    assert await driver.log_tail(first.incarnation, max_bytes=1000) == ["first line", "second"]
    await driver.restart(steps)
    second = await driver.observe()
    await said(driver, second, "second")
    assert await driver.log_tail(first.incarnation, max_bytes=1000) == ["first line", "second"]
    with pytest.raises(Rejection, match="no line of that run is left"):
        await driver.log_tail(Incarnation("another"), max_bytes=1000)


async def test_its_log_is_kept_bounded_while_it_runs(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ROTATE_EVERY", 0.02)
    driver = await make_driver(
        ("sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.001; done"), log_max_bytes=500, log_keep=2
    )
    await driver.start(steps)
    running = await driver.observe()
    log = folder / "log" / "iggy.log"
    await eventually(log.with_name("iggy.log.2").exists)
    tail = await driver.log_tail(running.incarnation, max_bytes=300)
    numbers = [int(line.removeprefix("line ")) for line in tail[1:]]  # the first may be cut
    assert numbers == sorted(numbers)
    assert not log.with_name("iggy.log.3").exists()
    assert log.with_name("iggy.log.2").stat().st_mode & 0o777 == 0o640


async def test_a_log_that_cannot_be_rotated_does_not_end_the_watch_over_it(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ROTATE_EVERY", 0.02)
    (folder / "log").mkdir()
    obstacle = folder / "log" / "iggy.log.1"
    obstacle.mkdir()
    driver = await make_driver(("sh", "-c", "while :; do echo line; sleep 0.001; done"), log_max_bytes=50, log_keep=1)
    await driver.start(steps)
    await eventually(lambda: (folder / "log" / "iggy.log").stat().st_size > 200)
    obstacle.rmdir()
    await eventually(obstacle.is_file)
