"""An Engine that is away, hangs, fails, restarts or says odd things: each its sentence, and it is found again."""

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeName
from agent.runtimes.docker import DockerDriver
from agent.runtimes.driver import Step
from agent.runtimes.engine import THREADS
from agent.runtimes.releases import Releases
from tests.fakes.engine import KEPT, FakeEngine, fake_engine
from tests.runtimes.configs import config
from tests.runtimes.conftest import Steps, eventually
from tests.runtimes.engine_rig import DEAF, RealEngine, a_name, driver_of, running_engine, settled_as

pytestmark = pytest.mark.xdist_group("docker")


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Short: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="fake-") as folder:
        yield Path(folder) / "docker.sock"


@pytest.fixture
async def fake(socket_path: Path) -> AsyncIterator[FakeEngine]:
    async with fake_engine(socket_path, "iggy") as engine:
        yield engine


@pytest.fixture
async def driver(fake: FakeEngine, folder: Path) -> AsyncIterator[DockerDriver]:
    async with driver_of(fake.address, "iggy", folder, call_timeout=0.5, start_timeout=1.0) as driver:
        yield driver


async def rejected(driver: DockerDriver, verb: str, steps: Steps) -> Rejection:
    with pytest.raises(Rejection) as refused:
        await getattr(driver, verb)(steps)
    return refused.value


async def test_an_engine_that_is_away_is_said_and_found_again_by_itself(
    socket_path: Path, folder: Path, steps: Steps
) -> None:
    async with driver_of(f"unix://{socket_path}", "iggy", folder) as driver:
        with pytest.raises(Rejection) as refused:
            await driver.observe()
        assert refused.value.code is ReasonCode.DRIVER_UNAVAILABLE
        assert "there is nobody at" in refused.value.message
        async with fake_engine(socket_path, "iggy"), asyncio.timeout(10):
            await driver.wait_for_change()
            assert (await driver.observe()).state == "stopped"
            assert (await driver.start(steps)).calls == ("start",)


async def test_an_engine_that_hangs_is_unavailable_within_its_time(fake: FakeEngine, driver: DockerDriver) -> None:
    fake.hangs.add("json")
    began = time.monotonic()
    with pytest.raises(Rejection) as refused:
        await driver.observe()
    assert time.monotonic() - began < 5
    assert refused.value.code is ReasonCode.DRIVER_UNAVAILABLE
    assert "it does not answer" in refused.value.message
    fake.hangs.clear()
    assert (await driver.observe()).state == "stopped"


async def test_more_calls_than_threads_to_an_engine_that_hangs_end_all(fake: FakeEngine, driver: DockerDriver) -> None:
    fake.hangs.add("json")
    async with asyncio.timeout(15):
        ended = await asyncio.gather(*(driver.observe() for _ in range(9)), return_exceptions=True)
    codes = {error.code for error in ended if isinstance(error, Rejection)}
    assert codes == {ReasonCode.DRIVER_UNAVAILABLE}
    assert len(ended) == 9


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process make no more threads, as at TasksMax=."""

    def refuse(*_args: object) -> NoReturn:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threading, "_start_new_thread", refuse)


async def test_a_thread_that_cannot_be_made_is_said_and_costs_no_later_call(
    driver: DockerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        for _ in range(THREADS + 1):
            with pytest.raises(Rejection, match="no thread can be made for it: Resource temporarily") as refused:
                await driver.observe()
            assert refused.value.code is ReasonCode.DRIVER_UNAVAILABLE
            assert "TasksMax" in (refused.value.hint or "")
    assert (await driver.observe()).state == "stopped"


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_restart_that_can_make_no_thread_between_its_calls_goes_on_or_says_so(
    fake: FakeEngine, driver: DockerDriver, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    await driver.start(Steps())
    steps = Steps()
    with monkeypatch.context() as patch:

        async def record(step: Step) -> None:
            await steps(step)
            if steps.words() == ["stop", "start!"]:
                refuse_threads(patch)
                if comes_back:
                    asyncio.get_running_loop().call_later(0.3, patch.undo)

        if comes_back:
            assert (await driver.restart(record)).calls == ("stop", "start", "start")
        else:
            with pytest.raises(Rejection) as refused:
                await driver.restart(record)
            assert refused.value.code is ReasonCode.DRIVER_UNAVAILABLE
            assert refused.value.evidence == {}
    assert fake.running is comes_back
    assert fake.calls.count("start") == (2 if comes_back else 1)


async def test_where_nothing_is_left_over_nothing_is_looked_for_again(fake: FakeEngine, driver: DockerDriver) -> None:
    await driver.tidy(None)
    looked = fake.calls.count("json")
    assert looked
    await driver.tidy(None)
    assert fake.calls.count("json") == looked


async def test_a_kept_container_that_cannot_be_removed_is_named_with_the_next_step(
    fake: FakeEngine, driver: DockerDriver
) -> None:
    fake.kept = "iggy.iggy-agent-kept"
    fake.fails[KEPT] = (500, "driver failed to remove root filesystem: device or resource busy")
    with pytest.raises(Rejection, match=r"cannot put iggy\.iggy-agent-kept away, .* device or resource busy") as caught:
        await driver.tidy(None)
    assert caught.value.hint == "docker inspect iggy.iggy-agent-kept says more; the agent tries again by itself"
    fake.kept = ""
    await driver.tidy(None)


def _lose_a_file_of_the_current_config(folder: Path) -> None:
    releases = Releases(folder, RuntimeName.IGGY)
    releases.switch(releases.stage(config(files={"config.toml": ""})).name)
    (folder / "current/files/config.toml").unlink()


async def test_a_damaged_current_config_leaves_nothing_to_tidy_up_where_no_container_is_left(
    fake: FakeEngine, driver: DockerDriver, folder: Path
) -> None:
    await asyncio.to_thread(_lose_a_file_of_the_current_config, folder)
    await driver.tidy(None)
    looked = fake.calls.count("json")
    await asyncio.to_thread((folder / "current/release.json").unlink)
    await driver.tidy(None)
    assert fake.calls.count("json") == looked, "nothing was left"


async def test_a_container_that_is_left_is_named_while_a_damaged_config_keeps_it(
    fake: FakeEngine, driver: DockerDriver, folder: Path
) -> None:
    await asyncio.to_thread(_lose_a_file_of_the_current_config, folder)
    await asyncio.to_thread((folder / "current/release.json").unlink)
    fake.kept = "iggy.iggy-agent-kept"
    with pytest.raises(Rejection, match=r"cannot put iggy\.iggy-agent-kept away, .* 42-3 is missing or dam") as caught:
        await driver.tidy(None)
    assert caught.value.hint == "reconfigure with a config"
    fake.kept = ""
    await driver.tidy(None)
    looked = fake.calls.count("json")
    await driver.tidy(None)
    assert fake.calls.count("json") == looked


async def test_while_the_engine_is_away_it_is_said_that_it_cannot_be_seen_whether_anything_is_left(
    fake: FakeEngine, driver: DockerDriver
) -> None:
    fake.hangs.add("json")
    with pytest.raises(Rejection, match="cannot see whether a recreation of iggy left a container: the Docker Engine"):
        await driver.tidy(None)
    fake.hangs.clear()
    fake.kept = "iggy.iggy-agent-kept"
    fake.hangs.add(KEPT)
    with pytest.raises(
        Rejection, match=r"cannot put iggy\.iggy-agent-kept away, .*: the Docker Engine cannot be asked"
    ):
        await driver.tidy(None)


async def test_a_start_that_hangs_is_not_made_again_by_itself(
    fake: FakeEngine, driver: DockerDriver, steps: Steps
) -> None:
    fake.hangs |= {"start", "json", "_ping"}
    fake.hangs.discard("json")
    refusal = asyncio.create_task(rejected(driver, "start", steps))
    async with asyncio.timeout(20):
        while "start" not in fake.calls:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0.01)
        fake.hangs.add("json")
        rejection = await refusal
    assert rejection.code is ReasonCode.DRIVER_UNAVAILABLE
    assert steps.words() == ["start!"]
    assert fake.calls.count("start") == 1


@pytest.mark.parametrize(
    ("verb", "endpoint", "status", "text", "code", "sentence"),
    [
        ("start", "start", 500, "something broke", ReasonCode.START_FAILED, "the Engine refused it: something broke"),
        ("start", "start", 404, "No such container: c0ff", ReasonCode.NOT_FOUND, "there is no container named iggy"),
        ("start", "start", 404, "Not Found", ReasonCode.START_FAILED, "this Engine does not know that call"),
        ("start", "start", 403, "denied", ReasonCode.NOT_PERMITTED, "it was forbidden"),
        ("start", "start", 500, "network abc not found", ReasonCode.START_FAILED, "a network that it is connected to"),
        ("start", "start", 500, "error setting rlimit type 8", ReasonCode.START_FAILED, "may not raise a limit"),
        ("stop", "stop", 500, "did not receive an exit event", ReasonCode.STOP_FAILED, "did not receive an exit event"),
        ("observe", "json", 500, "broken store", ReasonCode.DRIVER_UNAVAILABLE, "refused to say: broken store"),
    ],
)
async def test_each_refusal_is_a_sentence_of_its_own(
    fake: FakeEngine, driver: DockerDriver, verb: str, endpoint: str, status: int, text: str, code: str, sentence: str
) -> None:
    fake.running = verb == "stop"
    fake.fails[endpoint] = (status, text)
    with pytest.raises(Rejection) as refused:
        await (driver.observe() if verb == "observe" else getattr(driver, verb)(Steps()))
    assert refused.value.code == code
    assert sentence in refused.value.message


async def test_a_stop_that_leaves_it_running_has_failed(fake: FakeEngine, driver: DockerDriver, steps: Steps) -> None:
    await driver.start(Steps())

    async def nothing(_request: object) -> object:
        from aiohttp import web

        return web.Response(status=204)

    fake._stop = nothing  # type: ignore[method-assign,assignment]
    await fake.close()
    await fake.open()
    assert (await rejected(driver, "stop", steps)).code is ReasonCode.STOP_FAILED


@pytest.mark.parametrize(
    "odd",
    [
        {"status": "old"},
        {"Action": "start", "Actor": {"ID": "", "Attributes": {"name": "other"}}},
        {"Action": 7, "Actor": {"ID": "x", "Attributes": {"name": "other"}}},
        b"not json",
        None,
    ],
)
async def test_an_odd_event_and_the_end_of_the_stream_are_a_reason_to_look(
    fake: FakeEngine, driver: DockerDriver, odd: object
) -> None:
    async with asyncio.timeout(10):
        while fake.streams == 0:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0.01)
        await driver.wait_for_change()
        await driver.observe()
        fake.say(odd)
        await driver.wait_for_change()


async def test_the_events_of_other_containers_and_health_checks_are_no_reason_to_look(
    fake: FakeEngine, driver: DockerDriver
) -> None:
    async with asyncio.timeout(10):
        await driver.wait_for_change()
        await driver.observe()
        fake.say({"Action": "die", "Actor": {"ID": "x", "Attributes": {"name": "other"}}})
        fake.say({"Action": "exec_start: true", "Actor": {"ID": "x", "Attributes": {"name": "iggy"}}})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await driver.wait_for_change()
        fake.say({"Action": "something new", "Actor": {"ID": "x", "Attributes": {"name": "iggy"}}})
        await driver.wait_for_change()


async def test_a_stream_that_went_silent_is_opened_anew(fake: FakeEngine, folder: Path) -> None:
    async with driver_of(fake.address, "iggy", folder, silence=0.2):
        async with asyncio.timeout(10):
            while fake.streams < 3:  # noqa: ASYNC110 - the fake has no event for it
                await asyncio.sleep(0.02)


async def test_an_engine_of_another_version_that_comes_back_is_spoken_to_in_its_own(
    fake: FakeEngine, driver: DockerDriver
) -> None:
    await driver.observe()
    await fake.close()
    with pytest.raises(Rejection):
        await driver.observe()
    fake.api_version = "1.40"
    await fake.open()
    assert (await driver.observe()).state == "stopped"
    assert driver._engine._version == "1.40"


async def test_an_address_that_is_no_engine_is_unavailable(folder: Path) -> None:
    async with driver_of("tcp://127.0.0.1:1", "iggy", folder) as driver:
        with pytest.raises(Rejection) as refused:
            await driver.observe()
    assert refused.value.code is ReasonCode.DRIVER_UNAVAILABLE


async def test_the_engine_restarts_in_the_middle_of_each_part_of_a_recreation(folder: Path) -> None:
    """One effect, no container lost, no volume lost, also when dockerd goes away before each journaled call."""
    with running_engine() as engine:
        for call in ("recreate", "stop", "start"):
            await _restarted_before(engine, folder, call)
        await _restarted_while_it_stops(engine, folder)


async def _restarted_before(engine: RealEngine, folder: Path, call: str) -> None:
    name = a_name()
    engine.create(name, Labels={"com.laserdata.iggy-agent.config-sha256": "old"}, Volumes={"/data": {}})
    async with driver_of(engine.address, name, folder, start_timeout=60.0) as driver:
        await asyncio.to_thread(engine.api.start, name)
        first = await settled_as(driver, "running")
        volume = engine.inspect(name)["Mounts"][0]["Name"]
        words: list[str] = []
        comes_back: list[asyncio.Future[None]] = []

        async def record(step: Step) -> None:
            words.append(str(step.call))
            if step.call == call and words.count(call) == 1:
                await asyncio.to_thread(engine.stop)
                comes_back.append(asyncio.ensure_future(asyncio.to_thread(engine.start)))

        outcome = await driver.restart(record)
        await comes_back[0]
        assert outcome.before.incarnation == first.incarnation
        second = await settled_as(driver, "running")
        assert second.config_sha256 is None
        await driver.tidy(None)
        assert engine.names(name) == {name}
        found = engine.inspect(name)
        assert found["Mounts"][0]["Name"] == volume
        assert found["RestartCount"] == 0
        engine.clear(name)


async def _restarted_while_it_stops(engine: RealEngine, folder: Path) -> None:
    name = a_name()
    engine.create(name, DEAF, StopTimeout=1)
    async with driver_of(engine.address, name, folder, stop_timeout=30.0, start_timeout=60.0) as driver:
        await driver.start(Steps())
        first = await settled_as(driver, "running")
        steps = Steps()
        restart = asyncio.create_task(driver.restart(steps))
        await eventually(lambda: bool(steps))
        await asyncio.sleep(0.3)  # the stop is on its way in the Engine, and waits for the container
        await asyncio.to_thread(engine.stop)
        await asyncio.to_thread(engine.start)
        await restart
        assert steps.words() == ["stop", "start!"]
        second = await settled_as(driver, "running")
        assert second.incarnation != first.incarnation
        assert (await driver.observe()).incarnation == second.incarnation
    engine.clear(name)
