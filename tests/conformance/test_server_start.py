"""How iggy-server starts: its arguments, when it is ready, what it opens and writes."""

import json
import time
import tomllib
from typing import Any

from tests.conformance.programs import PASSWORD, USERNAME, Programs, Run, Server, ask, is_open, until


def test_the_version_is_one_line_and_opens_nothing(server: Server) -> None:
    run = server.start("--version")
    assert run.wait() == 0
    name, version = run.coloured.split()
    assert name == "server"
    assert version.startswith("0.8." if server.programs.legacy else "0.9.")
    assert not server.data.exists()


def test_an_unknown_argument_ends_it_with_2(server: Server) -> None:
    run = server.start("--bogus")
    assert run.wait() == 2
    assert run.errors.startswith("error: unexpected argument '--bogus' found\n")
    assert "Usage: iggy-server" in run.errors


def test_it_is_ready_within_seconds_with_a_plain_pong(server: Server) -> None:
    began = time.monotonic()
    run = server.start()
    until(server.answers, "pong")
    assert time.monotonic() - began < 10
    answer = ask(server.http, "/ping")
    assert answer == (200, "text/plain; charset=utf-8", "pong")
    assert run.alive


def test_every_port_is_open_when_it_answers(server: Server) -> None:
    server.start()
    until(server.answers, "pong")
    assert is_open(server.ports["tcp"])
    assert is_open(server.ports["websocket"])


def test_the_current_config_names_what_it_listens_on(server: Server) -> None:
    server.started()
    config = _current_config(server)
    assert {name: config[name]["address"] for name in server.ports} == {
        name: f"127.0.0.1:{port}" for name, port in server.ports.items()
    }
    assert config["system"]["path"] == str(server.data)


def test_a_port_of_0_is_chosen_and_written_down(server: Server) -> None:
    server.started(IGGY_TCP_ADDRESS="127.0.0.1:0")
    config = _current_config(server)
    host, port = config["tcp"]["address"].split(":")
    assert host == "127.0.0.1"
    assert is_open(int(port))


def test_the_current_config_is_of_this_start(server: Server) -> None:
    server.started().stop()
    left = server.current_config.with_name("left-over")
    left.write_text("")
    server.started()
    assert not left.exists()


def test_the_data_folder_has_the_known_parts(server: Server) -> None:
    server.started()
    expected = {"logs", "runtime", "state", "streams"} | (set() if server.programs.legacy else {"metadata"})
    assert {part.name for part in server.data.iterdir()} >= expected


def test_the_log_is_coloured_on_stdout_and_plain_in_its_file(server: Server) -> None:
    run = server.started()
    assert "\x1b[32m INFO\x1b[0m" in run.coloured
    (file,) = (server.data / "logs").glob("iggy-server.log*")
    assert " INFO " in file.read_text()
    assert "\x1b" not in file.read_text()


def test_a_file_is_read_and_the_environment_beats_it(server: Server) -> None:
    config = server.folder / "config.toml"
    config.write_text('[websocket]\nenabled = false\n[http]\naddress = "127.0.0.1:1"\n')
    server.started(IGGY_CONFIG_PATH=str(config))
    assert not is_open(server.ports["websocket"])


def test_what_it_does_not_know_in_a_file_or_the_environment_is_ignored(server: Server) -> None:
    config = server.folder / "config.toml"
    config.write_text("[nonsense]\nkey = 1\n[http]\nunknown = true\n")
    server.started(IGGY_CONFIG_PATH=str(config), IGGY_NONSENSE="1")


def test_a_missing_file_is_ignored(server: Server) -> None:
    server.started(IGGY_CONFIG_PATH=str(server.folder / "missing.toml"))


def test_an_empty_variable_counts_as_not_set(server: Server) -> None:
    server.started(IGGY_TCP_ENABLED="", IGGY_SYSTEM_LOGGING_LEVEL="")
    assert is_open(server.ports["tcp"])


def test_without_http_it_runs_and_never_answers(server: Server) -> None:
    run = server.start(IGGY_HTTP_ENABLED="false")
    until(lambda: is_open(server.ports["tcp"]), "TCP")
    until(lambda: is_open(server.ports["websocket"]), "WebSocket")
    assert not is_open(server.http)
    assert run.alive


def test_fresh_removes_what_was_there(server: Server) -> None:
    server.started().stop()
    left = server.data / "left-over"
    left.write_text("")
    server.started("--fresh")
    assert not left.exists()


def test_the_root_user_is_made_once_and_keeps_its_password(server: Server) -> None:
    server.started().stop()
    server.started(IGGY_ROOT_PASSWORD="another-password")
    body = {"username": USERNAME, "password": PASSWORD}
    assert ask(server.http, "/users/login", method="POST", body=body).status == 200


def test_default_root_credentials_are_iggy_and_iggy(server: Server) -> None:
    missing = ("IGGY_ROOT_USERNAME", "IGGY_ROOT_PASSWORD")
    server.started("--with-default-root-credentials", without=missing)
    body = {"username": "iggy", "password": "iggy"}
    assert ask(server.http, "/users/login", method="POST", body=body).status == 200


def test_after_kill_9_it_starts_again_with_what_it_knew(server: Server) -> None:
    run = server.started()
    token = _personal_token(server)
    run.end()
    server.started()
    answer = ask(server.http, "/personal-access-tokens/login", method="POST", body={"token": token})
    assert answer.status == 200


def _current_config(server: Server) -> dict[str, Any]:
    path = server.current_config
    return tomllib.loads(until(lambda: path.read_text() if path.exists() else "", "current_config.toml"))


def _personal_token(server: Server) -> str:
    body = {"name": "probe", "expiry": 0}
    answer = ask(server.http, "/personal-access-tokens", method="POST", body=body, headers=server.sign_in())
    assert answer.status == 200, answer
    token: str = json.loads(answer.body)["token"]
    return token


def test_two_servers_on_one_folder(programs: Programs, server: Server) -> None:
    """0.8 has neither a lock nor an exclusive port: both run, on the same data. 0.9 refuses by the port."""
    first = server.started()
    second = server.start()
    if programs.legacy:
        until(lambda: "Started HTTP API" in second.log, "the second server")
        _settle(second)
    else:
        assert second.wait() == 1
        assert "CannotBindToSocket" in second.errors
    assert first.alive
    assert server.answers()


def _settle(run: Run) -> None:
    deadline = time.monotonic() + 0.3
    until(lambda: time.monotonic() > deadline or not run.alive, "a moment")
    assert run.alive
