"""Settings as the tests of them write and read them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agent.settings import (
    InvalidSettingsError,
    Loaded,
    Problem,
    load,
)

SECRET = "do-not-print-me-7Qx"  # long and odd, so that finding it anywhere is a leak

GOOD = """
[supervisor]
url = "https://supervisor.example.com/"
[runtimes.iggy]
driver = "systemd"
unit = "iggy.service"
"""

Write = Callable[..., Path]


def writer(folder: Path) -> Write:
    """Return what writes settings below a folder."""

    def write(text: str = GOOD, *, name: str = "agent.toml") -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def problems(config: Path | None, environ: Mapping[str, str] | None = None) -> dict[str, Problem]:
    with pytest.raises(InvalidSettingsError) as caught:
        load(config=config, environ=environ or {})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.problems)
    assert caught.value.exit_code == 78
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)
        assert "cannot " in problem.message
    return {problem.key: problem for problem in caught.value.problems}


def loaded(config: Path | None, **environ: str) -> Loaded:
    return load(config=config, environ=environ)
