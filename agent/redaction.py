"""Secrets out of text: before anything is logged, printed or reported.

Two nets: the values that are known to be secret, wherever they turn up, and what looks like a secret by its name. The
second has holes by its nature, so whoever reads a secret adds its value to the first. What a secret is called is
defined here once, for the agent and for the Supervisor.
"""

import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from agent.toml import TomlError, read_toml

MARKER = "[redacted]"

MIN_LENGTH = 4
"""Characters; a shorter value would mask half of every text."""

_WHOLE_WORD_BELOW = 8
"""Characters; a shorter value is masked where it stands alone, not inside of longer words."""

_WELL_KNOWN = frozenset({"iggy", "connectors", "true", "false", "null", "none"})
"""Never masked: these words are everywhere in what we write, and whoever has one as a password has no secret."""

_WORD = (
    r"(?:pass(?:word|wd|phrase)|secret|token|credential"
    r"|(?:api|private|encryption|access|account|signing|master)[_-]?key)"
)
_ABOUT = (
    r"(?:file|path|dir|directory|folder|enabled|disabled|required|interval|expiry|expires|expires_(?:at|in)|expired|ttl"
    r"|timeout|lifetime|seconds|type|algorithm|names?|user|username|count|length|size|limit)"
)
"""How the name of something ends that is about a secret, but is none: `password_file`, `access_token_expiry`."""
_NAME = rf"(?!(?<![\w-])secret_keys(?![\w-])){_WORD}(?![\w-]{{0,40}}[_-]{_ABOUT}(?![\w-]))"
"""`secret_keys` lists the names of secrets, which everybody may know. Bounded, so that no text is slow to search."""
_LONGEST_NAME = 120
"""Characters of a nested name that are looked at."""

_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|\\"(?:[^"\\]|\\[^"])*\\"|'[^']*'|\[[^\[\]]*\]|[^\s"'\\]+)"""

_SECRET_KEY = re.compile(_NAME, re.IGNORECASE)
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # password=…, IGGY_ROOT_PASSWORD="…", "api_key": "…"
        (rf"""({_NAME}[\w-]{{0,40}}(?:\\?["']\s*[:=]|[ \t]{{0,20}}=)\s*){_VALUE}""", r"\1{marker}"),
        (rf"(\bpass(?:word|wd|phrase):\s*){_VALUE}", r"\1{marker}"),
        (rf"(\bld-api-key:\s*){_VALUE}", r"\1{marker}"),
        (r"""(\b(?:bearer|basic)\s+)[^\s"'\\]+""", r"\1{marker}"),
        # USER:PASSWORD@ up to the last @, for a password may hold a / or an @ that nobody escaped; HOST:PORT/… is none
        (r"""(://)(?!\[)[^\s/@:"']*:(?!\d{1,5}/)(?:[^\s"':]|:(?!//))*(@)""", r"\1{marker}\2"),
        (r"""(://)[^\s/"']+(@)""", r"\1{marker}\2"),
    )
)


_PLAIN = re.compile(r"[\w.+/@-]*")
"""Text that none of the patterns can match, for each needs a `:`, a `=` or a space; most of what is logged is such."""


class Redactor:
    """Masks secrets in text and in data; one for the whole agent, safe to use from any thread.

    Args:
        marker: What stands in the place of a secret.
    """

    def __init__(self, marker: str = MARKER) -> None:
        self._marker = marker
        self._patterns = [(pattern, replacement.format(marker=marker)) for pattern, replacement in _PATTERNS]
        self._lock = threading.Lock()
        self._values: tuple[str, ...] = ()
        """The longest first: one may hold another."""

    def add(self, values: Iterable[str]) -> None:
        """Mask these values from now on; those under four characters are too short to be told from ordinary text."""
        forms = {form for value in values for form in _forms(value)}
        with self._lock:
            if not forms.issubset(self._values):
                self._values = tuple(sorted(forms.union(self._values), key=len, reverse=True))

    def text(self, s: str) -> str:
        """Return a text with its secrets masked; the same object when there are none."""
        masked = s
        # Looking for each first is 15 times faster than one expression of a thousand, as a Supervisor may know.
        if present := [value for value in self._values if value in s]:
            masked = re.sub("|".join(map(_expression, present)), self._marker, s)
        if _PLAIN.fullmatch(masked):
            return s if masked == s else masked
        for pattern, replacement in self._patterns:
            masked = pattern.sub(replacement, masked)
        return s if masked == s else masked

    def data(self, x: Any) -> Any:
        """Return JSON-like data with its secrets masked: in every text, and whole where the key says what it is.

        Anything that JSON does not know (a path, a time, an exception) becomes its text.
        """
        match x:
            case None | bool() | int() | float():
                return x
            case str():
                return self.text(x)
            case Mapping():
                return {self._key(key): self._entry(key, value) for key, value in x.items()}
            case list() | tuple() | set() | frozenset():
                return [self.data(item) for item in x]
            case bytes():
                return self.text(x.decode(errors="backslashreplace"))
            case _:
                return self.text(str(x) or repr(x))

    def _key(self, key: Any) -> str:
        return self.text(str(key))

    def _entry(self, key: Any, value: Any) -> Any:
        if value is None or isinstance(value, bool) or not is_secret_name(str(key)):
            return self.data(value)
        return self._marker


def is_secret_name(name: str) -> bool:
    """Tell whether a setting, variable or field of this name holds a secret."""
    return _SECRET_KEY.search(name) is not None


def config_secrets(values: Mapping[str, str], secret_keys: Collection[str], files: Mapping[str, str]) -> set[str]:
    """Find the secrets of a config: its values that are named as secret or look so, and those in its TOML files.

    Args:
        values: Its variables.
        secret_keys: Which of them it says are secret.
        files: Path → content.
    """
    found = {value for key, value in values.items() if key in secret_keys or is_secret_name(key)}
    for path, content in files.items():
        if path.endswith(".toml"):
            with suppress(TomlError):  # no runtime can read its secrets either
                found.update(named_secrets(read_toml(content)))
    return found


def named_secrets(content: Mapping[str, Any]) -> Iterator[str]:
    """Find the texts that stand under a secret name in nested data, such as a parsed TOML file.

    The names on the way count as one: `key` in a table `encryption` is an encryption key.
    """
    # A stack of its own: a dotted TOML key nests deeper than Python recurses.
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        name, value = waiting.pop()
        match value:
            case str():
                if is_secret_name(name):
                    yield value
            case Mapping():
                waiting += [(f"{name}_{key}"[-_LONGEST_NAME:], inner) for key, inner in value.items()]
            case list():
                waiting += [(name, inner) for inner in value]
            case _:
                pass  # a number, a time: no text


def _forms(value: str) -> set[str]:
    """Return the spellings in which a secret turns up: as it is, as its lines, and as JSON escapes it."""
    spellings = {value, value.strip()}
    spellings |= {json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    spellings |= {line for line in value.splitlines() if len(line) >= _WHOLE_WORD_BELOW}
    return {text for text in spellings if len(text) >= MIN_LENGTH and text.lower() not in _WELL_KNOWN}


def _expression(value: str) -> str:
    escaped = re.escape(value)
    return rf"(?<![\w-]){escaped}(?![\w-])" if len(value) < _WHOLE_WORD_BELOW else escaped
