"""A container that is made again differs in nothing but what was asked: over 200 generated ones, on a real Engine."""

import asyncio
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent.runtimes.containers import OUR_LABELS, Container
from agent.runtimes.engine import Engine
from agent.runtimes.recipe import Target
from agent.runtimes.recreation import Do, Recreation, next_step
from tests.runtimes.engine_rig import IMAGE, RICH_IMAGE, RealEngine, a_name

pytestmark = pytest.mark.xdist_group("docker")

TOGETHER, TIMES = 8, 26
"""Containers that are made at a time, and how often: 208 in all."""
ITS_OWN = ("Id", "Created", "Name", "State", "LogPath", "HostnamePath", "HostsPath", "ResolvConfPath", "GraphDriver")


@dataclass(frozen=True)
class World:
    engine: RealEngine
    networks: tuple[str, str]
    other: str
    volume: str


@pytest.fixture(scope="module")
def world(engine: RealEngine) -> Iterator[World]:
    name = a_name()
    networks = (f"{name}-a", f"{name}-b")
    for number, network in enumerate(networks):
        ipam: Any = {"Config": [{"Subnet": f"10.213.{number}.0/24"}]}
        engine.api.create_network(network, driver="bridge", ipam=ipam)
    engine.create(f"{name}-other", Volumes={"/shared": {}}, Image=IMAGE)
    engine.api.create_volume(f"{name}-volume")
    yield World(engine, networks, f"{name}-other", f"{name}-volume")
    engine.clear(name)
    for network in networks:
        engine.api.remove_network(network)
    engine.api.remove_volume(f"{name}-volume", force=True)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


WORDS = st.text("abcxyz019-_", min_size=1, max_size=8)
TEXTS = st.text("abc ÄÖ=:,;'\"$\\/%{}", max_size=12)
MAPS = st.dictionaries(WORDS.map(lambda word: f"k.{word}"), TEXTS, max_size=3)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(["IGGY_HTTP_ADDRESS", "IGGY_OTHER", "PATH", "X"]), TEXTS, max_size=4
).map(lambda found: [f"{key}={value}" for key, value in found.items()])
PORTS = st.sampled_from(["8080/tcp", "8090/tcp", "53/udp"])
HEALTH: st.SearchStrategy[Any] = st.sampled_from(
    [
        {"Test": ["NONE"]},
        {"Test": ["CMD", "true"], "Interval": 10**9, "Timeout": 2 * 10**9, "Retries": 3, "StartPeriod": 10**9},
        {"Test": ["CMD-SHELL", "exit 0"]},
    ]
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "Image": st.sampled_from([IMAGE, RICH_IMAGE]),
        "Cmd": st.sampled_from([["/bin/sleep", "100"], ["/bin/sh", "-c", "echo 'a b'"], ["a"]]),
        "Entrypoint": st.sampled_from([["/bin/sh"], ["/bin/env", "-i"], []]),
        "Env": ENVIRONMENTS,
        "Labels": MAPS,
        "User": st.sampled_from(["0", "1000:1000", "nobody"]),
        "WorkingDir": st.sampled_from(["/tmp", "/data/x"]),
        "Hostname": st.sampled_from(["iggy", "node-1"]),
        "Domainname": st.sampled_from(["example.com"]),
        "StopSignal": st.sampled_from(["SIGINT", "SIGQUIT"]),
        "StopTimeout": st.integers(1, 60),
        "Tty": st.booleans(),
        "OpenStdin": st.booleans(),
        "Healthcheck": HEALTH,
        "ExposedPorts": st.dictionaries(PORTS, st.just({}), max_size=2),
        "Volumes": st.sampled_from([{"/data": {}}, {"/a": {}, "/b": {}}]),
        "MacAddress": st.sampled_from(["02:42:ac:11:00:07"]),
    },
)
LOGS = st.sampled_from(
    [
        {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "3"}},
        {"Type": "local", "Config": {}},
        {"Type": "none", "Config": {}},
    ]
)
POLICIES = st.sampled_from(
    [
        {"Name": "no", "MaximumRetryCount": 0},
        {"Name": "always", "MaximumRetryCount": 0},
        {"Name": "unless-stopped", "MaximumRetryCount": 0},
        {"Name": "on-failure", "MaximumRetryCount": 4},
    ]
)
HOSTS = st.fixed_dictionaries(
    {},
    optional={
        "RestartPolicy": POLICIES,
        "LogConfig": LOGS,
        "CapAdd": st.sampled_from([["SYS_NICE"], ["IPC_LOCK", "NET_ADMIN"]]),
        "CapDrop": st.sampled_from([["MKNOD"], ["ALL"]]),
        "SecurityOpt": st.sampled_from([["seccomp=unconfined"], ["no-new-privileges"]]),
        "Ulimits": st.sampled_from([[{"Name": "nofile", "Soft": 1024, "Hard": 2048}]]),
        "Devices": st.sampled_from(
            [[{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing", "CgroupPermissions": "rwm"}]]
        ),
        "DeviceCgroupRules": st.sampled_from([["c 1:3 rw"]]),
        "ExtraHosts": st.sampled_from([["db:10.0.0.1"], ["a:10.0.0.1", "b:10.0.0.2"]]),
        "Dns": st.sampled_from([["10.0.0.53"]]),
        "DnsSearch": st.sampled_from([["example.com"]]),
        "Memory": st.sampled_from([64 * 2**20]),
        "MemoryReservation": st.sampled_from([32 * 2**20]),
        "NanoCpus": st.sampled_from([500_000_000]),
        "PidsLimit": st.integers(10, 100),
        "CpuShares": st.sampled_from([512]),
        "CpusetCpus": st.sampled_from(["0"]),
        "OomScoreAdj": st.sampled_from([100]),
        "ShmSize": st.sampled_from([2**20]),
        "Init": st.booleans(),
        "Privileged": st.booleans(),
        "ReadonlyRootfs": st.booleans(),
        "GroupAdd": st.sampled_from([["100"], ["docker", "1"]]),
        "IpcMode": st.sampled_from(["private", "shareable", "host"]),
        "PidMode": st.sampled_from(["host"]),
        "Tmpfs": st.sampled_from([{"/run": "size=1m"}]),
        "PublishAllPorts": st.booleans(),
        "Runtime": st.just("runc"),
    },
)
BINDS = st.lists(
    st.sampled_from(["/etc:/host-etc:ro", "/tmp:/host-tmp:rshared", "VOLUME:/named", "VOLUME:/read:ro"]), unique=True
)
MOUNTS: st.SearchStrategy[Any] = st.lists(
    st.sampled_from(
        [
            {"Type": "volume", "Target": "/unnamed"},
            {"Type": "volume", "Source": "VOLUME", "Target": "/mounted", "VolumeOptions": {"NoCopy": True}},
            {"Type": "tmpfs", "Target": "/mem", "TmpfsOptions": {"SizeBytes": 65536}},
            {"Type": "bind", "Source": "/etc", "Target": "/etc-too", "ReadOnly": True},
        ]
    ),
    unique_by=lambda mount: mount["Target"],
)
NETWORKS = st.sampled_from(["host", "none", "own", "own-fixed", "two", "container"])


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what a container is made of; names of this test's own things are filled in later."""
    config = {"Image": IMAGE, "Cmd": ["/bin/sleep", "100"], **draw(CONFIGS)}
    host = {**draw(HOSTS), "Binds": draw(BINDS), "Mounts": draw(MOUNTS)}
    network = draw(NETWORKS)
    if host.get("MemoryReservation") and not host.get("Memory"):
        host.pop("MemoryReservation")
    if draw(st.booleans()):
        host["VolumesFrom"] = ["OTHER:ro" if draw(st.booleans()) else "OTHER"]
    if network.startswith(("own", "two")):
        ports = draw(st.lists(PORTS, unique=True, max_size=2))
        host["PortBindings"] = {port: [{"HostIp": "127.0.0.1", "HostPort": ""}] for port in ports}
    else:
        config.pop("MacAddress", None)
    if network == "container":
        for key in ("Hostname", "Domainname", "ExposedPorts"):
            config.pop(key, None)
        for key in ("ExtraHosts", "Dns", "DnsSearch", "PublishAllPorts"):
            host.pop(key, None)
        if config["Image"] == RICH_IMAGE:
            config["Image"] = IMAGE  # it exposes a port, which this mode refuses
    return {**config, "HostConfig": host, "network": network}


def filled_in(body: dict[str, Any], world: World, number: int) -> tuple[dict[str, Any], str | None]:
    """Name this test's own networks and volumes; returns the body, and a second network to connect to."""
    body = copy.deepcopy(body)
    host, network = body["HostConfig"], body.pop("network")
    host["Binds"] = [bind.replace("VOLUME", world.volume) for bind in host["Binds"]]
    for mount in host["Mounts"]:
        mount.update({"Source": world.volume} if mount.get("Source") == "VOLUME" else {})
    if "VolumesFrom" in host:
        host["VolumesFrom"] = [found.replace("OTHER", world.other) for found in host["VolumesFrom"]]
    own = world.networks[0]
    match network:
        case "container":
            host["NetworkMode"] = f"container:{world.engine.inspect(world.other)['Id']}"
        case "own" | "two" | "own-fixed":
            host["NetworkMode"] = own
            endpoint: dict[str, Any] = {"Aliases": ["an-alias"]}
            if network == "own-fixed":
                endpoint["IPAMConfig"] = {"IPv4Address": f"10.213.0.{100 + number}"}
            body["NetworkingConfig"] = {"EndpointsConfig": {own: endpoint}}
        case mode:
            host["NetworkMode"] = mode
    return body, world.networks[1] if network == "two" else None


def comparable(found: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is a container's own, and bring into one form what can be said in two ways."""
    data: dict[str, Any] = copy.deepcopy({key: value for key, value in found.items() if key not in ITS_OWN})
    config, host, short_id = data["Config"], data["HostConfig"], found["Id"][:12]
    config["Labels"] = {key: value for key, value in (config["Labels"] or {}).items() if key not in OUR_LABELS}
    config["Env"] = sorted(config["Env"] or [])
    if config["Hostname"] == short_id:
        config["Hostname"] = "its own"
    host["RestartPolicy"]["Name"] = host["RestartPolicy"]["Name"] or "no"
    for said_by_mounts in ("Binds", "Mounts", "VolumesFrom"):
        host.pop(said_by_mounts, None)
    data["Mounts"] = sorted(
        ({key: value for key, value in mount.items() if key != "Mode"} for mount in data["Mounts"]),
        key=lambda mount: str(mount["Destination"]),
    )
    data["Networks"] = {
        name: {
            "IPAMConfig": network["IPAMConfig"] or None,
            "Links": network["Links"],
            "Aliases": sorted(alias for alias in network["Aliases"] or [] if alias != short_id),
            "DriverOpts": network["DriverOpts"],
        }
        for name, network in data.pop("NetworkSettings")["Networks"].items()
    }
    return data


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Name each part that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [found for key in keys for found in differences(before.get(key), after.get(key), f"{path}.{key}")]
    return [] if before == after else [f"{path}: {before!r} != {after!r}"]


async def made_again(world: World, engine: Engine, body: dict[str, Any], number: int) -> None:
    api, name = world.engine.api, a_name()
    body, second = filled_in(body, world, number)
    try:
        await asyncio.to_thread(api.create_container_from_config, body, name)
        if second is not None:
            await asyncio.to_thread(api.connect_container_to_network, name, second, aliases=["second"])
        before = await asyncio.to_thread(world.engine.inspect, name)
        target = Target("a" * 64, {"IGGY_HTTP_ADDRESS": "127.0.0.1:3000", "IGGY_NEW": "ü b"})
        recreation = Recreation(engine, name)
        while step := next_step(await recreation.find(), target.sha256):
            assert step.do is not Do.STOP
            await recreation.carry_out(step, target)
        after = await asyncio.to_thread(world.engine.inspect, name)
        assert after["Id"] != before["Id"]
        expected = comparable(before)
        values = dict(line.partition("=")[::2] for line in expected["Config"]["Env"]) | dict(target.environment)
        expected["Config"]["Env"] = sorted(f"{key}={value}" for key, value in values.items())
        assert differences(expected, comparable(after)) == []
        if number % 2:
            return  # half of them go on, to no config at all
        back = Target(None, {})
        kept = await recreation.find()
        assert kept.kept is not None
        await engine.remove(kept.kept.id)
        while step := next_step(await recreation.find(), None):
            await recreation.carry_out(step, back)
        again = await asyncio.to_thread(world.engine.inspect, name)
        assert differences(comparable(before), comparable(again)) == []
        assert Container(again).variables == {}
    finally:
        await asyncio.to_thread(world.engine.clear, name)


@pytest.mark.timeout(300)
@settings(
    max_examples=TIMES,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.generate],  # to make a failing one smaller takes minutes, and its difference says enough
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(drawn=st.lists(bodies(), min_size=TOGETHER, max_size=TOGETHER))
def test_a_container_that_is_made_again_differs_in_nothing_but_what_was_asked(
    world: World, drawn: list[dict[str, Any]]
) -> None:
    async def all_of_them() -> None:
        engine = Engine("docker-test", world.engine.address)
        try:
            made = (made_again(world, engine, body, number) for number, body in enumerate(drawn))
            ended = await asyncio.gather(*made, return_exceptions=True)
        finally:
            engine.close()
        if errors := [error for error in ended if isinstance(error, Exception)]:
            what = "what differs"
            raise ExceptionGroup(what, errors)

    asyncio.run(all_of_them())
