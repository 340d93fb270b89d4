"""Configs on the node's disk: each is staged whole beside the running one, and `current` points to the one in use.

    <folder>/releases/<config_id>-<version>/release.json     what it is
                                           /environment      KEY="value" lines
                                           /files/…          for the runtime's config folder
    <folder>/current -> releases/<config_id>-<version>       none: the runtime has no config of ours

A release is complete when its folder has its name: it is filled under another name and then renamed. Nothing changes
the owner or the mode of a folder; the folder's group is inherited through its setgid bit.
"""

import grp
import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.errors import Rejection
from agent.files import fsync_folder
from agent.protocol import Config, ReasonCode, RuntimeName
from agent.redaction import config_secrets
from agent.runtimes import disk, environment, rules

_FILE_MODE = 0o640
_FOLDER_MODE = 0o750


@dataclass(frozen=True, slots=True)
class Release:
    """A config as it is staged on this node."""

    name: str
    config_id: int
    version: int
    sha256: str
    config_name: str
    runtime_version: str | None
    secret_keys: tuple[str, ...]

    @classmethod
    def of(cls, config: Config) -> "Release":
        """Name the release that a config is staged as."""
        return cls(
            name=f"{config.id}-{config.version}",
            config_id=config.id,
            version=config.version,
            sha256=config.sha256,
            config_name=config.name,
            runtime_version=config.runtime_version,
            secret_keys=tuple(config.secret_keys),
        )


_STORED = TypeAdapter(Release)


class Releases:
    """The releases of one runtime. All methods block.

    Args:
        folder: `<state>/runtimes/<runtime>`; it is made when something is staged, if it is not there.
        runtime: Whose configs these are.
    """

    def __init__(self, folder: Path, runtime: RuntimeName) -> None:
        self._folder = folder.absolute()
        self._releases = self._folder / "releases"
        self._current = self._folder / "current"
        self._runtime = runtime

    def check(self, config: Config) -> None:
        """Refuse a config that breaks a rule, before anything is touched.

        Raises:
            Rejection: `config_checksum` or `config_invalid`.
        """
        rules.check(config, self._runtime)

    def stage(self, config: Config) -> Release:
        """Write a checked config to the disk, durably, whole or not at all; one that is there and whole is kept.

        A damaged one is written anew, the current one too; what runs with it goes on.

        Raises:
            Rejection: `config_invalid` when another config has its id and version; `no_space`; `not_permitted` when
                the runtime's group could not read it.
        """
        release = Release.of(config)
        with self._disk("stage a config"):
            self._releases.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            known = self.get(release.name)
            if known is not None and known.sha256 != release.sha256:
                msg = f"cannot stage config {config.id}, version {config.version}: another one has this id and version"
                raise Rejection(ReasonCode.CONFIG_INVALID, msg, hint="create a new version")
            if known is None or not self._is_whole(config):
                self._write(release, config)
            self._check_readable(self._releases / release.name)
        return release

    def switch(self, release_name: str | None) -> None:
        """Point `current` at a release, or at none; atomic and durable.

        Raises:
            Rejection: `config_missing` when there is no such release.
        """
        with self._disk("switch the config"):
            if release_name is None:
                self._current.unlink(missing_ok=True)
            else:
                if self.get(release_name) is None:
                    msg = f"cannot switch {self._runtime} to config {release_name}: it is not on this node"
                    raise Rejection(ReasonCode.CONFIG_MISSING, msg, hint="reconfigure with it")
                link = self._folder / f".current.{secrets.token_hex(4)}"
                link.symlink_to(Path("releases") / release_name)
                link.replace(self._current)
            if self._folder.is_dir():
                fsync_folder(self._folder)

    def current_name(self) -> str | None:
        """Return what the release in use is called, also when it is damaged; None when there is none."""
        with self._disk("read the current config"):
            try:
                return self._current.readlink().name
            except FileNotFoundError:
                return None

    def current(self) -> Release | None:
        """Return the release in use; None when there is none.

        Raises:
            Rejection: `config_missing` when it is named but cannot be read: a runtime that starts without its config
                would start with defaults, silently.
        """
        name = self.current_name()
        if name is None:
            return None
        release = self.get(name)
        if release is None:
            file = self._releases / name / "release.json"
            msg = f"cannot read the current config of {self._runtime}: {name} is missing or damaged: {file}"
            raise Rejection(ReasonCode.CONFIG_MISSING, msg, hint="reconfigure with a config")
        return release

    def switched_at(self) -> float | None:
        """Return since when `current` has been what it is, in seconds since the epoch; None when there is none.

        The kernel writes down the change of a renamed link's name: its ctime, on a clock a few milliseconds behind. The
        same of the release's folder tells when a damaged one was mended: what began before may lack what was lost.
        """
        try:
            return max(self._current.lstat().st_ctime, self._current.stat().st_ctime)
        except FileNotFoundError:
            return None

    def written_at(self, name: str) -> datetime:
        """Return when a release was written, or written anew because it was damaged.

        Raises:
            Rejection: `not_permitted`: the disk does not tell.
        """
        with self._disk("read a config"):
            seconds = (self._releases / name / "release.json").stat().st_mtime
        return datetime.fromtimestamp(seconds, UTC)

    def get(self, name: str) -> Release | None:
        """Return a release by its name; None when it is not here, or damaged.

        Raises:
            Rejection: `not_permitted`: the disk does not let it be read.
        """
        with self._disk("read a config"):
            try:
                release = _STORED.validate_json((self._releases / name / "release.json").read_bytes(), strict=True)
            except (FileNotFoundError, NotADirectoryError, ValidationError):
                return None
        return release if release.name == name else None

    def environment(self) -> dict[str, str]:
        """Return the variables of the current release, with those that point to its files.

        Raises:
            Rejection: `config_missing` as for `current`, and when what they point to is lost.
        """
        release = self.current()
        if release is None:
            return {}
        with self._disk("read the current config"):
            values = self._values(release)
            files = self._releases / release.name / "files"
            pointers = self._pointers(_paths(files))
            for key, place in self._places().items():
                # By its end, not whole: the state folder may be elsewhere than when it was written.
                if key not in pointers and values.get(key, "").endswith(f"/current/files/{place}"):
                    msg = f"cannot use the current config of {self._runtime}: {release.name} lost {files / place}"
                    raise Rejection(ReasonCode.CONFIG_MISSING, msg, hint="reconfigure with a config")
            return values | pointers

    def look(self) -> None:
        """See that the releases can be read, damaged or not.

        Raises:
            Rejection: `not_permitted`: the disk does not let them be read.
        """
        self.current_name()
        with self._disk("read the configs"):
            for _ in self._all():
                pass

    def secret_values(self) -> set[str]:
        """Return the values that must never be shown, of all releases and of the TOML files in them."""
        with self._disk("read the configs"):
            found: set[str] = set()
            for release in self._all():
                values: dict[str, str] = {}
                with suppress(Rejection):  # a damaged one has no values to hide; it is refused where it is used
                    values = self._values(release)
                found |= config_secrets(values, release.secret_keys, self._toml_files(release))
            return found

    def prune(self, keep: Collection[str]) -> None:
        """Remove all releases but the current one and those named, and what an interrupted staging left behind."""
        with self._disk("remove old configs"):
            current = self._current.readlink().name if self._current.is_symlink() else None
            if not self._releases.is_dir():
                return
            for folder in list(self._releases.iterdir()):
                if folder.name != current and folder.name not in keep:
                    shutil.rmtree(self._take_name(folder))
            for link in self._folder.glob(".current.*"):
                link.unlink()

    def _all(self) -> Iterator[Release]:
        try:
            folders = list(self._releases.iterdir())
        except FileNotFoundError:
            return
        for folder in folders:
            if not folder.name.startswith(".") and (release := self.get(folder.name)):
                yield release

    def _values(self, release: Release) -> dict[str, str]:
        path = self._releases / release.name / "environment"
        try:
            return environment.parse(path.read_text())
        except (FileNotFoundError, ValueError) as error:
            msg = f"cannot read the values of config {release.name}: {error}"
            raise Rejection(ReasonCode.CONFIG_MISSING, msg, hint="reconfigure with a config") from error

    def _toml_files(self, release: Release) -> dict[str, str]:
        folder = self._releases / release.name / "files"
        return {str(path): path.read_text(errors="replace") for path in folder.rglob("*.toml") if path.is_file()}

    def _places(self) -> dict[str, str]:
        """Say which variables point to what below the release's files."""
        places = {rules.CONFIG_PATH[self._runtime]: "config.toml"}
        return places | ({rules.CONNECTORS_DIR: "connectors"} if self._runtime is RuntimeName.CONNECTORS else {})

    def _pointers(self, paths: Collection[str]) -> dict[str, str]:
        """Name the files under `current`, not under the release: what a program reads later is the current one too.

        Args:
            paths: Of all files of that release.
        """
        there = {*paths, *(path.partition("/")[0] for path in paths if "/" in path)}
        files = self._current / "files"
        return {key: str(files / place) for key, place in self._places().items() if place in there}

    def _environment(self, config: Config) -> bytes:
        """Render the file; with the pointers, because systemd gives it to a runtime as it is."""
        pointers = self._pointers([file.path for file in config.files])
        return environment.render(config.values | pointers).encode()

    def _is_whole(self, config: Config) -> bool:
        """Tell whether all of a staged config still is as it was written."""
        folder = self._releases / Release.of(config).name
        wanted = {file.path: file.content.encode() for file in config.files}
        try:
            if (folder / "environment").read_bytes() != self._environment(config):
                return False
            return {path: (folder / "files" / path).read_bytes() for path in _paths(folder / "files")} == wanted
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False

    def _write(self, release: Release, config: Config) -> None:
        target = self._releases / release.name
        staging = self._releases / f".{release.name}.{secrets.token_hex(4)}"
        staging.mkdir(mode=_FOLDER_MODE)
        try:
            (staging / "files").mkdir(mode=_FOLDER_MODE)
            for file in config.files:
                path = staging / "files" / file.path
                path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
                _write_file(path, file.content.encode())
            _write_file(staging / "environment", self._environment(config))
            _write_file(staging / "release.json", json.dumps(asdict(release), indent=2).encode())
            for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
                fsync_folder(folder)
            damaged = self._take_name(target) if target.exists() else None
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        fsync_folder(self._releases)
        if damaged is not None:  # what cannot be removed of it now is, with the old configs
            shutil.rmtree(damaged, ignore_errors=True)

    def _take_name(self, folder: Path) -> Path:
        """Rename what is to be removed, so that a half removed one is never taken for complete."""
        doomed = self._releases / f".removed.{secrets.token_hex(4)}"
        folder.rename(doomed)
        return doomed

    def _check_readable(self, release: Path) -> None:
        """Check by modes that the runtime's group can read a release, where that group is not the agent's own."""
        group = self._folder.stat().st_gid
        if group == os.getegid():
            return
        for path in (self._folder, self._releases, release, *sorted(release.rglob("*"))):
            seen = path.stat()
            wanted = stat.S_IRGRP | (stat.S_IXGRP if path.is_dir() else 0)
            if seen.st_gid != group or seen.st_mode & wanted != wanted:
                msg = f"cannot stage a config: group {_group_name(group)} could not read {path}"
                hint = f"{self._folder} is to have mode 2750, and the agent umask 027; systemd-tmpfiles makes it so"
                raise Rejection(ReasonCode.NOT_PERMITTED, msg, hint=hint)

    def _disk(self, doing: str) -> AbstractContextManager[None]:
        return disk.explained(f"{doing} of {self._runtime}", otherwise=ReasonCode.NOT_PERMITTED)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        os.fchmod(file.fileno(), _FILE_MODE)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _paths(folder: Path) -> list[str]:
    """List all files in a folder, by their paths below it."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
