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
from pathlib import Path

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
    secret_keys: tuple[str, ...] = ()

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
        """Write a checked config to the disk, durably, whole or not at all; one that is there already is kept.

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
            if known is None:
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
        """Return when `current` was pointed to its release, in seconds since the epoch; None when there is none.

        The kernel writes down the change of a renamed link's name: its ctime, on a clock a few milliseconds behind.
        """
        try:
            return self._current.lstat().st_ctime
        except FileNotFoundError:
            return None

    def get(self, name: str) -> Release | None:
        """Return a release by its name; None when it is not here, or damaged.

        Raises:
            Rejection: `not_permitted`: the disk does not let it be read.
        """
        with self._disk("read a config"):
            try:
                data = json.loads((self._releases / name / "release.json").read_bytes())
                return Release(**{**data, "secret_keys": tuple(data["secret_keys"])})
            except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
                return None

    def environment(self) -> dict[str, str]:
        """Return the variables of the current release, with those that point to its files.

        Raises:
            Rejection: `config_missing` as for `current`.
        """
        release = self.current()
        if release is None:
            return {}
        with self._disk("read the current config"):
            return self._values(release) | self._pointers(self._current / "files")

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
                    self._remove(folder)
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

    def _pointers(self, staged: Path) -> dict[str, str]:
        """Name the files under `current`, not under the release: what a program reads later is the current one too.

        Args:
            staged: Where the files of that release are now.
        """
        files = self._current / "files"
        pointers = {}
        if (staged / "config.toml").is_file():
            pointers[rules.CONFIG_PATH[self._runtime]] = str(files / "config.toml")
        if self._runtime is RuntimeName.CONNECTORS and (staged / "connectors").is_dir():
            pointers[rules.CONNECTORS_DIR] = str(files / "connectors")
        return pointers

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
            # With the pointers, because systemd gives the file to a runtime as it is.
            values = config.values | self._pointers(staging / "files")
            _write_file(staging / "environment", environment.render(values).encode())
            _write_file(staging / "release.json", json.dumps(asdict(release), indent=2).encode())
            for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
                fsync_folder(folder)
            if target.exists():  # damaged: it has no readable release.json
                self._remove(target)
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        fsync_folder(self._releases)

    def _remove(self, folder: Path) -> None:
        """Take its name first, so that a half removed one is never taken for complete."""
        doomed = self._releases / f".removed.{secrets.token_hex(4)}"
        folder.rename(doomed)
        shutil.rmtree(doomed)

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


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
