"""What a config has to be before anything of it touches the node."""

import re
import unicodedata
from collections.abc import Iterator

from agent.errors import Rejection
from agent.protocol import MAX_CONFIG_BYTES, Config, ReasonCode, RuntimeName
from agent.toml import TomlError, read_toml

CONFIG_PATH = {
    RuntimeName.IGGY: "IGGY_CONFIG_PATH",
    RuntimeName.CONNECTORS: "IGGY_CONNECTORS_CONFIG_PATH",
}
"""Which variable names the config file of a runtime."""
CONNECTORS_DIR = "IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR"
"""Which one names the folder of the connectors' own files."""

_REDIRECTS = frozenset({*CONFIG_PATH.values(), "IGGY_ENV_PATH", "IGGY_CONNECTORS_ENV_PATH"})

_KEY = {
    RuntimeName.IGGY: re.compile(r"IGGY_(?!CONNECTORS_)[A-Z0-9_]+"),
    RuntimeName.CONNECTORS: re.compile(r"IGGY_CONNECTORS_[A-Z0-9_]+"),
}
_PART = re.compile(r"[A-Za-z0-9._-]{1,100}")

MAX_VALUES = 1024
MAX_VALUE_BYTES = 96 * 1024
"""execve(2) takes at most 128 KiB for one variable."""
MAX_FILES = 256
MAX_PATH_BYTES = 255


Fault = tuple[str, str | None]
"""A rule that is broken, and the next step where the rule does not say it."""


def check(config: Config, runtime: RuntimeName) -> None:
    """Refuse a config that breaks a rule.

    Raises:
        Rejection: `config_checksum` when it is not what its checksum says, else `config_invalid`; says which rule, and
            never shows a value.
    """
    for cause, hint in _faults(config, runtime):
        raise Rejection(ReasonCode.CONFIG_INVALID, f"cannot use config {config.id}: {cause}", hint=hint)


def _faults(config: Config, runtime: RuntimeName) -> Iterator[Fault]:
    """Find what is wrong, lazily: a later rule may rely on an earlier one."""
    try:
        size = len(config.model_dump_json().encode())
        computed = config.compute_sha256()
    except ValueError:
        yield "it holds a lone surrogate, which is not text", None
        return
    if computed != config.sha256:
        msg = f"cannot use config {config.id}: its content has sha256 {computed[:12]}…, expected {config.sha256[:12]}…"
        raise Rejection(ReasonCode.CONFIG_CHECKSUM, msg, hint="dispatch it again: it was changed on its way")
    if size > MAX_CONFIG_BYTES:
        yield f"it has {size} bytes, at most {MAX_CONFIG_BYTES} are allowed", None
    if config.kind != runtime:
        yield f"it is for {config.kind[:40]!r}, not for {runtime}", None
    yield from _faults_of_values(config, runtime)
    yield from _faults_of_files(config)


def _faults_of_values(config: Config, runtime: RuntimeName) -> Iterator[Fault]:
    if len(config.values) > MAX_VALUES:
        yield f"it has {len(config.values)} values, at most {MAX_VALUES} are allowed", None
    prefix = "IGGY_CONNECTORS_" if runtime is RuntimeName.CONNECTORS else "IGGY_ (not IGGY_CONNECTORS_)"
    for key, value in config.values.items():
        if not _KEY[runtime].fullmatch(key):
            yield f"key {key[:80]!r} is not allowed for {runtime}", f"keys are {prefix} followed by A-Z, 0-9 and _"
        if key in _REDIRECTS:
            yield f"key {key} is not allowed: the agent says where the config is", "use files/config.toml"
        if any(unicodedata.category(character) == "Cc" for character in value):
            yield f"the value of {key} holds a newline or another control character", None
        if len(value.encode()) > MAX_VALUE_BYTES:
            yield f"the value of {key} has over {MAX_VALUE_BYTES} bytes", None
    if unknown := sorted(set(config.secret_keys) - set(config.values)):
        yield f"secret_keys names {unknown[0][:80]!r}, which is not among its values", None
    if CONNECTORS_DIR in config.values and any(file.path.startswith("connectors/") for file in config.files):
        yield f"{CONNECTORS_DIR} is set by the agent when there are files under connectors/", None


def _faults_of_files(config: Config) -> Iterator[Fault]:
    if len(config.files) > MAX_FILES:
        yield f"it has {len(config.files)} files, at most {MAX_FILES} are allowed", None
    files: set[str] = set()
    folders: set[str] = set()
    for file in config.files:
        parts = file.path.split("/")
        if len(file.path) > MAX_PATH_BYTES or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
            hint = "paths are relative, of A-Z a-z 0-9 . _ - and /, without parts of dots only"
            yield f"path {file.path[:80]!r} is not allowed", hint
        if file.path in files:
            yield f"path {file.path} comes twice", None
        files.add(file.path)
        folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if file.path.endswith(".toml") and (cause := _fault_of_toml(file.content)):
            yield f"{file.path} is not TOML: {cause}", None
    if both := sorted(files & folders):
        yield f"path {both[0]} is a file and a folder", None


def _fault_of_toml(content: str) -> str | None:
    """Say where it breaks, which Iggy itself does not."""
    try:
        read_toml(content)
    except TomlError as error:
        return str(error)
    return None
