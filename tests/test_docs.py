from pathlib import Path

import pytest

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
