import json
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.cli.polkit_rule import SERVICE_USER, VERBS, default_user, make_rule
from agent.errors import SettingsError
from tests.cli.conftest import Here

SETTINGS = """
[supervisor]
url = "https://supervisor.example.com"
[runtimes.iggy]
driver = "systemd"
unit = "iggy@main.service"
[runtimes.connectors]
driver = "{driver}"
{key}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(SETTINGS.format(driver="systemd", key='unit = "iggy-connectors.service"'))
    return file


def test_the_rule_is_for_exactly_the_units_of_the_settings(here: Here, settings: Path) -> None:
    result = here("polkit-rule", "--config", str(settings), "--user", "agent-of-ours")
    assert result.code == 0
    assert result.out == make_rule("agent-of-ours", ["iggy-connectors.service", "iggy@main.service"]) + "\n"


def test_a_runtime_of_another_driver_is_not_in_the_rule(here: Here, settings: Path) -> None:
    settings.write_text(SETTINGS.format(driver="process", key='command = ["iggy-connectors"]'))
    answer = here("polkit-rule", "--config", str(settings), "--user", "someone", "--format", "json").json()
    assert (answer["user"], answer["units"], answer["verbs"]) == ("someone", ["iggy@main.service"], list(VERBS))
    assert '["iggy@main.service"]' in answer["rule"]


def test_without_a_unit_there_is_no_rule(here: Here, settings: Path) -> None:
    settings.write_text(
        '[supervisor]\nurl = "https://s.example.com"\n[runtimes.iggy]\ndriver = "process"\ncommand = ["i"]'
    )
    result = here("polkit-rule", "--config", str(settings))
    assert result.code == 78
    assert result.out == ""
    assert "cannot make a rule: no runtime is managed through systemd" in result.err


def test_for_root_it_is_the_rule_of_the_shipped_unit() -> None:
    assert default_user(0) == SERVICE_USER
    with pytest.raises(SettingsError, match="user 4000000001 has no name"):
        default_user(4_000_000_001)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no JavaScript interpreter here")
@pytest.mark.parametrize(
    ("user", "action", "unit", "verb", "answer"),
    [
        ("a", "org.freedesktop.systemd1.manage-units", "iggy.service", "restart", "yes"),
        ("a", "org.freedesktop.systemd1.manage-units", "iggy.service", "kill", "no"),
        ("a", "org.freedesktop.systemd1.manage-units", "sshd.service", "restart", "no"),
        ("a", "org.freedesktop.systemd1.reload-daemon", None, None, "no"),
        ("b", "org.freedesktop.systemd1.manage-units", "iggy.service", "restart", None),
    ],
)
def test_how_the_rule_decides(user: str, action: str, unit: str | None, verb: str | None, answer: str | None) -> None:
    asked = {"id": action, "unit": unit, "verb": verb}
    program = f"""
        const asked = {json.dumps(asked)};
        const polkit = {{
            Result: {{YES: "yes", NO: "no", NOT_HANDLED: null}},
            addRule: decide => console.log(JSON.stringify(
                decide({{id: asked.id, lookup: key => asked[key]}}, {{user: {json.dumps(user)}}})
            )),
        }};
        {make_rule("a", ["iggy.service"])}
    """
    ran = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=20)
    assert json.loads(ran.stdout) == answer
