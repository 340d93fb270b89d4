"""The connector files of the `iggy-connectors` double: one TOML file per connector and version, and their plugins."""

import re
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.standins.configuration import infer

PLUGINS = {"libiggy_connector_random_source.so": "source", "libiggy_connector_stdout_sink.so": "sink"}
"""The plugins that the stand-in pretends to have beside its binary, and of which kind they are."""

SEARCHED = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/local/lib64")
_REQUIRED = ("type", "key", "enabled", "version", "name", "path", "streams")


class InvalidConfigurationError(Exception):
    """The runtime refuses the connectors' configuration and ends with exit code 1."""


class Connector:
    """One connector of the runtime, running or not.

    Attributes:
        settings: its file, with the overrides of the environment.
        number: the id that the runtime counts up for each start of a plugin.
        error: what kept it from running, and when, in microseconds since 1970.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.kind: str = settings["type"]
        self.key: str = settings["key"]
        self.enabled: bool = settings["enabled"]
        self.number = 0
        self.path = ""
        self.status = "starting"
        self.error: tuple[str, int] | None = None
        self._running_since = time.monotonic()

    def load(self) -> None:
        """Find the plugin.

        Raises:
            InvalidConfigurationError: there is none, or it is none of this kind.
        """
        self.path = resolve(self.settings["path"])
        name = Path(self.path).name
        if name not in PLUGINS:
            cause = f"Could not open library: {self.path}: file too short"
        elif PLUGINS[name] != self.kind:
            symbol = f"undefined symbol: iggy_{self.kind}_open"
            cause = f"Could not obtain symbol from the library: {self.path}: {symbol}"
        else:
            return
        msg = f"Failed to load {self.kind} container from {self.path}: {cause}"
        raise InvalidConfigurationError(msg)

    def start(self, number: int, *, broken: bool) -> bool:
        """Start the plugin and tell whether it runs; it does not with a bad `plugin_config`, or when it is broken."""
        self.number = number
        interval = self.settings.get("plugin_config", {}).get("interval", "100ms")
        if broken or not isinstance(interval, str):
            self.fail()
            return False
        self.status, self.error, self._running_since = "running", None, time.monotonic()
        return True

    def fail(self) -> None:
        """Put the connector in error, where it stays."""
        if self.status != "error":
            self.status = "error"
            self.error = (self.refusal, int(time.time() * 1_000_000))

    @property
    def refusal(self) -> str:
        """What a plugin that cannot be initialized says."""
        return f"Invalid configuration: Plugin initialization failed (ID: {self.number})"

    @property
    def messages(self) -> int:
        """The number of messages that it would have handled by now."""
        return int((time.monotonic() - self._running_since) * 300) if self.status == "running" else 0

    def streams(self) -> list[str]:
        """The names of the streams that it uses."""
        return [stream["stream"] for stream in self.settings["streams"]]


def resolve(path: str) -> str:
    """Find a plugin as the runtime does: as it is, beside the binary, here, in the system's folders.

    Raises:
        InvalidConfigurationError: it is nowhere.
    """
    wanted = Path(path if path.endswith((".so", ".dylib", ".dll")) else f"{path}.so")
    beside = Path(sys.executable).parent
    if wanted.exists():
        return str(wanted)
    if wanted.is_absolute():
        msg = f"Plugin library not found at '{wanted}'. Ensure the shared library file exists at this path."
        raise InvalidConfigurationError(msg)
    if wanted.name in PLUGINS:
        return str(beside / wanted.name)
    places = [wanted, *(Path(folder, wanted.name) for folder in (beside, Path.cwd(), *SEARCHED))]
    searched = "".join(f"  - {place}\n" for place in places)
    hint = "Ensure the shared library (.so/.dylib/.dll) is built and placed in one of these locations."
    msg = f"Plugin library not found. Searched paths:\n{searched}{hint}"
    raise InvalidConfigurationError(msg)


def read(folder: Path, environ: Mapping[str, str]) -> list[Connector]:
    """Read the connector files of a folder: of each connector the highest version, the sources first.

    Raises:
        InvalidConfigurationError: a file is broken.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("[!.]*.toml")):
        settings = _read_file(path)
        _override(settings, environ)
        identity = settings["type"], settings["key"]
        if identity not in found or found[identity]["version"] < settings["version"]:
            found[identity] = settings
    connectors = [Connector(settings) for settings in found.values()]
    return sorted(connectors, key=lambda connector: connector.kind, reverse=True)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        cause = "key with no value, expected `=`" if "Expected '='" in str(error) else str(error)
        msg = f"parsing TOML file '{path}' raised an error: {cause}"
        raise InvalidConfigurationError(msg) from error
    if any(name not in settings for name in _REQUIRED) or settings["type"] not in {"source", "sink"}:
        msg = f"Failed to load connector configuration from '{path}': Cannot load configuration"
        raise InvalidConfigurationError(msg)
    return settings


def _override(settings: dict[str, Any], environ: Mapping[str, str]) -> None:
    key = re.sub(r"\W", "_", settings["key"])
    prefix = f"IGGY_CONNECTORS_{settings['type']}_{key}_".upper()
    for name, value in environ.items():
        field = name.removeprefix(prefix).lower()
        if field == name.lower() or not value:
            continue
        if field.startswith("plugin_config_"):
            settings.setdefault("plugin_config", {})[field.removeprefix("plugin_config_")] = infer(value)
        elif field in {"enabled", "name", "path", "version"}:
            settings[field] = infer(value)
