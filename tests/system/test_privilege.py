import pytest

from agent.protocol import RuntimeName
from tests.system.node import UNIT, Node

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
RUNTIMES = "/var/lib/iggy-agent/runtimes"
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
REFUSED = ("Access denied", "Interactive authentication required", "Permission denied")


def call(node: Node, *arguments: str, user: str = "iggy-agent") -> str:
    """Call systemd over the bus as a user; empty when it obeyed, else the words of its refusal."""
    done = node.system.run("busctl", "call", *MANAGER, *arguments, user=user, check=False)
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("unit", list(UNIT.values()))
async def test_the_agents_user_may_do_what_its_driver_does_to_the_units_of_the_settings(node: Node, unit: str) -> None:
    for verb in ("StartUnit", "RestartUnit", "StopUnit"):
        assert call(node, verb, "ss", unit, "replace") == ""
    assert call(node, "ResetFailedUnit", "s", unit) == ""
    assert call(node, "RefUnit", "s", unit) == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("ReloadUnit", "ss", "iggy.service", "replace"),
        ("KillUnit", "ssi", "iggy.service", "all", "9"),
        ("FreezeUnit", "s", "iggy.service"),
        ("SetUnitProperties", "sba(sv)", "iggy.service", "true", "1", "MemoryMax", "t", "1000"),
        ("MaskUnitFiles", "asbb", "1", "iggy.service", "true", "true"),
        ("EnableUnitFiles", "asbb", "1", "iggy.service", "true", "true"),
    ],
    ids=lambda arguments: arguments[0],
)
async def test_it_may_do_nothing_else_to_them(node: Node, arguments: tuple[str, ...]) -> None:
    assert any(words in call(node, *arguments) for words in REFUSED), call(node, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("StartUnit", "ss", "systemd-tmpfiles-clean.service", "replace"),
        ("StopUnit", "ss", "systemd-journald.service", "replace"),
        ("RestartUnit", "ss", "iggy-agent.service", "replace"),
        ("StartUnit", "ss", "iggy.service.evil.service", "replace"),
        ("StartTransientUnit", "ssa(sv)a(sa(sv))", "evil.service", "replace", "0", "0"),
        ("Reload",),
        ("Reboot",),
        ("SetEnvironment", "as", "1", "LD_PRELOAD=evil.so"),
    ],
    ids=lambda arguments: f"{arguments[0]}-{arguments[2]}" if len(arguments) > 2 else arguments[0],
)
async def test_it_may_do_nothing_to_anything_else(node: Node, arguments: tuple[str, ...]) -> None:
    assert any(words in call(node, *arguments) for words in REFUSED), call(node, *arguments)


async def test_nobody_else_may_do_what_the_agent_may(node: Node) -> None:
    for user in ("iggy", "iggy-connectors", "daemon"):
        refused = call(node, "RestartUnit", "ss", "iggy.service", "replace", user=user)
        assert any(words in refused for words in REFUSED), refused


@pytest.mark.parametrize(
    ("runtime", "user", "other"), [(IGGY, "iggy", CONNECTORS), (CONNECTORS, "iggy-connectors", IGGY)]
)
async def test_a_runtime_reads_its_own_config_and_nothing_else_of_the_agents(
    node: Node, runtime: RuntimeName, user: str, other: RuntimeName
) -> None:
    for one, name in ((IGGY, "IGGY_SYSTEM_LOGGING_LEVEL"), (CONNECTORS, "IGGY_CONNECTORS_LOGGING_FORMAT")):
        await node.api.run(one, "stop")
        config = await node.api.create_config(one, f"of-{user}", {name: "info"}, {"config.toml": "# its own\n"})
        applied = await node.api.run(one, f"reconfigure:{config}")
        assert applied.status == "completed", applied.message

    def may(command: str, path: str) -> bool:
        return node.system.run(command, path, user=user, check=False).returncode == 0

    for own in ("environment", "files/config.toml", "release.json"):
        assert may("cat", f"{RUNTIMES}/{runtime}/current/{own}"), own
        assert not may("cat", f"{RUNTIMES}/{other}/current/{own}"), own
    for folder in ("/var/lib/iggy-agent", RUNTIMES, f"{RUNTIMES}/{other}", "/run/iggy-agent"):
        assert not may("ls", folder), folder
    for file in (
        "/var/lib/iggy-agent/journal.db",
        "/var/lib/iggy-agent/identity.json",
        "/etc/iggy-agent/agent.toml",
        "/etc/credstore/enrollment_token",
    ):
        assert not may("cat", file), file
    assert not may("touch", f"{RUNTIMES}/{runtime}/current/environment")
    assert may("ls", f"{RUNTIMES}/{runtime}"), "its own folder"
