"""What the process driver promises when agents die, pids come again, and the machine restarts."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeState
from agent.runtimes import process
from agent.runtimes.runs import RunFiles
from tests.runtimes.conftest import BORN, SLEEPER, MakeDriver, Steps, births, eventually, python, seen

ROOT = Path(__file__).parents[2]
WITH_A_CHILD = ("sh", "-c", f"{BORN}; sleep 60 & while [ ! -e go ]; do sleep 0.02; done")


class LoneAgents:
    """Agents in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, verb: str = "start", die_at: str = "-", command: tuple[str, ...] = SLEEPER
    ) -> "subprocess.Popen[str]":
        agent = subprocess.Popen(
            [sys.executable, "-m", "tests.runtimes.lone_agent", str(self._folder), verb, die_at, *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(agent)
        return agent

    async def died(self, verb: str, die_at: str, command: tuple[str, ...] = SLEEPER) -> None:
        """Start one and see it killed where it was told to die."""
        agent = await asyncio.to_thread(self.start, verb, die_at, command)
        assert await asyncio.to_thread(agent.wait, 20) == -signal.SIGKILL

    async def done(self, agent: "subprocess.Popen[str]") -> dict[str, Any]:
        """Wait until one has carried out its verb; it lives on."""
        assert agent.stdout is not None
        answer: dict[str, Any] = json.loads(await asyncio.to_thread(agent.stdout.readline))
        return answer


@pytest.fixture
def agents(folder: Path) -> Iterator[LoneAgents]:
    agents = LoneAgents(folder)
    yield agents
    for agent in agents.started:
        agent.kill()
        agent.wait(10)
        for pipe in (agent.stdin, agent.stdout):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("die_at", ["record", "agent.runtimes.spawn._spawn"])
async def test_an_agent_killed_before_the_fork_leaves_nothing_running(
    make_driver: MakeDriver, agents: LoneAgents, steps: Steps, folder: Path, die_at: str
) -> None:
    await agents.died("start", die_at)
    driver = await make_driver()
    now = await driver.settle()
    assert (now.state, now.incarnation, now.incarnation_known) == (RuntimeState.STOPPED, None, True)
    await driver.start(steps)
    await eventually(lambda: births(folder) == 1)


@pytest.mark.parametrize(
    "die_at",
    [
        "agent.runtimes.spawn._read_to_end",  # between fork and exec: the launcher has only just begun
        "agent.runtimes.process:ProcessDriver._release_lock",  # right after exec
        "agent.runtimes.watch:Watcher._begin_watching",
    ],
)
async def test_an_agent_killed_after_the_fork_leaves_one_running_that_is_adopted(
    make_driver: MakeDriver, agents: LoneAgents, steps: Steps, folder: Path, die_at: str
) -> None:
    await agents.died("start", die_at)
    driver = await make_driver()
    now = await driver.settle()
    assert now.running
    assert (await driver.start(steps)).calls == ()
    await eventually(lambda: births(folder) == 1)
    outcome = await driver.stop(steps)
    assert (outcome.exit_code, outcome.killed) == (None, False)
    assert births(folder) == 1


@pytest.mark.parametrize("delay", [0.0, 0.008, 0.024])
async def test_agents_killed_at_any_moment_of_a_start_never_bring_up_two(
    make_driver: MakeDriver, agents: LoneAgents, steps: Steps, folder: Path, delay: float
) -> None:
    killed = [agents.start(), agents.start()]
    await eventually((folder / "lock").exists)
    await asyncio.sleep(delay)  # the moment of the kill is what varies; nothing is waited for
    for agent in killed:
        agent.kill()
        await asyncio.to_thread(agent.wait, 20)
    driver = await make_driver()
    adopted = (await driver.settle()).running
    assert (await driver.start(steps)).calls == (() if adopted else ("start",))
    await eventually(lambda: births(folder) == 1)


async def test_an_agent_killed_within_a_restart_is_seen_as_what_it_did(
    make_driver: MakeDriver, agents: LoneAgents, steps: Steps, folder: Path
) -> None:
    driver = await make_driver()
    await driver.start(steps)
    first = await driver.observe()
    await eventually(lambda: births(folder) == 1)
    await agents.died("restart", "agent.runtimes.spawn._spawn")
    now = await driver.settle()
    assert (now.running, now.incarnation) == (False, first.incarnation)
    await agents.died("restart", "agent.runtimes.spawn._read_to_end")
    now = await driver.settle()
    assert now.running
    assert now.incarnation != first.incarnation
    await eventually(lambda: births(folder) == 2)


async def test_two_agents_that_start_at_once_bring_up_one(agents: LoneAgents, folder: Path) -> None:
    started = [agents.start(), agents.start()]
    answers = [await agents.done(agent) for agent in started]
    assert sorted(answer["calls"] for answer in answers) == [[], ["start"]]
    assert len({answer["incarnation"] for answer in answers}) == 1
    await eventually(lambda: births(folder) == 1)


async def test_the_end_of_an_adopted_runtime_is_noticed_at_once(
    make_driver: MakeDriver, agents: LoneAgents, folder: Path
) -> None:
    await agents.died("start", "agent.runtimes.watch:Watcher._begin_watching")
    driver = await make_driver()
    running = await driver.settle()
    assert running.pid is not None
    change = asyncio.create_task(driver.wait_for_change())
    await asyncio.sleep(0)
    assert not change.done()
    os.kill(running.pid, signal.SIGKILL)
    began = time.monotonic()
    await asyncio.wait_for(change, 10)
    assert time.monotonic() - began < 0.5
    now = await driver.observe()
    assert (now.state, now.exit_code, now.incarnation) == (RuntimeState.STOPPED, None, running.incarnation)


async def test_an_agent_that_starts_later_still_knows_the_exit_code(make_driver: MakeDriver, steps: Steps) -> None:
    first = await make_driver(("sh", "-c", "exit 3"))
    await first.start(steps)
    await seen(first, lambda now: now.state is RuntimeState.FAILED)
    await first.close()
    second = await make_driver(("sh", "-c", "exit 3"))
    assert (await second.observe()).exit_code == 3


async def test_another_process_with_its_pid_is_not_taken_for_it(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    driver = await make_driver()
    await driver.start(steps)
    await driver.stop(steps)
    other = await asyncio.create_subprocess_exec("sleep", "60")
    change_record(folder, pid=other.pid)
    later = await make_driver()
    assert (await later.observe()).state is RuntimeState.STOPPED
    assert (await later.stop(steps)).calls == ()
    assert other.returncode is None
    other.kill()
    await other.wait()


async def test_the_id_of_a_thread_is_not_taken_for_it(make_driver: MakeDriver, steps: Steps, folder: Path) -> None:
    driver = await make_driver()
    await driver.start(steps)
    await driver.stop(steps)
    change_record(folder, pid=id_of_a_thread())
    later = await make_driver()
    assert (await later.observe()).state is RuntimeState.STOPPED


async def test_after_a_restart_of_the_machine_it_is_stopped_and_its_last_run_known(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    driver = await make_driver()
    await driver.start(steps)
    last = await driver.observe()
    await driver.stop(steps)
    change_record(folder, boot_id="00000000-0000-0000-0000-000000000000", pid=1, start_ticks=1)
    later = await make_driver()
    now = await later.observe()
    assert (now.state, now.incarnation) == (RuntimeState.STOPPED, last.incarnation)
    await later.start(steps)
    assert (await later.observe()).incarnation != last.incarnation


@pytest.mark.parametrize("damage", ["missing", "not json", '{"pid": 12}'])
async def test_a_lost_record_is_an_unknown_incarnation(
    make_driver: MakeDriver, steps: Steps, folder: Path, damage: str
) -> None:
    driver = await make_driver()
    await driver.start(steps)
    await driver.stop(steps)
    lose_record(folder, damage)
    now = await (await make_driver()).observe()
    assert (now.state, now.incarnation, now.incarnation_known) == (RuntimeState.STOPPED, None, False)


async def test_a_runtime_whose_record_was_lost_is_not_started_twice_and_can_be_stopped(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "CHILD_GRACE", 0.1)
    driver = await make_driver()
    await driver.start(steps)
    await eventually(lambda: births(folder) == 1)
    lose_record(folder, "missing")
    now = await driver.settle()
    assert (now.state, now.incarnation_known) == (RuntimeState.STOPPING, False)
    assert now.detail["note"] == "it runs, but its record is lost"
    with pytest.raises(Rejection, match="its record is lost") as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.BUSY
    assert (await driver.restart(steps)).killed is False
    assert (await driver.observe()).running
    await eventually(lambda: births(folder) == 2)


async def test_a_child_that_outlives_it_is_named_and_keeps_it_from_being_started(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "CHILD_GRACE", 0.1)
    driver = await make_driver(WITH_A_CHILD)
    await driver.start(steps)
    running = await driver.observe()
    (folder / "go").touch()
    now = await seen(driver, lambda now: not now.running)
    assert (now.state, now.incarnation) == (RuntimeState.STOPPING, running.incarnation)
    (child,) = now.detail["held_by"]
    with pytest.raises(Rejection, match=rf"a child of it still runs \(pid {child}\)") as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.BUSY
    outcome = await driver.stop(steps)
    assert (outcome.calls, outcome.exit_code, outcome.killed) == (("stop",), None, False)
    assert (await driver.observe()).state is RuntimeState.STOPPED
    assert births(folder) == 1


async def test_children_that_ignore_sigterm_are_killed_with_a_runtime_that_is_restarted(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "CHILD_GRACE", 0.1)
    stubborn = "(trap '' TERM; touch armed; while :; do sleep 0.05; done) &"
    driver = await make_driver(("sh", "-c", f"{BORN}; {stubborn} while :; do sleep 0.02; done"), stop_timeout=0.5)
    await driver.start(steps)
    await eventually((folder / "armed").exists)
    outcome = await driver.restart(steps)
    assert (outcome.killed, outcome.exit_code) == (True, 143)
    assert (await driver.observe()).running
    await eventually(lambda: births(folder) == 2)


async def test_a_lock_that_is_held_without_anything_coming_up_is_busy(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_GRACE", 0.1)
    driver = await make_driver()
    files = RunFiles(folder)
    held = await asyncio.to_thread(files.take_lock)
    assert held is not None
    try:
        assert (await driver.observe()).state is RuntimeState.STARTING
        for verb in (driver.start, driver.stop):
            with pytest.raises(Rejection, match="something else holds its lock") as refused:
                await verb(steps)
            assert refused.value.code is ReasonCode.BUSY
    finally:
        os.close(held)
    assert steps == []
    assert (await driver.start(steps)).calls == ("start",)


async def test_an_exit_that_cannot_be_kept_is_still_known_to_this_agent(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    (folder / "exit.json").mkdir()
    driver = await make_driver(("sh", "-c", "exit 5"))
    await driver.start(steps)
    assert (await seen(driver, lambda now: not now.running)).exit_code == 5


async def test_it_inherits_nothing_of_the_agent(
    make_driver: MakeDriver, steps: Steps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AGENT_SUPERVISOR__URL", "NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY", "PYTHONPATH"):
        monkeypatch.setenv(name, "of the agent")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        program = python("print('up', flush=True); import time; time.sleep(60)")
        driver = await make_driver(program, environment={"IGGY_X": "a b", "TZ": "UTC"})
        await driver.start(steps)
    finally:
        os.close(leak)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    log = folder / "log" / "iggy.log"
    await eventually(lambda: "up\n" in log.read_text())  # a Python that is on its way up has its modules' files open
    pid = (await driver.observe()).pid
    process_folder = Path(f"/proc/{pid}")
    environment = dict(line.split("=", 1) for line in (process_folder / "environ").read_text().split("\0")[:-1])
    allowed = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "IGGY_X"}
    assert {key for key in environment if not key.startswith("LC_")} <= allowed
    assert (environment["IGGY_X"], environment["TZ"], environment["LC_TIME"]) == ("a b", "UTC", "C.UTF-8")
    descriptors = {int(path.name): str(path.readlink()) for path in (process_folder / "fd").iterdir()}
    lock = next(number for number, target in descriptors.items() if number > 2)
    assert descriptors == {0: "/dev/null", 1: str(log), 2: str(log), lock: str(folder / "lock")}
    assert (process_folder / "cwd").readlink() == folder
    assert os.getsid(pid or 0) == pid


async def test_it_starts_with_default_signals_and_none_blocked(make_driver: MakeDriver, steps: Steps) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        driver = await make_driver(("sleep", "60"))
        await driver.start(steps)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert signal_masks((await driver.observe()).pid) == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def id_of_a_thread() -> int:
    return next(int(task.name) for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid())


def signal_masks(pid: int | None) -> dict[str, int]:
    """Read them without signals 32 and 33, which the C library keeps for itself: signal(7)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: int(mask, 16) & ~(0b11 << 31)
        for name, mask in (line.split(":", 1) for line in lines)
        if name in {"SigBlk", "SigIgn", "SigCgt"}
    }


def change_record(folder: Path, **facts: object) -> None:
    record = folder / "process.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **facts}))


def lose_record(folder: Path, damage: str) -> None:
    record = folder / "process.json"
    if damage == "missing":
        record.unlink()
    else:
        record.write_text(damage)
