import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Rejection
from agent.protocol import DriverKind, ReasonCode, RuntimeName, RuntimeState
from agent.redaction import Redactor
from agent.runtimes.driver import Driver, Incarnation
from agent.runtimes.probe import ProbePlan
from agent.runtimes.releases import Releases
from agent.runtimes.runtime import TAIL_BYTES, Runtime, Timeouts
from tests.runtimes.configs import config
from tests.runtimes.conftest import MakeDriver, Steps, said
from tests.runtimes.scripted import ScriptedDriver
from tests.runtimes.servers import free_port, serving

Make = Callable[..., Awaitable[Runtime]]


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Make]:
    made: list[Runtime] = []

    async def build(driver: Driver, plan: ProbePlan | None = None, **timeouts: float) -> Runtime:
        runtime = Runtime(
            RuntimeName.IGGY,
            driver=driver,
            releases=Releases(folder, RuntimeName.IGGY),
            plan=plan,
            timeouts=Timeouts(**timeouts),
            redactor=Redactor(),
        )
        await runtime.open()
        made.append(runtime)
        return runtime

    yield build
    for runtime in made:
        await runtime.close()


async def test_the_status_of_a_running_runtime_has_its_facts(make: Make, make_driver: MakeDriver, steps: Steps) -> None:
    async with serving(ping="pong") as url:
        driver = await make_driver()
        runtime = await make(driver, ProbePlan(http=f"{url}/ping"))
        await runtime.stage(config())
        await runtime.switch("42-3")
        await driver.start(steps)
        first = await runtime.status(7)
        second = await runtime.status(None)
    now = await driver.observe()
    assert (first.state, first.ready, first.activity_id) == (RuntimeState.RUNNING, True, 7)
    assert (first.runtime, first.driver) == (RuntimeName.IGGY, DriverKind.PROCESS)
    assert (first.incarnation, first.pid, first.started_at) == (now.incarnation, now.pid, now.started_at)
    assert (first.version, first.config_id, first.config_version, first.drifted) == ("0.8.0", 42, 3, False)
    assert first.cpu_percent is None
    assert second.cpu_percent is not None
    assert second.cpu_percent >= 0


async def test_a_runtime_with_another_config_than_the_current_one_has_drifted(
    make: Make, make_driver: MakeDriver, steps: Steps
) -> None:
    driver = await make_driver()
    runtime = await make(driver)
    await driver.start(steps)
    assert (await runtime.status(None)).drifted is False
    await runtime.stage(config())
    await runtime.switch("42-3")
    assert (await runtime.status(None)).drifted is True
    await driver.restart(steps)
    assert (await runtime.status(None)).drifted is False
    await runtime.switch(None)
    assert (await runtime.status(None)).drifted is True
    await driver.stop(steps)
    assert (await runtime.status(None)).drifted is None


async def test_the_values_of_the_current_release_win_over_the_settings(
    make: Make, make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    driver = await make_driver(
        ("sh", "-c", "env | sort; exec sleep 60"), environment={"IGGY_HTTP_ADDRESS": "x", "IGGY_S": "s"}
    )
    runtime = await make(driver)
    await runtime.stage(config(files={"config.toml": ""}))
    await runtime.switch("42-3")
    await driver.start(steps)
    now = await driver.observe()
    lines = await said(driver, now, "IGGY_S=s")
    assert {line for line in lines if line.startswith("IGGY_")} == {
        "IGGY_HTTP_ADDRESS=127.0.0.1:3000",
        "IGGY_S=s",
        f"IGGY_CONFIG_PATH={folder}/current/files/config.toml",
    }
    assert now.config_sha256 == config(files={"config.toml": ""}).sha256


async def test_nothing_is_started_without_its_current_config(
    make: Make, make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    driver = await make_driver()
    await make(driver)
    (folder / "current").symlink_to("releases/1-1")
    with pytest.raises(Rejection) as refused:
        await driver.start(steps)
    assert refused.value.code is ReasonCode.CONFIG_MISSING
    assert steps == []


async def test_drift_is_unknown_where_the_driver_does_not_know_the_config(make: Make) -> None:
    driver = ScriptedDriver()
    driver.show(RuntimeState.RUNNING, "a")
    runtime = await make(driver)
    assert (await runtime.status(None)).drifted is None


async def test_a_status_says_why_it_is_not_ready_and_what_an_operator_should_know(make: Make) -> None:
    driver = ScriptedDriver()
    driver.show(RuntimeState.RUNNING, "a", restarts=2)
    port = free_port()
    runtime = await make(driver, ProbePlan(tcp=f"127.0.0.1:{port}"))
    status = await runtime.status(None)
    assert (status.ready, status.message) == (False, f"connection refused at 127.0.0.1:{port}")
    assert (status.restarts, status.cpu_percent) == (2, None)
    assert status.warnings == ["something fights the agent"]


async def test_the_use_of_cpu_is_not_mixed_between_two_runs(make: Make) -> None:
    driver = ScriptedDriver()
    runtime = await make(driver)
    driver.show(RuntimeState.RUNNING, "a", cpu_seconds=5.0)
    await runtime.status(None)
    driver.show(RuntimeState.RUNNING, "b", cpu_seconds=1.0)
    assert (await runtime.status(None)).cpu_percent is None
    assert (await runtime.status(None)).cpu_percent == 0.0


async def test_a_stopped_runtime_is_not_ready(make: Make, make_driver: MakeDriver) -> None:
    runtime = await make(await make_driver())
    status = await runtime.status(None)
    assert (status.state, status.ready, status.pid) == (RuntimeState.STOPPED, False, None)
    result = await runtime.probe_once()
    assert (result.ready, result.why) == (False, "it is stopped")


async def test_a_status_never_fails(make: Make) -> None:
    driver = ScriptedDriver()
    runtime = await make(driver)
    driver.fail(Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot ask systemd: no bus"))
    status = await runtime.status(9)
    assert (status.state, status.message, status.activity_id) == (None, "cannot ask systemd: no bus", 9)
    driver.fail(ZeroDivisionError())
    assert (await runtime.status(None)).message == "cannot tell how it is: a fault of the agent, see its log"


async def test_a_status_tells_how_a_runtime_is_also_when_its_current_config_is_damaged(
    make: Make, folder: Path
) -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    port = free_port()
    runtime = await make(driver, ProbePlan(tcp=f"127.0.0.1:{port}"))
    await runtime.stage(config())
    await runtime.switch("42-3")
    driver.show(RuntimeState.RUNNING, "a", config_sha256=config().sha256)
    await asyncio.to_thread((folder / "current/release.json").unlink)
    status = await runtime.status(9)
    assert (status.state, status.incarnation, status.activity_id) == (RuntimeState.RUNNING, "a", 9)
    assert (status.config_id, status.config_version, status.version, status.drifted) == (None, None, None, None)
    assert status.message is not None
    refused, _, damaged = status.message.partition("; ")
    assert refused == f"connection refused at 127.0.0.1:{port}"
    assert damaged.startswith("cannot read the current config of iggy: 42-3 is missing or damaged")


async def test_a_log_tail_is_redacted_and_bounded(make: Make) -> None:
    driver = ScriptedDriver()
    runtime = await make(driver)
    secret = config(values={"IGGY_ROOT_PASSWORD": "hunter2-hunter2"}, secret_keys=["IGGY_ROOT_PASSWORD"])
    await runtime.stage(secret)
    driver.tail = [f"line {number}" for number in range(100)] + ["got hunter2-hunter2 from you"]
    tail = (await runtime.log_tail(Incarnation("a")))["log_tail"]
    assert len(tail) == 50
    assert tail[-2:] == ["line 99", "got [redacted] from you"]
    driver.tail = ["hunter2-hunter2 " * 100 for _ in range(50)]
    driver.tail += ["x" * TAIL_BYTES]
    assert (await runtime.log_tail(Incarnation("a"))) == {"log_tail": []}
    driver.tail = ["x" * (TAIL_BYTES // 2 + 1)] * 3
    assert len((await runtime.log_tail(Incarnation("a")))["log_tail"]) == 1


async def test_a_log_that_cannot_be_read_is_said(make: Make) -> None:
    driver = ScriptedDriver()
    driver.tail = Rejection(ReasonCode.DRIVER_UNAVAILABLE, "cannot read the journal: no permission")
    runtime = await make(driver)
    assert await runtime.log_tail(None) == {"log_tail_missing": "cannot read the journal: no permission"}


async def test_secrets_of_staged_configs_are_known_after_a_restart_of_the_agent(make: Make) -> None:
    first = await make(ScriptedDriver())
    await first.stage(config(values={"IGGY_X": "an unlikely value"}, secret_keys=["IGGY_X"]))
    second = await make(ScriptedDriver())
    assert second.redactor.text("it was an unlikely value") == "it was [redacted]"


def _put_in_the_way(folder: Path) -> Path:
    """Put a file in the place of a folder, which then cannot be read by root either; returns where the folder is."""
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("a file in the way")
    return aside


def _put_back(aside: Path, folder: Path) -> None:
    folder.unlink()
    aside.rename(folder)


async def test_while_its_folder_cannot_be_read_it_is_open_and_shows_no_log(make: Make, folder: Path) -> None:
    await (await make(ScriptedDriver())).stage(config(values={"IGGY_X": "an unlikely value"}, secret_keys=["IGGY_X"]))
    releases = folder / "releases"
    aside = await asyncio.to_thread(_put_in_the_way, releases)
    driver = ScriptedDriver()
    driver.tail = ["it was an unlikely value"]
    runtime = await make(driver)
    with pytest.raises(Rejection, match=f"cannot read the configs of iggy: .*{releases}") as caught:
        await runtime.learn_secrets()
    assert caught.value.hint == "check the state folder and its permissions"
    shown = await runtime.log_tail(Incarnation("1"))
    assert shown == {"log_tail_missing": caught.value.message}
    await asyncio.to_thread(_put_back, aside, releases)
    assert await runtime.log_tail(Incarnation("1")) == {"log_tail": ["it was [redacted]"]}


async def test_a_folder_that_cannot_be_read_any_more_is_found_by_the_next_look_and_its_log_stays_shown(
    make: Make, folder: Path
) -> None:
    driver = ScriptedDriver()
    driver.tail = ["a line"]
    runtime = await make(driver)
    await runtime.stage(config())
    await runtime.switch("42-3")
    await runtime.look_at_configs()
    for place in (folder, folder / "releases"):
        aside = await asyncio.to_thread(_put_in_the_way, place)
        with pytest.raises(Rejection, match=f"cannot read the .* of iggy: .*{place}"):
            await runtime.look_at_configs()
        assert runtime.knows_secrets
        assert await runtime.log_tail(Incarnation("1")) == {"log_tail": ["a line"]}
        await asyncio.to_thread(_put_back, aside, place)
        await runtime.look_at_configs()


async def test_a_damaged_config_is_no_folder_that_cannot_be_read(make: Make, folder: Path) -> None:
    runtime = await make(ScriptedDriver())
    await runtime.stage(config())
    await runtime.switch("42-3")
    await asyncio.to_thread((folder / "current/release.json").unlink)
    await runtime.look_at_configs()


async def test_a_process_whose_folder_cannot_be_used_is_adopted_when_it_can(
    make_driver: MakeDriver, steps: Steps, folder: Path
) -> None:
    first = await make_driver()
    await first.start(steps)
    running = await first.observe()
    aside = await asyncio.to_thread(_put_in_the_way, folder)
    second = await make_driver()
    with pytest.raises(Rejection, match=f"cannot look at iggy: .*{folder}") as caught:
        await second.observe()
    assert caught.value.code is ReasonCode.DRIVER_UNAVAILABLE
    await asyncio.to_thread(_put_back, aside, folder)
    assert (await second.observe()).incarnation == running.incarnation
    assert (await second.stop(steps)).before.pid == running.pid


async def test_secrets_in_the_files_of_a_config_are_known_when_it_is_staged_and_after_a_restart(make: Make) -> None:
    toml = """
    [system.encryption]
    key = "from the main file"
    [http]
    address = "127.0.0.1:3000"
    """
    files = {"config.toml": toml, "connectors/sink.toml": "[[plugin_config.users]]\npassword = 'from a connector'\n"}
    first = await make(ScriptedDriver())
    await first.stage(config(values={"IGGY_ROOT_PASSWORD": "by its name alone"}, files=files))
    second = await make(ScriptedDriver())
    for runtime in (first, second):
        said = runtime.redactor.text("from the main file, from a connector, by its name alone, 127.0.0.1:3000")
        assert said == "[redacted], [redacted], [redacted], 127.0.0.1:3000"


async def test_configs_are_checked_staged_switched_and_pruned_off_the_loop(make: Make) -> None:
    runtime = await make(ScriptedDriver())
    await runtime.check_config(config())
    release = await runtime.stage(config())
    await runtime.stage(config(version=4))
    await runtime.switch(release.name)
    assert await runtime.current() == release
    await runtime.prune([])
    assert await runtime.get_release("42-4") is None
    assert await runtime.get_release("42-3") == release


@pytest.mark.parametrize(
    ("values", "text"), [({"LD_PRELOAD": "x"}, "is not allowed"), ({"IGGY_DRIVER_SAYS_NO": "1"}, "no mount")]
)
async def test_a_config_is_refused_by_the_rules_or_by_the_driver(make: Make, values: dict[str, str], text: str) -> None:
    runtime = await make(ScriptedDriver())
    with pytest.raises(Rejection, match=text):
        await runtime.check_config(config(values=values))


async def test_it_waits_until_ready_with_its_own_times(make: Make) -> None:
    driver = ScriptedDriver()
    runtime = await make(driver, start=0.1)
    driver.show(RuntimeState.STARTING, "a")
    with pytest.raises(Rejection, match=r"still starting after 0.1 s"):
        await runtime.wait_until_ready()
    driver.show(RuntimeState.RUNNING, "a")
    assert (await runtime.wait_until_ready()).observation.incarnation == "a"


async def test_the_process_driver_accepts_any_config(make_driver: MakeDriver) -> None:
    driver: Any = await make_driver()
    driver.check_config(config())


async def test_a_hindered_runtime_is_not_ready_without_a_probe_too(make: Make) -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    runtime = await make(driver)
    driver.show(RuntimeState.RUNNING, "a", hindrance="its container is paused")
    status = await runtime.status(None)
    assert (status.ready, status.message) == (False, "its container is paused")
    driver.show(RuntimeState.RUNNING, "a")
    assert (await runtime.status(None)).ready


async def test_a_container_without_a_config_of_ours_has_drifted_from_the_current_one(make: Make) -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    runtime = await make(driver)
    await runtime.stage(config())
    await runtime.switch("42-3")
    driver.show(RuntimeState.RUNNING, "a")
    assert (await runtime.status(None)).drifted is True


async def test_tidying_names_the_committed_release_by_its_checksum(make: Make) -> None:
    driver = ScriptedDriver(DriverKind.DOCKER)
    runtime = await make(driver)
    await runtime.stage(config())
    for name in (None, "42-3", "1-1"):
        await runtime.tidy(name)
    assert driver.tidied == [None, config().sha256]
