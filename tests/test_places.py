from pathlib import Path

import pytest

from agent.places import SYSTEM_SOCKET, find_places, find_running_socket


def test_places_of_root_are_the_systems_and_systemd_comes_first() -> None:
    root = find_places({"XDG_STATE_HOME": "/x", "HOME": "/root"}, user_id=0)
    assert str(root.state_dir) == "/var/lib/iggy-agent"
    assert root.socket == SYSTEM_SOCKET
    assert str(root.config) == "/etc/iggy-agent/agent.toml"
    environ = {"STATE_DIRECTORY": "/s:/t", "RUNTIME_DIRECTORY": "/r", "CONFIGURATION_DIRECTORY": "/c"}
    for user_id in (0, 1000):
        places = find_places(environ, user_id=user_id)
        assert (str(places.state_dir), str(places.socket), str(places.config)) == (
            "/s",
            "/r/agent.sock",
            "/c/agent.toml",
        )


def test_places_of_others_are_xdgs() -> None:
    environ = {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c"}
    places = find_places(environ, user_id=1000)
    assert str(places.state_dir) == "/s/iggy-agent"
    assert str(places.socket) == "/r/iggy-agent/agent.sock"
    assert str(places.config) == "/c/iggy-agent/agent.toml"
    places = find_places({"HOME": "/home/u", "XDG_STATE_HOME": "relative"}, user_id=1000)
    assert str(places.state_dir) == "/home/u/.local/state/iggy-agent"
    assert str(places.socket) == "/home/u/.local/state/iggy-agent/run/agent.sock"
    assert str(places.config) == "/home/u/.config/iggy-agent/agent.toml"
    assert find_places({}, user_id=1000).state_dir.is_absolute()


def test_the_socket_to_ask_is_the_systems_if_it_is_there(tmp_path: Path) -> None:
    own = find_places({}).socket
    assert find_running_socket({}, system=tmp_path / "absent") == own
    (tmp_path / "there").touch()
    assert find_running_socket({}, system=tmp_path / "there") == tmp_path / "there"
    assert find_running_socket({}, system=tmp_path / "there" / "below") == own
    environ = {"RUNTIME_DIRECTORY": "/r"}
    assert str(find_running_socket(environ, system=tmp_path / "there")) == "/r/agent.sock"


def test_a_socket_in_a_closed_folder_is_the_one_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "lstat", denied)
    assert find_running_socket({}, system=tmp_path / "x") == tmp_path / "x"
