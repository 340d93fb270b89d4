"""The rules of settings, also those that span several keys."""

from pathlib import Path
from typing import Any

import pytest

from agent.errors import SettingsError
from agent.protocol import RuntimeName
from agent.settings import (
    Settings,
)
from tests.settings_files import GOOD, SECRET, Write, loaded, problems, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


RULES: list[tuple[str, str, str]] = [
    # key that is named, lines below [runtimes.iggy], what is said
    ("unit", 'driver = "systemd"', "cannot be missing: driver systemd needs it"),
    ("container", 'driver = "docker"', "cannot be missing: driver docker needs it"),
    ("command", 'driver = "process"', "cannot be missing: driver process needs it"),
    ("unit", 'driver = "docker"\ncontainer = "c"\nunit = "x.service"', "it is for driver systemd"),
    ("container", 'driver = "systemd"\nunit = "x.service"\ncontainer = "c"', "it is for driver docker"),
    ("owned", 'driver = "systemd"\nunit = "x.service"\nowned = false', "it is for driver process"),
    ("environment", 'driver = "systemd"\nunit = "x.service"\nenvironment = {}', "it is for driver process"),
    (
        "working_directory",
        'driver = "systemd"\nunit = "x.service"\nworking_directory = "/"',
        "it is for driver process",
    ),
    ("unit", 'driver = "systemd"\nunit = "iggy"', "has to end with .service"),
    ("unit", 'driver = "systemd"\nunit = "a b.service"', "letters, digits"),
    ("container", 'driver = "docker"\ncontainer = "-x"', "letters, digits"),
    ("command", 'driver = "process"\ncommand = []', "at least 1 item"),
    ("command.0", 'driver = "process"\ncommand = [""]', "at least 1 character"),
    ("command.1", 'driver = "process"\ncommand = ["a", "b\\nc"]', "cannot hold a newline"),
    ("environment.A-B", 'driver = "process"\ncommand = ["a"]\nenvironment = {"A-B" = "c"}', "cannot be a variable"),
    ("environment.A", 'driver = "process"\ncommand = ["a"]\nenvironment = {A = "\\u0000"}', "cannot hold a NUL"),
    ("environment.A", 'driver = "process"\ncommand = ["a"]\nenvironment = {A = 1}', "valid string"),
    ("working_directory", 'driver = "process"\ncommand = ["a"]\nworking_directory = "x"', "cannot be a relative path"),
    ("working_directory", 'driver = "process"\ncommand = ["a"]\nworking_directory = "/\\u0000"', "cannot hold a NUL"),
    ("action_timeout", 'driver = "docker"\ncontainer = "c"\naction_timeout = 159', "may take 160 s"),
    ("start_timeout", 'driver = "docker"\ncontainer = "c"\nstart_timeout = 0', "greater than 0"),
    ("start_timeout", 'driver = "docker"\ncontainer = "c"\nstart_timeout = inf', "less than or equal to 86400"),
    ("start_timeout", 'driver = "docker"\ncontainer = "c"\nstart_timeout = nan', "greater than 0"),
    ("start_timeout", 'driver = "docker"\ncontainer = "c"\nstart_timeout = true', "a number is needed"),
]

PROBES: list[tuple[str, str, str]] = [
    ("tcp", 'http = "http://h"\ntcp = "h:1"', "the probe has http already"),
    ("expect", 'tcp = "h:1"\nexpect = "x"', "it is for an http probe"),
    ("status", "status = 200", "it is for an http probe"),
    ("http", 'http = "ftp://h"', "it needs http:// or https://"),
    ("http", 'http = "http://"', "it needs http:// or https://"),
    ("http", 'http = "http://h:99999/"', "its host or port is malformed"),
    ("http", 'http = "http://h:0/"', "it needs http:// or https://"),
    ("http", 'http = "http://[::1/"', "its host or port is malformed"),
    ("http", 'http = "http://h/a b"', "a space or a control character"),
    ("http", f'http = "http://u:{SECRET}@h/"', "cannot hold a name or a password"),
    ("http", 'http = "http://h/#x"', "cannot have a fragment"),
    ("tcp", 'tcp = "8090"', "it has to be HOST:PORT"),
    ("tcp", 'tcp = "h:65536"', "it has to be HOST:PORT"),
    ("tcp", 'tcp = "::1:80"', "it has to be HOST:PORT"),
    ("attempt_timeout", 'tcp = "h:1"\nattempt_timeout = 60', "has to be less than ready_timeout, 60 s"),
    ("connectors", 'http = "http://h"\nconnectors = "warn"', "it is for runtime connectors"),
    ("api_key", f'http = "http://h"\napi_key = "{SECRET}"', "it is for runtime connectors"),
    ("stable_for", "stable_for = -1", "greater than or equal to 0"),
    ("status", 'http = "http://h"\nstatus = 99', "greater than or equal to 100"),
]


@pytest.mark.parametrize(("key", "lines", "said"), RULES)
def test_a_rule_of_a_runtime(write: Write, key: str, lines: str, said: str) -> None:
    found = problems(write(f'[supervisor]\nurl = "https://s"\n[runtimes.iggy]\n{lines}'))
    assert said in found[f"runtimes.iggy.{key}"].message


@pytest.mark.parametrize(("key", "lines", "said"), PROBES)
def test_a_rule_of_a_probe(write: Write, key: str, lines: str, said: str) -> None:
    found = problems(write(f"{GOOD}[runtimes.iggy.probe]\n{lines}"))
    assert said in found[f"runtimes.iggy.probe.{key}"].message


@pytest.mark.parametrize(
    "lines",
    ["", 'tcp = "[::1]:8090"', 'tcp = "localhost:1"', 'http = "https://[::1]:3000/ping?x=1"', "stable_for = 0"],
)
def test_a_good_probe_is_accepted(write: Write, lines: str) -> None:
    assert loaded(write(f"{GOOD}[runtimes.iggy.probe]\n{lines}")).settings.runtimes[RuntimeName.IGGY].probe is not None


def test_the_smallest_action_timeout_is_the_sum_of_its_parts_and_margins(write: Write) -> None:
    text = (
        f"{GOOD}stop_timeout = 1\nstart_timeout = 2\naction_timeout = %s\n"
        "[runtimes.iggy.probe]\nready_timeout = 4\nstable_for = 8\n"
    )
    assert loaded(write(text % 25)).settings.runtimes[RuntimeName.IGGY].action_timeout == 25
    assert "may take 25 s" in problems(write(text % 24.9))["runtimes.iggy.action_timeout"].message


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://127.8.9.1", "http://[::1]:80/x", "https://example.com:8443/sub"]
)
def test_an_url_of_a_supervisor_is_https_or_loopback(write: Write, url: str) -> None:
    assert loaded(write(GOOD), AGENT_SUPERVISOR__URL=url).settings.supervisor.url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1",
        "http://localhost.example.com",
        "http://example.com",
        "https://h?q=1",
        f"https://u:{SECRET}@h",
        "x",
    ],
)
def test_any_other_url_of_a_supervisor_is_refused(write: Write, url: str) -> None:
    assert "supervisor.url" in problems(write(GOOD), {"AGENT_SUPERVISOR__URL": url})


def test_a_socket_path_has_to_fit_into_a_socket_address(write: Write) -> None:
    assert "107 bytes" in problems(write(), {"AGENT_AGENT__SOCKET": "/" + "x" * 107})["agent.socket"].message
    assert loaded(write(), AGENT_AGENT__SOCKET="/" + "x" * 106).settings.agent.socket.name == "x" * 106


def test_settings_cannot_be_changed(write: Write) -> None:
    settings = loaded(write()).settings
    with pytest.raises(ValueError, match="frozen"):
        settings.agent.retention_days = 1  # type: ignore[misc] # that is the point


def test_the_model_checks_its_rules_without_any_file_too() -> None:
    values: dict[str, Any] = {
        "supervisor": {"url": "https://s"},
        "agent": {"state_dir": "/s", "socket": "/s/s"},
        "runtimes": {"iggy": {"driver": "docker"}},
    }
    with pytest.raises(ValueError, match="cannot be missing: driver docker needs it"):
        Settings(**values)


def test_the_error_prints_as_lines_with_hints(write: Write) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(write("[supervisor]\nurl = 'x'"))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("agent.toml: supervisor.url: cannot be a URL: it needs http:// or https://, and a host")
    assert lines[1].startswith("  hint: such as https://")
