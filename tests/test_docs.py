from pathlib import Path

import pytest

from agent.journal import health
from agent.link import clock, joining, receiver, reporter, tokens
from agent.link import health as link_health
from agent.link.standing import Revocation
from tests import docs


def test_the_generated_pages_are_as_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_drift_is_shown_as_a_diff_and_mended_by_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main([], root=tmp_path) == 0
    assert docs.main(["--check"], root=tmp_path) == 0
    page = tmp_path / "docs" / "cli.md"
    page.write_text(page.read_text().replace("# Commands", "# Edited by hand"))
    capsys.readouterr()
    assert docs.main(["--check"], root=tmp_path) == 1
    shown = capsys.readouterr()
    assert "-# Edited by hand" in shown.out
    assert "+# Commands" in shown.out
    assert "run `make docs`" in shown.err
    docs.main([], root=tmp_path)
    assert docs.main(["--check"], root=tmp_path) == 0


def test_every_condition_is_listed() -> None:
    """Each code that the agent can set, as its source has it."""
    listed = (docs.ROOT / "docs" / "architecture.md").read_text().partition("## Conditions")[2]
    codes = {
        *(health.UNWRITABLE, health.UNREADABLE, health.DAMAGED, health.LOST, health.REPLACED, health.FULL),
        *(health.CONFLICT, clock.SKEWED, tokens.NOT_ROTATED, joining.NOT_ENROLLED, receiver.INCOMPLETE),
        *(reporter.REFUSED, reporter.CONFLICT, link_health.UNREACHABLE, link_health.UNAUTHORIZED, *Revocation),
        *("recovery_waits_RUNTIME", "RUNTIME_not_started", "RUNTIME_not_tidied"),
    }
    assert {code for code in codes if f"`{code}`" not in listed} == set()
