"""What a journal cannot know is never carried out: it is completed if it is true, else its outcome is unknown."""

from typing import Any

import pytest

from agent.journal import Journal
from agent.protocol import ReasonCode, ReportStatus
from tests.activities.conftest import Bench, make_config


async def lose_the_journal(bench: Bench) -> None:
    await bench.kill()
    for file in bench.folder.glob("journal.db*"):
        file.unlink()
    bench.journal = await Journal.open(bench.folder, journal_id=None, conditions=bench.conditions)


@pytest.mark.parametrize(
    ("action", "running", "status"),
    [
        ("start", True, "completed"),
        ("start", False, "rejected"),
        ("stop", False, "completed"),
        ("stop", True, "rejected"),
        ("restart", True, "rejected"),
        ("restart", False, "rejected"),
        ("reconfigure:5", True, "rejected"),
    ],
)
async def test_after_a_loss_nothing_is_carried_out(bench: Bench, action: str, *, running: bool, status: str) -> None:
    if running:
        bench.world.begin()
    await lose_the_journal(bench)
    more: dict[str, Any] = {"config": make_config(5)} if action.startswith("reconfigure") else {}
    activity_id = await bench.dispatch(action, **more)
    await bench.run()
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert (row.status, row.changed, row.started_at) == (status, False, None)
    if status == "rejected":
        assert row.reason is not None
        assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert (bench.world.began, bench.world.ended) == (int(running), 0)
    if more:
        assert row.evidence["attempted"]["config_id"] == 5
        assert row.evidence["outcome"] is None


async def test_a_start_that_runs_and_is_not_ready_is_not_called_completed(bench: Bench) -> None:
    bench.world.begin()
    bench.world.ready = False
    await lose_the_journal(bench)
    activity_id = await bench.dispatch("start")
    await bench.run()
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN


async def test_a_runtime_that_cannot_be_read_leaves_the_outcome_unknown(bench: Bench) -> None:
    await lose_the_journal(bench)
    activity_id = await bench.dispatch("stop")
    await bench.run()
    bench.world.unavailable = True
    await bench.list_again()
    row = await bench.finished(activity_id)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.OUTCOME_UNKNOWN
    assert row.evidence["after"]["unreadable"].startswith("cannot look")


async def test_what_is_dispatched_after_the_loss_is_carried_out(bench: Bench) -> None:
    await lose_the_journal(bench)
    await bench.run()
    await bench.list_again()
    row = await bench.finished(await bench.dispatch("start"))
    assert (row.status, bench.world.began) == (ReportStatus.COMPLETED, 1)
