"""The rules of the settings that a type cannot say: each either gives the value back or says what is wrong with it."""

import ipaddress
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import SplitResult, urlsplit

from agent.protocol import DriverKind, RuntimeName

if TYPE_CHECKING:  # the model is checked by these rules, so it imports them
    from agent.settings.model import ProbeSettings, RuntimeSettings

MARGIN = 5.0
"""Seconds that a step may take beyond its own timeout (a kill, a reply that is late), twice within an action."""

MAX_SOCKET_PATH = 107
"""Bytes: sun_path of unix(7), less the final NUL."""


class ConnectorsRule(StrEnum):
    """What an enabled connector that does not run means."""

    WARN = "warn"
    """It is said in the evidence and in the status."""
    REQUIRE = "require"
    """The runtime is not ready."""
    IGNORE = "ignore"
    """Nothing; /stats is not read."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """One broken rule.

    Args:
        key: The key below the table that was checked; empty for the value that was checked itself.
        message: "cannot X: cause".
        hint: The next step.
    """

    key: str
    message: str
    hint: str | None = None


class UnfitError(ValueError):
    """Broken rules, all of those that one check found; a ValueError, so that pydantic collects it."""

    def __init__(self, *unfit: Unfit) -> None:
        super().__init__("; ".join(f"{one.key}: {one.message}" if one.key else one.message for one in unfit))
        self.unfit = unfit


def check(problems: Iterable[Unfit]) -> None:
    """Raise what was found, if anything was.

    Raises:
        UnfitError: Some rules are broken.
    """
    if found := tuple(problems):
        raise UnfitError(*found)


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise UnfitError(Unfit("", message, hint))


# --- one value


def absolute(path: Path) -> Path:
    """Accept an absolute path."""
    if not path.is_absolute():
        _refuse("cannot be a relative path: nobody knows from where", "write the whole path, from / on")
    if "\0" in str(path):
        _refuse("cannot hold a NUL")
    return path


def socket_path(path: Path) -> Path:
    """Accept a path that is short enough for a unix socket."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        _refuse(f"cannot be longer than {MAX_SOCKET_PATH} bytes: a unix socket's path has no more room")
    return path


def printable(text: str) -> str:
    """Accept one line of text."""
    if any(character in text for character in "\n\r\0"):
        _refuse("cannot hold a newline or a NUL")
    return text


def supervisor_url(url: str) -> str:
    """Accept an https URL, or an http one of this machine; give it back without a slash at its end."""
    parts = _web_url(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        _refuse("cannot use plain http: tokens and configs would travel readable", "use an https:// URL")
    if parts.query:
        _refuse("cannot have a query: paths are appended to it")
    return url.rstrip("/")


def probe_url(url: str) -> str:
    """Accept an http or https URL."""
    _web_url(url)
    return url


def _web_url(url: str) -> SplitResult:
    example = "such as https://supervisor.example.com or http://127.0.0.1:3000/ping"
    if any(character.isspace() or not character.isprintable() for character in url):
        _refuse("cannot be a URL: it holds a space or a control character", example)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        _refuse("cannot be a URL: its host or port is malformed", example)
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        _refuse("cannot be a URL: it needs http:// or https://, and a host", example)
    if parts.username is not None or parts.password is not None:
        _refuse("cannot hold a name or a password: it is shown in logs", "remove what is before the @")
    if parts.fragment:
        _refuse("cannot have a fragment: it is never sent", "remove the # and what follows")
    return parts


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own, without asking anybody."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_and_port(address: str) -> str:
    """Accept HOST:PORT, with an IPv6 address in brackets."""
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[1]) < 65536:
        _refuse("cannot be an address: it has to be HOST:PORT", "such as 127.0.0.1:8090 or [::1]:8090")
    return address


def unit_name(name: str) -> str:
    """Accept the name of a service unit: systemd.unit(5)."""
    if not name.endswith(".service"):
        _refuse("cannot be a unit: its name has to end with .service", "such as iggy.service")
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,255}", name):
        _refuse("cannot be a unit: letters, digits and :_.\\@- only")
    return name


def container_name(name: str) -> str:
    """Accept the name or the id of a container, as the Engine spells it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        _refuse("cannot be a container: letters, digits and _.- only, beginning with a letter or digit")
    return name


def environment(values: dict[str, str]) -> dict[str, str]:
    """Accept variables that a program can be started with."""
    check(
        Unfit(name, "cannot be a variable: letters, digits and _ only, not beginning with a digit")
        for name in values
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    )
    check(Unfit(name, "cannot hold a NUL") for name, value in values.items() if "\0" in value)
    return values


# --- several keys

_NEEDED = {DriverKind.SYSTEMD: "unit", DriverKind.DOCKER: "container", DriverKind.PROCESS: "command"}
_EXAMPLE = {"unit": 'unit = "iggy.service"', "container": 'container = "iggy"', "command": 'command = ["iggy-server"]'}
_ONLY_FOR = {
    **{key: driver for driver, key in _NEEDED.items()},
    **dict.fromkeys(("environment", "working_directory", "owned"), DriverKind.PROCESS),
}


def driver_problems(runtime: "RuntimeSettings", given: Collection[str]) -> Iterator[Unfit]:
    """Find keys that the driver needs, and keys that are another driver's."""
    needed = _NEEDED[runtime.driver]
    if getattr(runtime, needed) is None:
        yield Unfit(needed, f"cannot be missing: driver {runtime.driver} needs it", f"add {_EXAMPLE[needed]}")
    for key, driver in _ONLY_FOR.items():
        if driver is not runtime.driver and key in given:
            yield Unfit(
                key,
                f"cannot be used: it is for driver {driver}, and this runtime's driver is {runtime.driver}",
                "remove it, or change the driver",
            )


def timeout_problems(runtime: "RuntimeSettings") -> Iterator[Unfit]:
    """Check the chain of timeouts: an attempt is shorter than getting ready, and all steps fit into the action."""
    probe = runtime.probe
    ready = probe.ready_timeout + probe.stable_for if probe else 0
    steps = runtime.stop_timeout + runtime.start_timeout + ready + 2 * MARGIN
    if probe and probe.attempt_timeout >= probe.ready_timeout:
        yield Unfit(
            "probe.attempt_timeout",
            f"cannot be {probe.attempt_timeout:g} s: it has to be less than ready_timeout, {probe.ready_timeout:g} s",
        )
    if steps > runtime.action_timeout:
        yield Unfit(
            "action_timeout",
            f"cannot be {runtime.action_timeout:g} s: stopping, starting and getting ready may take {steps:g} s",
            f"set action_timeout to {steps:g} or more, or shorten stop_timeout, start_timeout or probe.ready_timeout",
        )


def probe_problems(probe: "ProbeSettings", given: Collection[str]) -> Iterator[Unfit]:
    """Find keys of a probe that contradict each other."""
    if probe.http is not None and probe.tcp is not None:
        yield Unfit("tcp", "cannot be used: the probe has http already", "keep one of the two")
    if probe.http is None:
        for key in ("status", "expect", "connectors", "api_key"):
            if key in given:
                yield Unfit(key, "cannot be used: it is for an http probe", "add http, or remove it")


def whole_node(runtimes: "dict[RuntimeName, RuntimeSettings]") -> "dict[RuntimeName, RuntimeSettings]":
    """Accept the runtimes of a node: at least one, and none with keys that are another runtime's."""
    if not runtimes:
        _refuse(
            "cannot be empty: this node would have nothing to manage",
            f"add a table [runtimes.{RuntimeName.IGGY}] or [runtimes.{RuntimeName.CONNECTORS}]",
        )
    iggy = runtimes.get(RuntimeName.IGGY)
    if iggy and iggy.probe:
        check(
            Unfit(f"iggy.probe.{key}", "cannot be used: it is for runtime connectors", "remove it")
            for key in ("connectors", "api_key")
            if key in iggy.probe.model_fields_set
        )
    return runtimes
