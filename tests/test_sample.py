import json
import tomllib
from pathlib import Path

from agent.protocol import RuntimeName
from agent.settings import load


def test_the_sample_file_is_valid_as_it_is() -> None:
    sample = Path(__file__).parent.parent / "config" / "agent.toml"
    settings = load(config=sample, environ={}).settings
    assert set(settings.runtimes) == set(RuntimeName)


def test_every_comment_of_the_sample_file_is_a_valid_line() -> None:
    sample = (Path(__file__).parent.parent / "config" / "agent.toml").read_text()
    uncommented = [line.removeprefix("#") for line in sample.splitlines() if not line.startswith("# ")]
    values = tomllib.loads("\n".join(uncommented))
    iggy = values["runtimes"]["iggy"]
    assert set(values["agent"]) | {"probe"} >= {"state_dir", "socket", "retention_days"}
    assert iggy["command"] == ["iggy-server"]
    assert json.dumps(values)
