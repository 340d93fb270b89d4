import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode, RuntimeName
from agent.runtimes import releases as module
from agent.runtimes.releases import Release, Releases
from tests.runtimes.configs import config, connectors_config

TOML = "[tcp]\naddress = '127.0.0.1:8090'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runtimes" / "iggy"


@pytest.fixture
def releases(folder: Path) -> Releases:
    return Releases(folder, RuntimeName.IGGY)


def test_a_staged_config_is_whole_and_not_yet_in_use(releases: Releases, folder: Path) -> None:
    release = releases.stage(config(files={"config.toml": TOML, "certs/a.pem": "pem"}))
    assert release == Release(
        "42-3", 42, 3, config(files={"config.toml": TOML, "certs/a.pem": "pem"}).sha256, "main", "0.8.0", ()
    )
    assert releases.get("42-3") == release
    assert releases.current() is None
    assert releases.environment() == {}
    staged = folder / "releases" / "42-3"
    pointer = f'IGGY_CONFIG_PATH="{folder}/current/files/config.toml"'
    assert (staged / "environment").read_text() == f'{pointer}\nIGGY_HTTP_ADDRESS="127.0.0.1:3000"\n'
    assert (staged / "files" / "certs" / "a.pem").read_text() == "pem"
    modes = {path.stat().st_mode & 0o777 for path in staged.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert all(path.stat().st_mode & 0o007 == 0 for path in staged.rglob("*"))


def test_the_current_release_gives_its_values_and_the_path_of_its_config(releases: Releases, folder: Path) -> None:
    release = releases.stage(config(files={"config.toml": TOML}))
    releases.switch(release.name)
    assert releases.current() == release
    assert (folder / "current").readlink() == Path("releases/42-3")
    assert releases.environment() == {
        "IGGY_HTTP_ADDRESS": "127.0.0.1:3000",
        "IGGY_CONFIG_PATH": str(folder / "current" / "files" / "config.toml"),
    }


def test_connectors_get_their_own_paths(folder: Path) -> None:
    releases = Releases(folder, RuntimeName.CONNECTORS)
    files = {"config.toml": "", "connectors/sink.toml": ""}
    releases.switch(releases.stage(connectors_config(files=files)).name)
    current = folder / "current" / "files"
    assert releases.environment() == {
        "IGGY_CONNECTORS_HTTP_ADDRESS": "127.0.0.1:8081",
        "IGGY_CONNECTORS_CONFIG_PATH": str(current / "config.toml"),
        "IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": str(current / "connectors"),
    }


def test_staging_again_keeps_what_is_there(releases: Releases, folder: Path) -> None:
    releases.stage(config())
    before = (folder / "releases" / "42-3").stat().st_ino
    releases.stage(config())
    assert (folder / "releases" / "42-3").stat().st_ino == before


def test_another_config_under_the_same_id_and_version_is_refused(releases: Releases) -> None:
    releases.stage(config())
    with pytest.raises(Rejection, match="another one has this id and version") as refused:
        releases.stage(config(values={"IGGY_HTTP_ADDRESS": "127.0.0.1:3001"}))
    assert refused.value.code is ReasonCode.CONFIG_INVALID


def _with(**changes: object) -> bytes:
    whole = {
        "name": "42-3",
        "config_id": 42,
        "version": 3,
        "sha256": config().sha256,
        "config_name": "main",
        "runtime_version": None,
        "secret_keys": [],
    }
    kept = {key: value for key, value in {**whole, **changes}.items() if value is not ...}
    return json.dumps(kept).encode()


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"{}", b'{"name": "42-3"}', b"[]", b"[" * 100_000, None),
        *(_with(name=42), _with(name="42-4"), _with(name="../42-3"), _with(config_id="42"), _with(version=None)),
        *(_with(sha256=[]), _with(config_name=1), _with(runtime_version=8), _with(secret_keys=[1])),
        *(_with(secret_keys="IGGY_A"), _with(secret_keys=...)),
    ],
)
def test_a_damaged_release_is_staged_anew(releases: Releases, folder: Path, damage: bytes | None) -> None:
    releases.stage(config())
    path = folder / "releases" / "42-3" / "release.json"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert releases.get("42-3") is None
    assert releases.secret_values() == set()
    assert releases.get(releases.stage(config()).name) is not None


def _lose(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_text("")


def _spoil(path: Path) -> None:
    path.write_text("IGGY_A=1\n")


def _replace(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_lose, _empty, _spoil, _replace])
@pytest.mark.parametrize("damaged", ["environment", "files/config.toml", "files/certs/a.pem"])
def test_the_same_config_mends_its_own_damaged_release(
    releases: Releases, folder: Path, damaged: str, damage: Callable[[Path], None]
) -> None:
    whole = config(files={"config.toml": TOML, "certs/a.pem": "pem"})
    releases.switch(releases.stage(whole).name)
    staged = folder / "releases" / "42-3"
    before, values = (staged / damaged).read_bytes(), releases.environment()
    damage(staged / damaged)
    assert releases.stage(whole).name == "42-3"
    assert (staged / damaged).read_bytes() == before
    assert releases.environment() == values
    assert names(folder / "releases") == ["42-3"]


def test_a_file_that_is_not_of_the_config_is_not_left_in_its_release(folder: Path) -> None:
    releases = Releases(folder, RuntimeName.CONNECTORS)
    releases.stage(connectors_config(files={"connectors/sink.toml": ""}))
    (folder / "releases" / "42-3" / "files" / "connectors" / "other.toml").write_text("")
    releases.stage(connectors_config(files={"connectors/sink.toml": ""}))
    assert names(folder / "releases" / "42-3" / "files" / "connectors") == ["sink.toml"]


def test_switching_back_to_none_leaves_no_link(releases: Releases, folder: Path) -> None:
    releases.switch(releases.stage(config()).name)
    releases.switch(None)
    releases.switch(None)
    assert releases.current() is None
    assert not (folder / "current").is_symlink()


def test_switching_to_none_where_nothing_ever_was_does_nothing(releases: Releases, folder: Path) -> None:
    releases.switch(None)
    assert not folder.exists()


def test_switching_to_a_release_that_is_not_here_changes_nothing(releases: Releases) -> None:
    release = releases.stage(config())
    releases.switch(release.name)
    with pytest.raises(Rejection, match="cannot switch iggy to config 1-1") as refused:
        releases.switch("1-1")
    assert refused.value.code is ReasonCode.CONFIG_MISSING
    assert releases.current() == release


def test_a_current_release_that_is_gone_is_an_error_not_defaults(releases: Releases, folder: Path) -> None:
    releases.switch(releases.stage(config()).name)
    shutil.rmtree(folder / "releases" / "42-3")
    with pytest.raises(Rejection, match="42-3 is missing or damaged") as refused:
        releases.environment()
    assert refused.value.code is ReasonCode.CONFIG_MISSING


@pytest.mark.parametrize("damage", ["IGGY_A=1\n", None])
def test_values_that_cannot_be_read_are_an_error(releases: Releases, folder: Path, damage: str | None) -> None:
    releases.switch(releases.stage(config()).name)
    path = folder / "releases" / "42-3" / "environment"
    path.unlink()
    if damage:
        path.write_text(damage)
    with pytest.raises(Rejection, match="cannot read the values of config 42-3"):
        releases.environment()
    assert releases.secret_values() == set()


def test_a_config_file_that_is_lost_is_an_error_not_defaults(releases: Releases, folder: Path) -> None:
    releases.switch(releases.stage(config(files={"config.toml": TOML})).name)
    lost = folder / "releases" / "42-3" / "files" / "config.toml"
    lost.unlink()
    with pytest.raises(Rejection, match=f"cannot use the current config of iggy: 42-3 lost {lost}") as refused:
        releases.environment()
    assert refused.value.code is ReasonCode.CONFIG_MISSING


def test_a_config_file_that_is_lost_is_an_error_also_after_the_state_folder_was_moved(folder: Path) -> None:
    first = Releases(folder, RuntimeName.IGGY)
    first.switch(first.stage(config(files={"config.toml": TOML})).name)
    moved = folder.rename(folder.with_name("moved"))
    second = Releases(moved, RuntimeName.IGGY)
    assert second.environment()["IGGY_CONFIG_PATH"] == str(moved / "current" / "files" / "config.toml")
    (moved / "current" / "files" / "config.toml").unlink()
    with pytest.raises(Rejection, match="42-3 lost"):
        second.environment()


def test_a_folder_of_connectors_that_is_lost_is_an_error_but_one_that_the_values_name_is_not_ours(folder: Path) -> None:
    releases = Releases(folder, RuntimeName.CONNECTORS)
    elsewhere = {"IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": "/etc/connectors"}
    releases.switch(releases.stage(connectors_config(version=1, values=elsewhere)).name)
    assert releases.environment() == elsewhere
    releases.switch(releases.stage(connectors_config(version=2, files={"connectors/sink.toml": ""})).name)
    lost = folder / "releases" / "42-2" / "files" / "connectors"
    shutil.rmtree(lost)
    with pytest.raises(Rejection, match=f"42-2 lost {lost}"):
        releases.environment()


def test_pruning_keeps_the_current_one_and_those_that_are_named(releases: Releases, folder: Path) -> None:
    releases.prune([])
    for version in range(1, 6):
        releases.stage(config(version=version))
    releases.switch("42-2")
    (folder / "releases" / ".42-9.abcd").mkdir()
    (folder / ".current.abcd").symlink_to("releases/42-9")
    releases.prune(["42-4"])
    assert names(folder / "releases") == ["42-2", "42-4"]
    assert names(folder) == ["current", "releases"]


def test_secret_values_of_all_releases_are_known(releases: Releases) -> None:
    assert releases.secret_values() == set()
    for version in (1, 2):
        values = {"IGGY_ROOT_PASSWORD": f"secret-{version}", "IGGY_A": "open"}
        releases.stage(config(version=version, values=values, secret_keys=["IGGY_ROOT_PASSWORD"]))
    assert releases.secret_values() == {"secret-1", "secret-2"}


def test_a_full_disk_leaves_nothing_behind(releases: Releases, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_file", full)
        with pytest.raises(Rejection, match="cannot stage a config of iggy: the disk is full") as refused:
            releases.stage(config())
    assert refused.value.code is ReasonCode.NO_SPACE
    assert list((folder / "releases").iterdir()) == []
    releases.stage(config())


def test_a_folder_that_cannot_be_written_is_not_permitted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Rejection, match="cannot stage a config of iggy: Not a directory") as refused:
        Releases(tmp_path / "file" / "iggy", RuntimeName.IGGY).stage(config())
    assert refused.value.code is ReasonCode.NOT_PERMITTED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another group")
def test_a_release_that_the_runtimes_group_cannot_read_is_refused(releases: Releases, folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chown(folder, -1, 54321)
    folder.chmod(0o750)  # without the setgid bit the releases get another group
    with pytest.raises(Rejection, match="group 54321 could not read") as refused:
        releases.stage(config())
    assert refused.value.code is ReasonCode.NOT_PERMITTED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another group")
def test_a_release_inherits_the_group_of_the_runtimes_folder(releases: Releases, folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chown(folder, -1, 1)
    folder.chmod(0o2750)
    releases.stage(config(files={"a/b": "x"}))
    staged = folder / "releases" / "42-3"
    assert {path.stat().st_gid for path in (staged, *staged.rglob("*"))} == {1}
    (staged / "files" / "a" / "b").chmod(0o600)
    with pytest.raises(Rejection, match=r"group \w+ could not read .*/files/a/b"):
        releases.stage(config(files={"a/b": "x"}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
