"""The switchable faults of the stand-ins: from the environment, and from a file that may change while they run."""

from collections.abc import Mapping
from pathlib import Path

DEFAULTS = {
    "slow_start": "3",
    "ready_then_dies": "0.3",
    "slow_drain": "12",
    "exit_at_start": "1",
    "leaves_child": "30",
    "crash_loop": "",
    "connector_error": "",
    "never_ready": "",
    "ping_hangs": "",
    "ping_503": "",
    "ignore_sigterm": "",
    "dirty_stop": "",
}
"""Every fault with the argument that it has when none is given (times in seconds)."""


class Faults:
    """Answers whether a fault is on, from `STANDIN_FAULT` and from the file named by `STANDIN_FAULTS_FILE`.

    Both hold `name[:argument]` entries, separated by commas or new lines. The file is read anew for each question, so a
    test can switch a fault while the stand-in runs, and between its starts.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._always = environ.get("STANDIN_FAULT", "")
        file = environ.get("STANDIN_FAULTS_FILE")
        self._file = Path(file) if file else None
        self.all()

    def all(self) -> list[tuple[str, str]]:
        """Read every fault that is on, as (name, argument); raise SystemExit for a name that does not exist."""
        text = self._always
        if self._file is not None and self._file.exists():
            text += "\n" + self._file.read_text(encoding="utf-8")
        found = []
        for entry in text.replace("\n", ",").split(","):
            name, _, argument = entry.strip().partition(":")
            if not name:
                continue
            if name not in DEFAULTS:
                known = ", ".join(DEFAULTS)
                msg = f"stand-in: cannot switch on the fault {name!r}: there is none of that name; known: {known}"
                raise SystemExit(msg)
            found.append((name, argument or DEFAULTS[name]))
        return found

    def get(self, name: str) -> str | None:
        """Read the argument of one fault, or None while it is off."""
        return next((argument for found, argument in self.all() if found == name), None)

    def on(self, name: str) -> bool:
        """Tell whether a fault is on."""
        return self.get(name) is not None

    def seconds(self, name: str) -> float | None:
        """Read the argument of one fault as seconds, or None while it is off."""
        argument = self.get(name)
        return None if argument is None else float(argument.partition(":")[0])

    def connectors_in_error(self) -> set[str]:
        """Read the keys of all connectors that are to be in error."""
        return {argument for name, argument in self.all() if name == "connector_error"}
