import json
from pathlib import Path

import pytest

from tests.cli.conftest import Here

SECRET = "do-not-print-me-7Qx"

GOOD = f"""
[supervisor]
url = "https://supervisor.example.com"
[runtimes.iggy]
driver = "process"
command = ["iggy-server", "--password={SECRET}"]
[runtimes.iggy.environment]
IGGY_ROOT_PASSWORD = "{SECRET}"
IGGY_SYSTEM_ENCRYPTION_KEY = "{SECRET[::-1]}"
RUST_LOG = "info"
[runtimes.connectors]
driver = "docker"
container = "connectors"
[runtimes.connectors.probe]
http = "http://127.0.0.1:8081/health"
api_key = "{SECRET}"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD)
    return path


def test_valid_settings_say_which_files_they_come_from(here: Here, config: Path) -> None:
    result = here("check-config", "--config", str(config))
    assert (result.code, result.out, result.err) == (0, f"the settings are valid: {config}\n", "")


def test_all_settings_in_force_are_printed_with_their_source_and_without_secrets(here: Here, config: Path) -> None:
    result = here("check-config", "--config", str(config), "--print", AGENT_AGENT__RETENTION_DAYS="7")
    assert result.code == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in result.out.splitlines()[2:]}
    assert rows["agent.retention_days"] == ["7", "environment AGENT_AGENT__RETENTION_DAYS"]
    assert rows["agent.retention_count"] == ["10000", "default"]
    assert rows["runtimes.connectors.probe.api_key"] == ['"[redacted]"', str(config)]
    assert rows["runtimes.iggy.environment.IGGY_ROOT_PASSWORD"] == ['"[redacted]"', str(config)]
    assert rows["runtimes.iggy.environment.IGGY_SYSTEM_ENCRYPTION_KEY"] == ['"[redacted]"', str(config)]
    assert rows["runtimes.iggy.environment.RUST_LOG"] == ['"info"', str(config)]
    assert SECRET not in result.out + result.err
    assert SECRET[::-1] not in result.out


def test_the_same_as_json(here: Here, config: Path) -> None:
    result = here("check-config", "--config", str(config), "--print", "--format", "json")
    answer = result.json()
    assert answer["valid"] is True
    assert answer["files"] == [str(config)]
    assert answer["settings"]["supervisor.url"] == {"value": "https://supervisor.example.com", "source": str(config)}
    assert answer["settings"]["supervisor.ca_file"] == {"value": None, "source": "default"}
    assert SECRET not in result.out
    assert "settings" not in (here("check-config", "--config", str(config), "--format", "json")).json()


def test_wrong_settings_are_exit_code_78_with_every_problem(here: Here, config: Path) -> None:
    config.write_text(GOOD.replace("driver", "drivr"))
    result = here("check-config", "--config", str(config))
    assert result.code == 78
    assert result.out == ""
    assert f"iggy-agent: {config}: runtimes.iggy.driver: cannot be missing" in result.err
    assert result.err.count("did you mean driver?") == 2
    assert SECRET not in result.err
    result = here("check-config", "--config", str(config), "--format", "json")
    answer = result.json()
    assert (result.code, answer["valid"]) == (78, False)
    assert {problem["key"] for problem in answer["problems"]} >= {"runtimes.iggy.drivr", "runtimes.connectors.drivr"}
    assert SECRET not in json.dumps(answer)


def test_settings_can_come_from_the_environment_alone(here: Here, tmp_path: Path) -> None:
    result = here(
        "check-config",
        CONFIGURATION_DIRECTORY=str(tmp_path),
        AGENT_SUPERVISOR__URL="https://supervisor.example.com",
        AGENT_RUNTIMES__IGGY__DRIVER="docker",
        AGENT_RUNTIMES__IGGY__CONTAINER="iggy",
    )
    assert (result.code, result.out) == (0, "the settings are valid: no file, environment only\n")
