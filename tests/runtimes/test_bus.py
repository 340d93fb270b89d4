"""The connection to the bus: made again whatever happens to it, and no call waits for ever."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dbus_fast import Message
from dbus_fast.aio import MessageBus

from agent.runtimes import bus as buses
from agent.runtimes.bus import AwayError, RefusedError, SystemdBus, signal_rule
from agent.runtimes.jobs import KEPT, Jobs
from tests.fakes.systemd import FakeSystemd, PrivateBus, refuse
from tests.runtimes.conftest import eventually

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[SystemdBus]:
    bus = SystemdBus(address)
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()
        await bus.close()


@asynccontextmanager
async def impostor(folder: Path, serve: Serve) -> AsyncIterator[str]:
    """Something that is no bus, at the address of one."""
    path = folder / "impostor"
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix:path={path}"
    finally:
        server.close()


async def test_a_bus_that_does_not_answer_is_given_up_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(1)
        await reader.read()
        writer.close()

    monkeypatch.setattr(buses, "CONNECT_TIMEOUT", 0.1)
    async with impostor(tmp_path, silent) as address, connected(address) as bus:
        with pytest.raises(AwayError, match=r"did not answer within 0\.1 s") as caught:
            await bus.call("StartUnit")
        assert not caught.value.uncertain
        await eventually(lambda: len(tries) > 1)


async def test_what_is_no_bus_is_as_good_as_none(tmp_path: Path) -> None:
    async def rude(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n")
        writer.close()

    async with impostor(tmp_path, rude) as address, connected(address) as bus:
        with pytest.raises(AwayError, match="cannot connect to the bus"):
            await bus.call("StartUnit")


@pytest.mark.parametrize("address", ["nonsense", "carrier-pigeon:path=/x"])
async def test_an_address_that_is_none_does_not_end_the_agent(address: str) -> None:
    async with connected(address) as bus:
        with pytest.raises(AwayError):
            await bus.call("StartUnit")


async def test_a_call_is_bounded(systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "CALL_TIMEOUT", 0.1)
    systemd.on["StartUnit"] = lambda _call: None
    async with connected(systemd.address) as bus:
        with pytest.raises(AwayError) as caught:
            await bus.call("StartUnit", "ss", "iggy.service", "fail")
        assert caught.value.uncertain


async def test_a_reading_is_bounded_more_tightly(systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "READ_TIMEOUT", 0.1)
    systemd.on["GetAll"] = lambda _call: None
    async with connected(systemd.address) as bus, asyncio.timeout(10):
        with pytest.raises(AwayError, match=r"no answer to GetAll within 0\.1 s"):
            await bus.call("GetAll", "s", "", path="/x", interface=buses.PROPERTIES)


async def test_a_fault_of_ours_does_not_end_the_connecting(
    systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = SystemdBus._connect
    faults = [RuntimeError("a fault")]

    async def faulty(self: SystemdBus) -> MessageBus:
        if faults:
            raise faults.pop()
        return await connect(self)

    monkeypatch.setattr(SystemdBus, "_connect", faulty)
    async with connected(systemd.address) as bus:
        await bus.wait_until_up(10)
        await bus.call("RefUnit", "s", "iggy.service")


async def test_a_systemd_that_will_not_be_subscribed_to_is_asked_again(
    systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses, "LONGEST_PAUSE", 0.05)
    systemd.on["Subscribe"] = refuse("org.freedesktop.DBus.Error.AccessDenied", "not now")
    async with connected(systemd.address) as bus:
        with pytest.raises(AwayError, match="not now"):
            await bus.call("RefUnit", "s", "iggy.service")
        systemd.on["Subscribe"] = refuse("org.freedesktop.systemd1.AlreadySubscribed")
        await bus.wait_until_up(10)
        await bus.call("RefUnit", "s", "iggy.service")


async def test_waiting_for_systemd_is_bounded(tmp_path: Path) -> None:
    async with connected(f"unix:path={tmp_path}/none") as bus, asyncio.timeout(10):
        await bus.wait_until_up(0.05)


async def test_an_error_without_words_is_told_by_its_name(systemd: FakeSystemd) -> None:
    systemd.on["StartUnit"] = lambda call: Message.new_error(call, "org.example.Odd", "")
    async with connected(systemd.address) as bus:
        with pytest.raises(RefusedError) as caught:
            await bus.call("StartUnit", "ss", "iggy.service", "fail")
        assert caught.value.name == "org.example.Odd"


async def test_signals_that_are_asked_for_later_are_asked_for_at_each_connection(
    bus: PrivateBus, systemd: FakeSystemd
) -> None:
    heard: list[str] = []
    rule = signal_rule(member="UnitNew")
    connection = SystemdBus(bus.address)
    connection.listen(lambda _path, member, _body: heard.append(member), lambda: None)
    await connection.watch(rule)
    await connection.open()
    await connection.watch(rule)
    try:
        systemd.signal("UnitNew", "so", "a.service", "/a")
        await eventually(lambda: heard == ["UnitNew"])
    finally:
        await connection.close()


async def test_a_bus_that_would_not_send_more_signals_is_connected_to_anew(
    systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    asked = buses._match

    async def refused(*_: object) -> None:
        monkeypatch.setattr(buses, "_match", asked)
        cause = "no answer"
        raise AwayError(cause)

    async with connected(systemd.address) as connection:
        connection.listen(lambda _path, member, _body: heard.append(member), lambda: None)
        monkeypatch.setattr(buses, "_match", refused)
        await connection.watch(signal_rule(member="UnitNew"))
        await eventually(lambda: connection.session == 2)
        systemd.signal("UnitNew", "so", "a.service", "/a")
        await eventually(lambda: heard == ["UnitNew"])


async def test_a_connection_ends_when_all_who_opened_it_have_closed_it(systemd: FakeSystemd) -> None:
    bus = SystemdBus(systemd.address)
    await bus.open()
    await bus.open()
    await bus.close()
    await bus.call("Subscribe")
    await bus.close()
    with pytest.raises(AwayError):
        await bus.call("Subscribe")


def test_results_of_jobs_are_bounded() -> None:
    jobs = Jobs()
    for number in range(KEPT + 1):
        jobs.removed(f"/job/{number}", "done")
    assert jobs.result("/job/0") is None
    assert jobs.result("/job/1") == "done"
    assert jobs.result(None) is None
