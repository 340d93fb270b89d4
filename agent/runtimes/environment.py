"""The environment of a runtime: which of the agent's own variables it gets, and the `environment` file of a release.

The file is one `KEY="value"` a line, in the double-quote rules of systemd's EnvironmentFile= (systemd.exec(5)): a
backslash takes the meaning from a double quote, a backslash, a backtick and a dollar, and nothing is expanded.
"""

import re
from collections.abc import Mapping

INHERITED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR"})
"""And `LC_…`. An allow-list: the agent's own settings, tokens and sockets must not reach a runtime."""

_LINE = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\`$]|\\["\\`$])*)"')


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Pick what a runtime gets of the agent's own environment."""
    return {key: value for key, value in environ.items() if key in INHERITED or key.startswith("LC_")}


def render(values: Mapping[str, str]) -> str:
    """Write values as an environment file; they hold no control characters (a release is checked for that)."""
    return "".join(f'{key}="{_escape(value)}"\n' for key, value in sorted(values.items()))


def parse(text: str) -> dict[str, str]:
    """Read what `render` wrote.

    Raises:
        ValueError: A line is not in that form; names its number, not its content, which may be secret.
    """
    values = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            msg = f'line {number} is not KEY="value"'
            raise ValueError(msg)
        values[match[1]] = re.sub(r"\\(.)", r"\1", match[2])
    return values


def _escape(value: str) -> str:
    return re.sub(r'(["\\`$])', r"\\\1", value)
