import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.errors import Rejection
from agent.protocol import DriverKind, ReasonCode, RuntimeName, RuntimeState
from agent.runtimes.driver import Driver
from agent.runtimes.probe import Probe, ProbePlan
from agent.runtimes.readiness import Readiness, Wait
from tests.runtimes.conftest import MakeDriver, Steps
from tests.runtimes.scripted import ScriptedDriver
from tests.runtimes.servers import free_port, hanging, serving

STARTING, RUNNING, STOPPED = RuntimeState.STARTING, RuntimeState.RUNNING, RuntimeState.STOPPED
SERVER = """
import http.server, sys, threading, time
class Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"pong")
time.sleep(float(sys.argv[2]))
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ping)
if len(sys.argv) > 3:
    threading.Timer(float(sys.argv[3]), server.shutdown).start()
server.serve_forever()
"""


async def wait(driver: Driver, *, start_timeout: float = 30.0, **plan: Any) -> Readiness:
    """Wait for readiness; without a plan at all when none is given."""
    settings = ProbePlan(**plan) if plan else None
    probe = Probe(settings) if settings else None
    try:
        return await Wait(RuntimeName.IGGY, driver, probe, settings, start_timeout).run()
    finally:
        if probe:
            await probe.close()


async def rejected(driver: Driver, **settings: Any) -> Rejection:
    with pytest.raises(Rejection) as refused:
        await wait(driver, **settings)
    return refused.value


async def test_without_a_probe_running_is_ready() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    ready = await wait(driver)
    assert (ready.observation.incarnation, ready.probe) == ("a", {"ready": True})


async def test_a_real_runtime_is_ready_when_its_probe_says_so(
    make_driver: MakeDriver, steps: Steps, tmp_path: Path
) -> None:
    driver = await serve(make_driver, tmp_path, port := free_port(), 0.3)
    await driver.start(steps)
    ready = await wait(driver, http=f"http://127.0.0.1:{port}/ping", expect="pong", stable_for=0.2)
    assert ready.observation.incarnation == (await driver.observe()).incarnation
    assert ready.probe == {"ready": True}
    assert ready.seconds >= 0.5


async def test_a_real_runtime_that_dies_while_it_is_watched_is_unstable_at_once(
    make_driver: MakeDriver, steps: Steps, tmp_path: Path
) -> None:
    driver = await serve(make_driver, tmp_path, port := free_port(), 0, 0.7)
    await driver.start(steps)
    began = time.monotonic()
    error = await rejected(driver, http=f"http://127.0.0.1:{port}/ping", stable_for=50)
    assert time.monotonic() - began < 20
    assert error.code is ReasonCode.UNSTABLE
    assert "it was ready, and within 50 s it is stopped, exit code 0" in error.message
    assert error.evidence["probe"] == {"ready": True}
    assert error.evidence["after"]["state"] == "stopped"


async def test_what_got_ready_while_the_agent_got_no_processor_is_ready_although_the_time_is_over() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    asked = 0

    async def held(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            time.sleep(1)  # noqa: ASYNC251 - the agent's loop too is held by it
        return web.Response(text="pong")

    async with serving(ping=held) as url:
        ready = await wait(driver, http=f"{url}/ping", attempt_timeout=0.3, ready_timeout=0.5, stable_for=0.0)
    assert (asked, ready.probe) == (2, {"ready": True})


@pytest.mark.parametrize(("code", "hint"), [(0, "a port is taken"), (1, "its last log lines say why")])
async def test_an_end_while_starting_is_start_failed_at_once_with_its_exit_code(
    make_driver: MakeDriver, steps: Steps, code: int, hint: str
) -> None:
    driver = await make_driver(("sh", "-c", f"sleep 0.2; exit {code}"))
    await driver.start(steps)
    error = await rejected(driver, tcp=f"127.0.0.1:{free_port()}", ready_timeout=50)
    assert error.code is ReasonCode.START_FAILED
    assert error.message == f"cannot start iggy: it ended by itself with exit code {code} while starting"
    assert hint in str(error.hint)
    assert error.evidence["after"]["exit_code"] == code
    assert "connection refused" in error.evidence["probe"]["why"]


async def test_a_main_process_that_leaves_a_child_behind_is_start_failed(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(("sh", "-c", "sleep 60 & exit 1"))
    await driver.start(steps)
    error = await rejected(driver, tcp=f"127.0.0.1:{free_port()}", ready_timeout=50)
    assert error.code is ReasonCode.START_FAILED
    assert error.evidence["after"]["note"] == "its main process ended, a child of it still runs"


async def test_an_end_is_noticed_also_while_the_probe_hangs(make_driver: MakeDriver, steps: Steps) -> None:
    driver = await make_driver(("sh", "-c", "sleep 0.3; exit 1"))
    await driver.start(steps)
    began = time.monotonic()
    async with serving(ping=hanging) as url:
        error = await rejected(driver, http=f"{url}/ping", attempt_timeout=40, ready_timeout=50)
    assert error.code is ReasonCode.START_FAILED
    assert time.monotonic() - began < 20


async def test_one_that_runs_and_never_gets_ready_is_not_ready() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    port = free_port()
    error = await rejected(driver, tcp=f"127.0.0.1:{port}", ready_timeout=0.2)
    assert error.code is ReasonCode.NOT_READY
    assert error.message == f"cannot see iggy ready after 0.2 s: connection refused at 127.0.0.1:{port}"
    assert error.evidence["after"]["incarnation"] == "a"


async def test_one_that_stays_starting_is_a_timeout() -> None:
    driver = ScriptedDriver()
    driver.show(STARTING, "a")
    error = await rejected(driver, start_timeout=0.2, tcp="127.0.0.1:1")
    assert (error.code, error.message) == (
        ReasonCode.TIMEOUT,
        "cannot start iggy: it is still starting after 0.2 s",
    )


async def test_one_that_is_revived_gets_a_new_probe_within_the_same_time() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    async with serving(ping="pong") as url:
        port = url.rpartition(":")[2]
        waiting = asyncio.create_task(wait(driver, http=f"{url}/none", stable_for=0, ready_timeout=0.4))
        await driver.looked(3)
        driver.show(STARTING, "a")
        await driver.looked(2)
        driver.show(RUNNING, "b")
        with pytest.raises(Rejection, match="it ended by itself again and again") as refused:
            await waiting
        assert refused.value.code is ReasonCode.START_FAILED
        driver.show(STARTING, "b")
        waiting_again = asyncio.create_task(wait(driver, tcp=f"127.0.0.1:{port}", stable_for=0))
        await driver.looked(2)
        driver.show(RUNNING, "c")
        assert (await waiting_again).observation.incarnation == "c"


async def test_a_crash_loop_that_is_never_seen_running_is_start_failed() -> None:
    driver = ScriptedDriver()
    driver.show(STARTING, "a", restarts=0)
    waiting = asyncio.create_task(rejected(driver, start_timeout=0.3, tcp="127.0.0.1:1"))
    await driver.looked(2)
    driver.show(STARTING, "b", restarts=1)
    assert (await waiting).code is ReasonCode.START_FAILED


@pytest.mark.parametrize(("state", "run"), [(RUNNING, "b"), (STARTING, "a"), (STOPPED, "a")])
async def test_ready_and_then_another_run_or_none_is_unstable(state: RuntimeState, run: str) -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    async with serving(ping="pong") as url:
        waiting = asyncio.create_task(rejected(driver, http=f"{url}/ping", stable_for=30))
        await driver.looked(2)
        driver.show(state, run)
        error = await waiting
    assert error.code is ReasonCode.UNSTABLE
    assert error.evidence["was_ready"] == "a"
    assert error.evidence["after"]["state"] == state


async def test_readiness_that_does_not_hold_is_waited_for_again() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    answers = iter([200, 503, 200])

    async def ping(_request: web.Request) -> web.Response:
        return web.Response(status=next(answers, 200))

    async with serving(ping=ping) as url:
        ready = await wait(driver, http=f"{url}/ping", stable_for=0.05)
    assert ready.probe == {"ready": True}
    assert ready.seconds >= 0.1


async def test_a_run_that_is_replaced_during_the_last_probe_is_not_the_one_that_is_ready_also_without_a_push() -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    driver.show(RUNNING, "a")
    driver.pushes = False
    asked = 0

    async def ping(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 2:
            driver.show(RUNNING, "b")
        return web.Response(text="pong")

    async with serving(ping=ping) as url:
        ready = await wait(driver, http=f"{url}/ping", stable_for=0.05)
    assert ready.observation.incarnation == "b"


@pytest.mark.parametrize(("state", "run", "why"), [
    (RUNNING, "b", "it ended by itself again and again"),
    (STOPPED, "a", "it ended by itself while starting"),
])  # fmt: skip
async def test_a_run_that_ends_during_the_last_probe_when_the_time_is_over_is_start_failed(
    state: RuntimeState, run: str, why: str
) -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    driver.show(RUNNING, "a")
    driver.pushes = False
    ready_timeout, asked = 0.25, 0

    async def ping(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(ready_timeout)
            return web.Response(status=503)
        if asked == 3:
            driver.show(state, run)
        return web.Response(text="pong")

    async with serving(ping=ping) as url:
        error = await rejected(driver, http=f"{url}/ping", stable_for=0.05, ready_timeout=ready_timeout)
    assert asked == 3
    assert (error.code, error.message) == (ReasonCode.START_FAILED, f"cannot start iggy: {why}")
    assert error.evidence["after"]["state"] == state
    assert error.evidence["after"]["incarnation"] == run


async def test_a_missing_runtime_is_start_failed() -> None:
    driver = ScriptedDriver()
    driver.show(RuntimeState.MISSING)
    error = await rejected(driver)
    assert (error.code, "it is not there any more" in error.message) == (ReasonCode.START_FAILED, True)


async def test_an_end_without_a_known_exit_code_is_said_without_one() -> None:
    error = await rejected(ScriptedDriver())
    assert error.message == "cannot start iggy: it ended by itself while starting"


async def test_stopping_is_waited_out_where_something_may_revive_it() -> None:
    driver = ScriptedDriver()
    driver.show(RuntimeState.STOPPING, "a")
    waiting = asyncio.create_task(wait(driver))
    await driver.looked(2)
    driver.show(RUNNING, "b")
    assert (await waiting).observation.incarnation == "b"


async def test_a_driver_that_is_away_for_a_moment_is_asked_again() -> None:
    driver = ScriptedDriver()
    away = Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot ask the bus: it is away")
    driver.fail(away)
    driver.pushes = False
    waiting = asyncio.create_task(wait(driver))
    await driver.looked(3)
    driver.show(RUNNING, "a")
    assert (await waiting).observation.incarnation == "a"
    driver.fail(away)
    assert (await rejected(driver, start_timeout=0.1)) is away


async def test_a_driver_that_is_away_within_the_stable_window_is_not_unstable() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    waiting = asyncio.create_task(wait(driver, stable_for=0.3))
    await driver.looked(2)
    driver.fail(Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot ask the bus: it is away"))
    await driver.looked(2)
    driver.show(RUNNING, "a")
    assert (await waiting).observation.incarnation == "a"


async def test_another_failure_of_the_driver_ends_the_wait() -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    driver.fail(Rejection(ReasonCode.NOT_FOUND, "cannot look: no such container"))
    assert (await rejected(driver)).code is ReasonCode.NOT_FOUND


async def test_a_wait_that_is_cancelled_leaves_no_task_behind() -> None:
    driver = ScriptedDriver()
    driver.show(RUNNING, "a")
    async with serving(ping=hanging) as url:
        before = asyncio.all_tasks()
        waiting = asyncio.create_task(wait(driver, http=f"{url}/ping", attempt_timeout=30))
        await driver.looked(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        left = {task for task in asyncio.all_tasks() - before if "Wait" in repr(task) or "Probe" in repr(task)}
        assert left == set()


async def serve(make_driver: MakeDriver, folder: Path, port: int, *times: float) -> Any:
    """Make a driver of a real server that answers after a while, and ends after another."""
    import sys

    program = folder / "server.py"
    program.write_text(SERVER)
    return await make_driver((sys.executable, str(program), str(port), *map(str, times)))


async def test_what_runs_with_a_hindrance_is_not_ready_until_that_is_gone() -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    driver.show(RUNNING, "a", hindrance="its container is paused")
    task = asyncio.create_task(wait(driver))
    await driver.looked(3)
    assert not task.done()
    driver.show(RUNNING, "a")
    assert (await task).observation.incarnation == "a"


async def test_a_hindrance_is_told_when_the_time_is_over() -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    driver.show(RUNNING, "a", hindrance="its container is paused")
    refused = await rejected(driver, start_timeout=0.1)
    assert refused.code is ReasonCode.NOT_READY
    assert "its container is paused" in refused.message
