"""Where settings come from, lowest first: defaults, agent.toml, conf.d/*.toml, credentials, environment, flags.

Each source is laid over the one before it, key by key, and every value remembers its source, so that an error can name
it and `check-config --print` can show it.
"""

import contextlib
import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as ValueUnreadableError

from agent.places import find_places
from agent.settings.model import Settings
from agent.toml import TomlError, read_toml

PREFIX = "AGENT_"
DELIMITER = "__"
ENROLLMENT_TOKEN = "enrollment_token"  # noqa: S105 - the name of a credential
DEFAULT = "default"

Key = tuple[str, ...]


def spell(key: Key) -> str:
    """Write a key for people; a name in it may be empty, which TOML allows."""
    return ".".join(name or '""' for name in key)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the settings; prints as "SOURCE: KEY: cannot …: cause"."""

    source: str
    key: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.message) if part)


@dataclass(slots=True)
class Layers:
    """All sources laid over each other, not yet judged."""

    main_file: Path
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    """Who set a value or began a table."""
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def lay(self, values: Mapping[str, Any], source: str) -> None:
        """Lay a source over what is there: tables merge, everything else is replaced."""
        self._merge(self.values, values, source, ())

    def origin(self, key: Key) -> str:
        """Name the source of a key: its own, else that of the nearest table around it."""
        for length in range(len(key), 0, -1):
            if origin := self.origins.get(key[:length]):
                return origin
        return str(self.main_file)

    def _merge(self, below: dict[str, Any], above: Mapping[str, Any], source: str, path: Key) -> None:
        for name, value in above.items():
            key = (*path, name)
            if isinstance(value, Mapping):
                if not isinstance(below.get(name), dict):
                    self._forget(key)
                    below[name] = {}
                self.origins.setdefault(key, source)
                self._merge(below[name], value, source, key)
            else:
                self._forget(key)
                below[name] = value
                self.origins[key] = source

    def _forget(self, key: Key) -> None:
        for known in [known for known in self.origins if known[: len(key)] == key]:
            del self.origins[known]


def gather(*, config: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Layers:
    """Read every source; what cannot be read becomes a problem, and the rest goes on."""
    places = find_places(environ)
    layers = Layers(main_file=config or places.config)
    layers.lay({"agent": {"state_dir": str(places.state_dir), "socket": str(places.socket)}}, DEFAULT)
    _add_files(layers, required=config is not None)
    _add_credentials(layers, environ)
    _add_environment(layers, environ)
    for dotted, value in flags.items():
        _lay_one(layers, tuple(dotted.split(".")), value, f"flag --{dotted.rpartition('.')[2].replace('_', '-')}")
    return layers


# --- files


def _add_files(layers: Layers, *, required: bool) -> None:
    folder = layers.main_file.parent / "conf.d"
    try:
        drop_ins = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        drop_ins = []
    except OSError as error:
        drop_ins = []
        layers.problems.append(_unreadable(folder, error))
    for path in (layers.main_file, *drop_ins):
        try:
            values = read_toml(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if required or path is not layers.main_file:
                layers.problems.append(_unreadable(path, error))
        except OSError as error:
            layers.problems.append(_unreadable(path, error))
        except (TomlError, UnicodeDecodeError) as error:
            layers.problems.append(_malformed(path, error))
        else:
            layers.files.append(path)
            layers.lay(values, str(path))


def _unreadable(path: Path, error: OSError) -> Problem:
    hint = "check the path" if isinstance(error, FileNotFoundError) else "check its owner and mode"
    return Problem(str(path), "", f"cannot read it: {(error.strerror or str(error)).lower()}", hint)


def _malformed(path: Path, error: ValueError) -> Problem:
    if isinstance(error, UnicodeDecodeError):
        return Problem(str(path), "", "cannot read it: not UTF-8", "save it as UTF-8")
    cause = str(error)
    return Problem(str(path), "", f"cannot parse it as TOML: {cause[:1].lower()}{cause[1:]}", "mend that line")


# --- credentials


def read_credential(name: str, environ: Mapping[str, str]) -> str | None:
    """Read a credential that systemd (or a container) put into $CREDENTIALS_DIRECTORY: systemd.io/CREDENTIALS.

    Args:
        name: The credential.
        environ: The environment that names the folder.

    Returns:
        Its text without the white space around it; None where there is no such credential.

    Raises:
        OSError: It is there and cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    with contextlib.suppress(FileNotFoundError):
        return (Path(folder) / name).read_text(encoding="utf-8").strip()
    return None


def _add_credentials(layers: Layers, environ: Mapping[str, str]) -> None:
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return
    try:
        names = sorted(path.name for path in Path(folder).iterdir())
    except OSError as error:
        layers.problems.append(_unreadable(Path(folder), error))
        return
    for name in names:
        source = f"credential {name}"
        if DELIMITER not in name:
            _check_other_credential(layers, name)
            continue
        try:
            value = read_credential(name, environ)
        except (OSError, UnicodeDecodeError) as error:
            cause = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not UTF-8"
            layers.problems.append(Problem(source, "", f"cannot read it: {cause}"))
            continue
        if value is not None:
            _lay_text(layers, tuple(name.split(DELIMITER)), value, source)


def _check_other_credential(layers: Layers, name: str) -> None:
    """Let credentials of somebody else be, but not a misspelt one of ours."""
    if name != ENROLLMENT_TOKEN and difflib.get_close_matches(name, [ENROLLMENT_TOKEN], cutoff=0.8):
        layers.problems.append(
            Problem(f"credential {name}", "", "cannot use it: no such credential", f"did you mean {ENROLLMENT_TOKEN}?")
        )


# --- environment


def _add_environment(layers: Layers, environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        # An empty variable counts as not set: that is what a compose file makes of one that its host does not have.
        if not name.startswith(PREFIX) or not environ[name]:
            continue
        key = _key_of(name.removeprefix(PREFIX).split(DELIMITER))
        if key[0] in Settings.model_fields and len(key) > 1:
            _lay_text(layers, key, environ[name], f"environment {name}")
            continue
        known = [f"{PREFIX}{variable}" for variable in _short_variables()]
        message = "cannot use it: no such setting"
        layers.problems.append(Problem(f"environment {name}", "", message, suggest(name, known) or _VARIABLE_HINT))


_VARIABLE_HINT = f"a setting's variable is {PREFIX}SECTION{DELIMITER}KEY, such as {PREFIX}SUPERVISOR{DELIMITER}URL"


def _short_variables() -> Iterator[str]:
    for section in ("supervisor", "agent"):
        for key in getattr(Settings.model_fields[section].annotation, "model_fields", {}):
            yield f"{section}{DELIMITER}{key}".upper()


def _key_of(parts: list[str]) -> Key:
    """Spell a variable's parts as keys: small letters, but for what the `environment` table of a runtime holds."""
    small = [part.lower() for part in parts]
    if len(parts) > 3 and small[0] == "runtimes" and small[2] == "environment":
        return (*small[:3], DELIMITER.join(parts[3:]))
    return tuple(small)


class _OneText(EnvSettingsSource):
    """One value that came as text, read as pydantic-settings reads a variable: lists and tables are JSON."""

    def __init__(self, key: Key, text: str) -> None:
        self._text = {DELIMITER.join(key): text}
        super().__init__(
            Settings, case_sensitive=True, env_prefix="", env_nested_delimiter=DELIMITER, env_ignore_empty=False
        )

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._text


def _lay_text(layers: Layers, key: Key, text: str, source: str) -> None:
    if key[0] not in Settings.model_fields:
        hint = suggest(key[0], Settings.model_fields)
        layers.problems.append(Problem(source, spell(key), "cannot use it: no such setting", hint))
        return
    if len(key) == 4 and key[2] == "environment":
        _lay_one(layers, key, text, source)
        return
    with contextlib.suppress(ValueUnreadableError):
        layers.lay(_OneText(key, text)(), source)
        return
    layers.problems.append(Problem(source, spell(key), "cannot parse it: a list or a table has to be JSON"))


def _lay_one(layers: Layers, key: Key, value: Any, source: str) -> None:
    nested = value
    for name in reversed(key):
        nested = {name: nested}
    layers.lay(nested, source)


def suggest(name: str, known: Collection[str]) -> str | None:
    """Guess what a misspelt name was meant to be."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else None
