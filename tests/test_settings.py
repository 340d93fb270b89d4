from pathlib import Path

import pytest

from agent.protocol import DriverKind, RuntimeName
from agent.settings import (
    ConnectorsRule,
    InvalidSettingsError,
    load,
    load_connection,
    read_credential,
)
from tests.settings_files import GOOD, SECRET, Write, loaded, problems, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


# --- where a value comes from


def test_defaults_are_as_documented_and_satisfy_the_rules(write: Write) -> None:
    settings = loaded(write()).settings
    iggy = settings.runtimes[RuntimeName.IGGY]
    assert (iggy.start_timeout, iggy.stop_timeout, iggy.action_timeout) == (90, 60, 300)
    assert settings.agent.shutdown_grace == 20
    assert (settings.agent.retention_days, settings.agent.retention_count) == (30, 10_000)
    assert settings.supervisor.url == "https://supervisor.example.com"
    assert iggy.probe is None
    assert iggy.owned is False


@pytest.mark.parametrize(("before", "key"), [("", '""'), ("[supervisor]\n", 'supervisor.""')])
def test_a_name_that_is_empty_is_named_all_the_same(write: Write, before: str, key: str) -> None:
    text = GOOD.replace("[supervisor]\n", f'{before}"" = true\n', 1) if before else '"" = true\n' + GOOD
    config = write(text)
    assert str(problems(config)[key]) == f"{config}: {key}: cannot use it: no such setting"


@pytest.mark.parametrize(
    "name", ["_env_file", "_cli_parse_args", "_secrets_dir", "self", "_build_sources", "model_config"]
)
def test_a_name_that_means_something_to_the_library_is_no_setting(write: Write, name: str) -> None:
    config = write(f"{name} = '/etc/passwd'\n" + GOOD)
    assert str(problems(config)[name]) == f"{config}: {name}: cannot use it: no such setting"


def test_a_probe_table_has_defaults_of_its_own_that_fit_the_action(write: Write) -> None:
    probe = (
        loaded(write(GOOD + '[runtimes.iggy.probe]\nhttp = "http://127.0.0.1:3000/ping"'))
        .settings.runtimes[RuntimeName.IGGY]
        .probe
    )
    assert probe is not None
    assert (probe.status, probe.attempt_timeout, probe.ready_timeout, probe.stable_for) == (200, 2, 60, 1)
    assert probe.connectors is ConnectorsRule.WARN


def test_each_source_wins_over_the_one_below_and_is_named(write: Write, tmp_path: Path) -> None:
    config = write(GOOD + "[agent]\nretention_days = 1\nretention_count = 1\nshutdown_grace = 1\nlog_level = 'debug'\n")
    first = write("[agent]\nretention_count = 2\nshutdown_grace = 2\nlog_level = 'error'", name="conf.d/10-a.toml")
    second = write("[agent]\nretention_count = 3", name="conf.d/20-b.toml")
    write("[agent]\nretention_count = 4", name="conf.d/30-not-ours.toml.bak")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "agent__shutdown_grace").write_text("4\n")
    (credentials / "agent__log_level").write_text("warning")
    result = load(
        config=config,
        environ={"CREDENTIALS_DIRECTORY": str(credentials), "AGENT_AGENT__LOG_LEVEL": "info"},
        flags={"agent.log_format": "text"},
    )
    agent = result.settings.agent
    assert (agent.retention_days, agent.retention_count, agent.shutdown_grace) == (1, 3, 4)
    assert (agent.log_level, agent.log_format) == ("info", "text")
    assert result.files == (config, first, second)
    keys = ["retention_days", "retention_count", "shutdown_grace", "log_level", "log_format", "state_dir"]
    assert {key: result.sources[f"agent.{key}"] for key in keys} == {
        "retention_days": str(config),
        "retention_count": str(second),
        "shutdown_grace": "credential agent__shutdown_grace",
        "log_level": "environment AGENT_AGENT__LOG_LEVEL",
        "log_format": "flag --log-format",
        "state_dir": "default",
    }


def test_a_drop_in_adds_to_a_table_and_does_not_replace_it(write: Write) -> None:
    config = write()
    write('[runtimes.iggy]\nstop_timeout = 70\n[runtimes.iggy.probe]\ntcp = "127.0.0.1:8090"', name="conf.d/p.toml")
    iggy = loaded(config).settings.runtimes[RuntimeName.IGGY]
    assert (iggy.unit, iggy.stop_timeout) == ("iggy.service", 70)
    assert iggy.probe is not None
    assert iggy.probe.tcp == "127.0.0.1:8090"


def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    result = loaded(
        None,
        CONFIGURATION_DIRECTORY=str(tmp_path),
        AGENT_SUPERVISOR__URL="http://127.0.0.1:8000",
        AGENT_SUPERVISOR__CA_FILE="",
        AGENT_RUNTIMES__IGGY__DRIVER="process",
        AGENT_RUNTIMES__IGGY__COMMAND='["iggy-server", "--fresh"]',
        AGENT_RUNTIMES__IGGY__OWNED="true",
        AGENT_RUNTIMES__IGGY__ENVIRONMENT__IGGY_HTTP_ADDRESS="127.0.0.1:3000",
        AGENT_RUNTIMES__IGGY__ENVIRONMENT__JSON_LIKE='{"a": 1}',
        AGENT_RUNTIMES__CONNECTORS='{"driver": "docker", "container": "connectors"}',
    )
    iggy = result.settings.runtimes[RuntimeName.IGGY]
    assert iggy.command == ["iggy-server", "--fresh"]
    assert iggy.environment == {"IGGY_HTTP_ADDRESS": "127.0.0.1:3000", "JSON_LIKE": '{"a": 1}'}
    assert iggy.owned is True
    assert result.settings.supervisor.ca_file is None
    assert result.settings.runtimes[RuntimeName.CONNECTORS].driver is DriverKind.DOCKER
    assert result.sources["runtimes.connectors.container"] == "environment AGENT_RUNTIMES__CONNECTORS"
    assert result.files == ()


def test_a_secret_comes_from_a_credential_and_is_never_shown(write: Write, tmp_path: Path) -> None:
    config = write(
        GOOD
        + '[runtimes.connectors]\ndriver = "docker"\ncontainer = "c"\n'
        + '[runtimes.connectors.probe]\nhttp = "http://127.0.0.1:8081/health"'
    )
    (tmp_path / "runtimes__connectors__probe__api_key").write_text(f"{SECRET}\n")
    (tmp_path / "enrollment_token").write_text(SECRET)
    (tmp_path / "of-somebody-else").write_text(SECRET)
    settings = loaded(config, CREDENTIALS_DIRECTORY=str(tmp_path)).settings
    assert settings.secret_values() == [SECRET]
    assert SECRET not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()


def test_secrets_in_the_environment_table_are_known_and_not_in_a_repr(tmp_path: Path) -> None:
    settings = loaded(
        None,
        CONFIGURATION_DIRECTORY=str(tmp_path),
        AGENT_SUPERVISOR__URL="https://s",
        AGENT_RUNTIMES__IGGY__DRIVER="process",
        AGENT_RUNTIMES__IGGY__COMMAND='["x"]',
        AGENT_RUNTIMES__IGGY__ENVIRONMENT__IGGY_ROOT_PASSWORD=SECRET,
        AGENT_RUNTIMES__IGGY__ENVIRONMENT__RUST_LOG="info",
    ).settings
    assert settings.secret_values() == [SECRET]
    assert SECRET not in repr(settings)


def test_enrolling_needs_no_runtimes_yet(tmp_path: Path) -> None:
    connection = load_connection(
        config=None,
        environ={"CONFIGURATION_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": str(tmp_path / "state")},
        flags={"supervisor.url": "https://supervisor.example.com"},
    )
    assert connection.supervisor.url == "https://supervisor.example.com"
    assert connection.agent.state_dir == tmp_path / "state"
    with pytest.raises(InvalidSettingsError, match=r"flag --url: supervisor\.url: cannot"):
        load_connection(config=None, environ={}, flags={"supervisor.url": "ftp://x"})


# --- what is wrong is named, all of it


def test_a_missing_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    found = problems(tmp_path / "absent.toml")
    assert found[""].source == str(tmp_path / "absent.toml")
    assert found[""].message == "cannot read it: no such file or directory"
    assert "supervisor.url" not in found


def test_without_any_file_the_needed_keys_are_named_with_the_place_to_write_them(tmp_path: Path) -> None:
    found = problems(None, {"CONFIGURATION_DIRECTORY": str(tmp_path)})
    assert set(found) == {"supervisor.url", "runtimes"}
    assert found["supervisor.url"].source == str(tmp_path / "agent.toml")
    assert "[runtimes.iggy]" in (found["runtimes"].hint or "")


def test_every_problem_is_listed_with_its_file_and_key_at_once(write: Write) -> None:
    config = write(
        f"""
        [supervisor]
        url = "http://supervisor.example.com/{SECRET}"
        ulr = "{SECRET}"
        [agent]
        retention_days = "{SECRET}"
        [runtimes.igy]
        driver = "systemd"
        unit = "iggy.service"
        [runtimes.iggy]
        driver = "{SECRET}"
        [runtimes.connectors]
        driver = "docker"
        unit = "x.service"
        start_timeout = 500
        """
    )
    drop_in = write(f'[runtimes.iggy.probe]\napi_kye = "{SECRET}"', name="conf.d/50-x.toml")
    found = problems(config, {"AGENT_AGENT__SHUTDOWN_GRACE": SECRET})
    assert set(found) == {
        "supervisor.url",
        "supervisor.ulr",
        "agent.retention_days",
        "agent.shutdown_grace",
        "runtimes.igy",
        "runtimes.iggy.driver",
        "runtimes.iggy.probe.api_kye",
        "runtimes.connectors.container",
        "runtimes.connectors.unit",
        "runtimes.connectors.action_timeout",
    }
    assert found["supervisor.ulr"].hint == "did you mean url?"
    assert found["runtimes.igy"].hint == "did you mean iggy?"
    assert found["runtimes.iggy.probe.api_kye"].hint == "did you mean api_key?"
    assert found["runtimes.iggy.probe.api_kye"].source == str(drop_in)
    assert found["agent.shutdown_grace"].source == "environment AGENT_AGENT__SHUTDOWN_GRACE"
    assert found["supervisor.url"].source == str(config)
    assert str(found["supervisor.ulr"]) == f"{config}: supervisor.ulr: cannot use it: no such setting"


def test_a_key_that_is_like_no_other_gets_the_list_of_known_ones(write: Write) -> None:
    found = problems(write(GOOD + "zzz = 1\n[xyzzy]\n[runtimes.qqqqqq]\ndriver='docker'\ncontainer='c'"))
    assert "unit" in (found["runtimes.iggy.zzz"].hint or "")
    assert "supervisor" in (found["xyzzy"].hint or "")
    assert found["runtimes.qqqqqq"].hint == "known: iggy, connectors"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[supervisor\n", "cannot parse it as TOML: expected"),
        (b"x = \xff", "cannot read it: not UTF-8"),
        (b"x = " + b"[" * 100_000, "cannot parse it as TOML: it is nested too deeply"),
        (b"x = " + b"9" * 5_000, "cannot parse it as TOML: a number in it has too many digits"),
        (b".".join([b"a"] * 100_000) + b" = 1", "cannot parse it as TOML: a name has more than 32 dots"),
    ],
)
def test_a_file_that_is_not_toml_is_named_and_hides_what_it_may_hold(
    write: Write, tmp_path: Path, content: bytes, message: str
) -> None:
    config = write()
    write("[agent]\nretention_days = 0", name="conf.d/20-x.toml")
    (tmp_path / "conf.d" / "10-broken.toml").write_bytes(content)
    found = problems(config)
    assert found[""].source.endswith("10-broken.toml")
    assert found[""].message.startswith(message)
    assert "agent.retention_days" in found


def test_a_place_that_cannot_be_read_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    assert problems(tmp_path / "folder.toml")[""].message == "cannot read it: is a directory"
    config = write()
    (tmp_path / "conf.d" / "x.toml").mkdir(parents=True)
    assert problems(config)[""].source.endswith("x.toml")
    looping = write(name="b/agent.toml")
    (tmp_path / "b" / "conf.d").symlink_to("conf.d")
    assert problems(looping)[""].source == str(tmp_path / "b" / "conf.d")
    found = problems(None, {"CONFIGURATION_DIRECTORY": "/proc/self/mem"})
    assert "not a directory" in found[""].message
    found = problems(write(name="a/agent.toml"), {"CREDENTIALS_DIRECTORY": str(tmp_path / "absent")})
    assert found[""].source == str(tmp_path / "absent")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("AGENT_SUPERVISR__URL", "did you mean AGENT_SUPERVISOR__URL?"),
        ("AGENT_SUPERVISOR_URL", "did you mean AGENT_SUPERVISOR__URL?"),
        ("AGENT_Q", "a setting's variable is AGENT_SECTION__KEY, such as AGENT_SUPERVISOR__URL"),
        ("AGENT_RUNTIMES", "a setting's variable is AGENT_SECTION__KEY, such as AGENT_SUPERVISOR__URL"),
    ],
)
def test_a_variable_that_is_no_setting_is_an_error(write: Write, variable: str, hint: str) -> None:
    found = problems(write(), {variable: SECRET})
    assert found[""].source == f"environment {variable}"
    assert found[""].hint == hint


def test_a_variable_whose_key_is_unknown_or_whose_json_is_broken_is_named(write: Write) -> None:
    found = problems(
        write(),
        {
            "AGENT_SUPERVISOR__URLL": SECRET,
            "AGENT_RUNTIMES__IGGY__COMMAND": SECRET,
            "AGENT_RUNTIMES__IGGY__PROBE": f"{{{SECRET}",
            "AGENT_RUNTIMES__IGGY__ENVIRONMENT__9X": SECRET,
            "AGENT_RUNTIMES__CONNECTORS__ENVIRONMENT": f"{{{SECRET}",
        },
    )
    assert found["runtimes.connectors.environment"].message == "cannot parse it: a list or a table has to be JSON"
    assert found["supervisor.urll"].source == "environment AGENT_SUPERVISOR__URLL"
    assert found["runtimes.iggy.command"].source == "environment AGENT_RUNTIMES__IGGY__COMMAND"
    assert found["runtimes.iggy.probe"].source == "environment AGENT_RUNTIMES__IGGY__PROBE"
    assert found["runtimes.iggy.environment.9X"].source == "environment AGENT_RUNTIMES__IGGY__ENVIRONMENT__9X"


@pytest.mark.parametrize(
    "variable", ["AGENT_SUPERVISOR__", "AGENT___URL", "AGENT_RUNTIMES__IGGY", "AGENT_AGENT__A__B__C"]
)
def test_an_odd_variable_is_a_problem_and_never_a_crash(write: Write, variable: str) -> None:
    assert problems(write(), {variable: SECRET})


def test_a_credential_that_is_no_setting_or_cannot_be_read_is_named(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "runtimes__iggy__prob__api_key").write_text(SECRET)
    (folder / "superviser__url").write_text(SECRET)
    (folder / "enrolment_token").write_text(SECRET)
    (folder / "agent__state_dir").mkdir()
    (folder / "agent__socket").write_bytes(b"\xff\xfe")
    (folder / "agent__log_level").symlink_to("nowhere")
    with pytest.raises(InvalidSettingsError) as caught:
        loaded(write(), CREDENTIALS_DIRECTORY=str(folder))
    text = str(caught.value)
    assert SECRET not in text
    assert "credential runtimes__iggy__prob__api_key: runtimes.iggy.prob: cannot use it" in text
    assert (
        "credential superviser__url: superviser.url: cannot use it: no such setting\n  hint: did you mean supervisor?"
        in text
    )
    assert (
        "credential enrolment_token: cannot use it: no such credential\n  hint: did you mean enrollment_token?" in text
    )
    assert "credential agent__state_dir: cannot read it: is a directory" in text
    assert "credential agent__socket: cannot read it: not UTF-8" in text
    assert "agent__log_level" not in text


def test_reading_a_credential(tmp_path: Path) -> None:
    (tmp_path / "enrollment_token").write_text("  the-token\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_credential("enrollment_token", environ) == "the-token"
    assert read_credential("other", environ) is None
    assert read_credential("enrollment_token", {}) is None
