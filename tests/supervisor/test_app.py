"""The work in the background: it goes on after a store that failed, and its own faults are not hidden."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.problems import Code, ProblemError
from tests.supervisor.rig import Rig, running, until


async def test_a_store_that_fails_for_a_while_is_logged_and_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    changed_outside = rig.supervisor._store.changed_outside

    async def fails() -> int:
        raise ProblemError(Code.STORE_UNAVAILABLE, "cannot use the store: disk I/O error")

    monkeypatch.setattr(rig.supervisor._store, "changed_outside", fails)
    await until(lambda: any(entry["event"] == "background.failed" for entry in logs))
    monkeypatch.setattr(rig.supervisor._store, "changed_outside", changed_outside)
    assert not rig.supervisor.background.done()


async def test_a_fault_of_the_background_work_ends_it_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("a fault")  # noqa: EM101, TRY003 - a fault, as it comes

    monkeypatch.setattr("supervisor.app.Supervisor.expire", broken)
    with pytest.raises(RuntimeError, match="a fault"):
        async with running(tmp_path) as rig:
            await until(rig.supervisor.background.done)
