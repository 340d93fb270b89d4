"""Where the agent's files are when nothing else is said: systemd's variables, else the system's places, else XDG's.

Standard library only, because `iggy-agent status` asks here. systemd.exec(5) names the variables; the XDG places are
those of the Base Directory Specification.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "iggy-agent"
SOCKET_NAME = "agent.sock"
SYSTEM_SOCKET = Path("/run") / NAME / SOCKET_NAME


@dataclass(frozen=True, slots=True)
class Places:
    """The agent's places for one environment and one user."""

    state_dir: Path
    socket: Path
    config: Path
    """The main settings file; its drop-ins are in `conf.d` beside it."""


def find_places(environ: Mapping[str, str], *, user_id: int | None = None) -> Places:
    """Find the places of this user; nothing is read or made.

    Args:
        environ: The environment to look in.
        user_id: Whose places; the effective user's by default.
    """
    root = (os.geteuid() if user_id is None else user_id) == 0
    home = Path(environ.get("HOME") or Path("~").expanduser())
    state_dir = Path("/var/lib") / NAME if root else _of_xdg(environ, "XDG_STATE_HOME") or home / ".local/state" / NAME
    state_dir = _of_systemd(environ, "STATE_DIRECTORY") or state_dir
    run_dir = SYSTEM_SOCKET.parent if root else _of_xdg(environ, "XDG_RUNTIME_DIR") or state_dir / "run"
    config_dir = Path("/etc") / NAME if root else _of_xdg(environ, "XDG_CONFIG_HOME") or home / ".config" / NAME
    return Places(
        state_dir=state_dir,
        socket=(_of_systemd(environ, "RUNTIME_DIRECTORY") or run_dir) / SOCKET_NAME,
        config=(_of_systemd(environ, "CONFIGURATION_DIRECTORY") or config_dir) / "agent.toml",
    )


def find_running_socket(environ: Mapping[str, str], *, system: Path = SYSTEM_SOCKET) -> Path:
    """Find the socket to ask when none is named: systemd's, else the system's if it is there, else this user's own."""
    own = find_places(environ).socket
    if environ.get("RUNTIME_DIRECTORY"):
        return own
    try:
        system.lstat()
    except PermissionError:  # its folder is closed to this user: being told so is better than "not running"
        return system
    except OSError:
        return own
    return system


def _of_systemd(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the first folder of a variable that systemd sets; it separates several with colons."""
    first = environ.get(name, "").split(":", maxsplit=1)[0]
    return Path(first) if first else None


def _of_xdg(environ: Mapping[str, str], name: str) -> Path | None:
    """Return our folder in an XDG place; a relative path in the variable is to be ignored, says the specification."""
    value = environ.get(name, "")
    return Path(value) / NAME if value.startswith("/") else None
