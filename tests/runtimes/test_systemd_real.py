"""The systemd driver against a real systemd: each case in which what systemd does is not what its words suggest."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes import environment, journald
from agent.runtimes.driver import Call
from agent.runtimes.readiness import Readiness, Wait
from agent.runtimes.systemd import SystemdDriver
from tests.runtimes.conftest import Steps
from tests.runtimes.systemd_rig import driver_of, settled_as
from tests.system.booted import Booted, missing

pytestmark = [pytest.mark.xdist_group("booted systemd"), pytest.mark.timeout(120)]

SLEEPS = "ExecStart=sleep infinity"


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """A real systemd of its own; where none can be had the tests are skipped, in CI they fail."""
    if lacks := missing():
        message = f"a booted systemd cannot be had here; missing: {', '.join(lacks)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    machine = Booted()
    try:
        machine.mount()
        machine.boot()
        yield machine
    finally:
        machine.end()


@pytest.fixture
def unit(machine: Booted, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name of this test's own."""
    name = f"t{abs(hash(request.node.nodeid)):x}.service"
    yield name
    machine.run("sh", "-c", f"systemctl kill --signal=KILL {name}; systemctl stop {name}", check=False)


@pytest.fixture
def write(machine: Booted, unit: str) -> Callable[..., None]:
    """Write a unit: lines of [Service], and of [Unit]. systemd reads a new one by itself, a changed one when told."""
    written = set()

    def write(*service: str, unit_lines: tuple[str, ...] = (), name: str = unit) -> None:
        text = "\n".join(["[Unit]", *unit_lines, "[Service]", *service, ""])
        machine.write(f"/etc/systemd/system/{name}", text)
        if name in written:
            machine.run("systemctl", "daemon-reload")
        written.add(name)

    return write


@pytest.fixture
async def driver(machine: Booted, unit: str, folder: Path) -> AsyncIterator[SystemdDriver]:
    async with driver_of(address(machine), folder, unit=unit) as driver:
        yield driver


def address(machine: Booted) -> str:
    inside = f"/proc/{machine.leader}/root"
    return f"unix:path={inside}/run/dbus/system_bus_socket"


async def started(driver: SystemdDriver, steps: Steps, *, within: float = 10.0) -> Readiness:
    """Start it as an action does."""
    await driver.start(steps)
    return await Wait(driver._runtime, driver, None, None, within).run()


async def refused(driver: SystemdDriver, steps: Steps, *, within: float = 10.0) -> Rejection:
    with pytest.raises(Rejection) as caught:
        await started(driver, steps, within=within)
    return caught.value


async def test_start_restart_and_stop_are_one_job_each_and_leave_evidence(
    driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", SLEEPS)
    assert (await started(driver, steps)).observation.pid
    first = await driver.observe()
    assert (await driver.start(steps)).calls == ()
    outcome = await driver.restart(steps)
    second = await driver.observe()
    assert outcome.before.incarnation == first.incarnation != second.incarnation
    assert second.pid not in {None, first.pid}
    stopped = await driver.stop(steps)
    assert (stopped.exit_code, stopped.killed, stopped.detail["job_result"]) == (143, False, "done")
    assert (await driver.stop(steps)).calls == ()
    last = await driver.observe()
    assert (last.state, last.incarnation, last.exit_code) == ("stopped", second.incarnation, 143)
    assert steps.words() == ["start!", "restart!", "stop!"]


async def test_what_systemd_unloads_it_forgets_and_a_unit_that_is_held_it_does_not(
    machine: Booted, unit: str, folder: Path, driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", SLEEPS)
    await started(driver, steps)
    await driver.stop(steps)
    assert (await driver.observe()).incarnation_known
    await driver.close()
    async with driver_of(address(machine), folder, unit=unit) as another:
        seen = await another.observe()
        assert (seen.state, seen.incarnation, seen.incarnation_known) == ("stopped", None, False)


@pytest.mark.parametrize(
    ("service", "unit_lines", "words"),
    [
        (("Type=simple", "ExecStart=false"), (), "it ended by itself with exit code 1"),
        (("Type=exec", "ExecStart=false"), (), "it ended by itself with exit code 1"),
        (("Type=simple", "ExecStart=/no/such/program"), (), "203/EXEC"),
        (("Type=exec", "ExecStart=/no/such/program"), (), "203/EXEC"),
        (("Type=oneshot", "ExecStart=false"), (), "it ended by itself with exit code 1"),
        (("Type=notify", "ExecStart=false"), (), "it ended by itself with exit code 1"),
        (("Type=notify", "TimeoutStartSec=1", SLEEPS), (), "it took longer to come up"),
        (("Type=exec", "ExecStart=sh -c 'kill -SEGV $$$$'"), (), "SIGSEGV ended it"),
        (("Type=exec", "User=no-such-user", SLEEPS), (), "217/USER"),
        (("Type=exec", "ExecStartPre=false", SLEEPS), (), "ExecStartPre="),
        (
            ("Type=exec", SLEEPS),
            ("ConditionPathExists=/no/such",),
            "a condition of its unit was not met (ConditionPath",
        ),
        (("Type=exec", SLEEPS), ("AssertPathExists=/no/such",), "an assertion of its unit was not met (AssertPath"),
        (("Type=exec", SLEEPS), ("Requires=fails.service", "After=fails.service"), "a unit that it needs did not come"),
    ],
)
async def test_a_start_that_does_not_come_up_is_told_by_its_cause(
    driver: SystemdDriver,
    write: Callable[..., None],
    steps: Steps,
    service: tuple[str, ...],
    unit_lines: tuple[str, ...],
    words: str,
) -> None:
    write("Type=oneshot", "ExecStart=false", name="fails.service")
    write(*service, unit_lines=unit_lines)
    rejection = await refused_after_all(driver, steps)
    assert rejection.code is ReasonCode.START_FAILED
    assert words in rejection.message


async def refused_after_all(driver: SystemdDriver, steps: Steps) -> Rejection:
    """Without a probe running is ready, so what ends a moment later is told by the next wait."""
    with suppress(Rejection):
        await started(driver, steps)
    await settled_as(driver, "failed", "stopped")
    with pytest.raises(Rejection) as caught:
        await Wait(driver._runtime, driver, None, None, 5).run()
    return caught.value


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        ("leave out", ReasonCode.NOT_FOUND, "there is no unit"),
        ("mask", ReasonCode.START_FAILED, "its unit is masked"),
        ("spoil", ReasonCode.START_FAILED, "its unit is badly written"),
    ],
)
async def test_a_unit_that_cannot_be_started_is_refused_with_its_own_sentence(
    machine: Booted,
    unit: str,
    driver: SystemdDriver,
    write: Callable[..., None],
    steps: Steps,
    make: str,
    code: ReasonCode,
    words: str,
) -> None:
    if make == "spoil":
        write("Type=exec")
    elif make == "mask":
        await asyncio.to_thread(machine.run, "systemctl", "mask", unit)
    rejection = await refused(driver, steps)
    assert rejection.code is code
    assert words in rejection.message
    assert steps == []


async def test_a_unit_that_is_activating_for_ever_is_a_timeout_and_can_be_stopped(
    driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=notify", "TimeoutStartSec=infinity", SLEEPS)
    rejection = await refused(driver, steps, within=0.5)
    assert rejection.code is ReasonCode.TIMEOUT
    await driver.stop(steps)
    assert (await driver.observe()).state == "stopped"


async def test_a_crash_loop_is_seen_as_one(driver: SystemdDriver, write: Callable[..., None], steps: Steps) -> None:
    write("Type=notify", "Restart=always", "RestartSec=0", "ExecStart=false", unit_lines=("StartLimitIntervalSec=0",))
    rejection = await refused(driver, steps, within=1.0)
    assert rejection.code is ReasonCode.START_FAILED
    assert "again and again" in rejection.message
    assert ((await driver.observe()).restarts or 0) > 1
    await driver.stop(steps)
    assert (await driver.settle()).state in {"stopped", "failed"}


async def test_a_run_that_ignores_sigterm_is_killed_and_that_is_told(
    driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", "TimeoutStopSec=500ms", "ExecStart=sh -c 'trap \"\" TERM; while :; do sleep 0.05; done'")
    await started(driver, steps)
    await asyncio.sleep(0.2)  # the shell has no way to say that its trap is set
    outcome = await driver.stop(steps)
    assert (outcome.exit_code, outcome.killed) == (137, True)
    assert (await driver.observe()).state == "failed"


async def test_a_stop_takes_the_place_of_a_start_that_waits(
    driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=oneshot", "ExecStart=sleep infinity", "TimeoutStartSec=infinity", name="slow.service")
    write("Type=exec", SLEEPS, unit_lines=("Wants=slow.service", "After=slow.service"))
    outcome = await driver.start(steps)
    assert outcome.detail["job_result"] == "under way"
    assert (await driver.observe()).state == "starting"
    await driver.stop(steps)
    assert (await driver.observe()).state == "stopped"


async def test_a_start_does_not_trample_the_stop_of_an_operator(
    machine: Booted, unit: str, driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", "TimeoutStopSec=1s", "ExecStart=sh -c 'trap \"\" TERM; while :; do sleep 0.05; done'")
    await started(driver, steps)
    await asyncio.sleep(0.2)  # as above
    machine.run("systemctl", "stop", "--no-block", unit)
    await settled_as(driver, "stopping")
    with pytest.raises(Rejection) as caught:
        await driver.start(steps)
    assert caught.value.code is ReasonCode.BUSY
    assert (await driver.settle()).state == "failed"


async def test_the_start_limit_does_not_stand_in_the_way_of_what_was_asked_for(
    driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", SLEEPS, unit_lines=("StartLimitIntervalSec=60", "StartLimitBurst=2"))
    seen = {(await started(driver, steps)).observation.incarnation}
    for _ in range(4):
        await driver.restart(steps)
        seen.add((await driver.observe()).incarnation)
    assert len(seen) == 5
    assert Call.START in {step.call for step in steps[1:]}


async def test_a_run_that_dies_is_pushed_within_a_second(
    machine: Booted, unit: str, driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", SLEEPS, "Restart=always", "RestartSec=100ms")
    before = (await started(driver, steps)).observation
    await asyncio.to_thread(machine.run, "systemctl", "kill", "--signal=KILL", unit)
    began = time.monotonic()
    await settled_as(driver, "starting")
    assert time.monotonic() - began < 1
    after = await settled_as(driver, "running")
    assert (after.restarts, after.incarnation == before.incarnation) == (1, False)


@pytest.mark.parametrize("disturbance", ["daemon-reexec", "daemon-reload"])
async def test_a_job_is_followed_while_systemd_begins_anew(
    machine: Booted, driver: SystemdDriver, write: Callable[..., None], steps: Steps, disturbance: str
) -> None:
    write("Type=exec", "ExecStart=sleep infinity", "ExecStop=sleep 1")
    await started(driver, steps)
    stopping = asyncio.ensure_future(driver.stop(steps))
    await settled_as(driver, "stopping")
    await asyncio.to_thread(machine.run, "systemctl", disturbance)
    outcome = await stopping
    assert outcome.exit_code == 143
    assert (await driver.observe()).incarnation_known
    await driver.start(steps)
    assert (await driver.observe()).running


async def test_a_bus_that_is_started_anew_is_found_again(
    machine: Booted, driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    write("Type=exec", SLEEPS)
    await started(driver, steps)
    await asyncio.to_thread(machine.run, "systemctl", "restart", "dbus.service")
    async with asyncio.timeout(20):
        while driver._unit.bus.session < 2:
            await driver.wait_for_change()
            driver._changed.clear()
    before = await driver.observe()
    await driver.restart(steps)
    assert (await driver.observe()).incarnation != before.incarnation


async def test_the_log_of_a_run_is_what_that_run_wrote(
    machine: Booted, tmp_path: Path, unit: str, driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    # It lives for a moment: the journal looks up whose line it is when it reads it, and no process, no run.
    write("Type=oneshot", "ExecStart=sh -c 'echo run of $$$$; printf \"caf\\\\351\\\\n\" >&2; sleep 0.5; exit 3'")
    for _ in range(2):
        await refused(driver, steps)
    run = (await driver.observe()).incarnation
    assert run is not None
    machine.run("journalctl", "--sync")
    program = tmp_path / "journalctl"
    program.write_text(f'#!/bin/sh\nexec nsenter --target {machine.leader} --all -- journalctl "$@"\n')
    program.chmod(0o755)
    lines = await asyncio.to_thread(journald.tail, unit, run, max_bytes=10_000, program=str(program))
    assert sum(line.startswith("run of") for line in lines) == 1
    assert "caf\N{REPLACEMENT CHARACTER}" in lines
    assert any("status=3" in line for line in lines)


VALUES = {
    "IGGY_SPACES": "  two  words ",
    "IGGY_QUOTES": """both ' and " of them""",
    "IGGY_DOLLAR": "$HOME ${HOME} $$ `id`",
    "IGGY_HASH": "# no comment; ;",
    "IGGY_PERCENT": "100% %n %h",
    "IGGY_BACKSLASH": "\\ \\n \\\\ \\$ end\\",
    "IGGY_UNICODE": "grüße 🌍",
    "IGGY_DASH": "-v",
    "IGGY_EMPTY": "",
    "IGGY_EQUALS": "a=b=c",
}


async def test_values_reach_the_process_as_they_are(
    machine: Booted, driver: SystemdDriver, write: Callable[..., None], steps: Steps
) -> None:
    machine.write("/etc/values", environment.render(VALUES))
    write("Type=oneshot", "RemainAfterExit=yes", "EnvironmentFile=/etc/values", "ExecStart=sh -c 'env -0 >/run/got'")
    await started(driver, steps)
    got = machine.run("cat", "/run/got").stdout
    assert dict(line.split("=", 1) for line in got.split("\0") if line.startswith("IGGY_")) == VALUES
