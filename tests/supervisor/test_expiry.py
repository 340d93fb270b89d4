"""Expiry: an activity that nobody reports on is given up, and a report that comes later is the truth."""

from pathlib import Path

from tests.supervisor.rig import Clock, Rig, node_of, report, running, until

TTL = 3600
GRACE = 900


async def expire(rig: Rig) -> None:
    await rig.supervisor.expire()


async def test_an_activity_says_when_it_expires_and_is_listed_until_its_grace_is_over(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    rig.clock.forward(TTL + GRACE - 30)
    await expire(rig)
    assert len((await agent.poll())["items"]) == 1
    assert (await rig.activity(item["id"]))["status"] == "processing"
    rig.clock.forward(60)
    await expire(rig)
    assert (await agent.poll())["items"] == []
    shown = await rig.activity(item["id"])
    assert (shown["status"], shown["reason"]["code"]) == ("rejected", "no_report")
    assert shown["finished_at"] > shown["created_at"]


async def test_a_report_that_comes_later_replaces_no_report_once(rig: Rig) -> None:
    agent = await rig.agent()
    (item,) = await rig.dispatch()
    rig.clock.forward(TTL + GRACE + 10)
    await expire(rig)
    late = report(item["id"])
    assert await agent.report(late) == ["recorded"]
    assert await agent.report(late) == ["duplicate"]
    shown = await rig.activity(item["id"])
    assert shown["status"] == "completed"
    assert "reason" not in shown


async def test_what_was_reported_in_time_is_not_given_up(rig: Rig) -> None:
    agent = await rig.agent()
    (done,), (open_one,) = await rig.dispatch(), await rig.dispatch()
    await agent.report(report(done["id"]))
    rig.clock.forward(TTL + GRACE + 10)
    await expire(rig)
    assert (await rig.activity(done["id"]))["status"] == "completed"
    assert (await rig.activity(open_one["id"]))["status"] == "rejected"


async def test_more_than_one_transactions_worth_is_given_up(rig: Rig) -> None:
    for _ in range(6):
        await rig.agent()
    for _ in range(100):
        await rig.dispatch()
    rig.clock.forward(TTL + GRACE + 10)
    await expire(rig)
    page = (await rig.call("GET", "activities?results=1&page=600")).ok()
    assert page["items"][0]["status"] == "rejected"
    assert page["total_results"] == 600


async def test_it_happens_by_itself_also_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as rig:
        agent = await rig.agent()
        (item,) = await rig.dispatch()
    clock.forward(TTL + GRACE + 10)
    async with running(tmp_path, clock) as rig:
        await until(lambda: not node_of(rig, agent).open)
        assert (await rig.activity(item["id"]))["reason"]["code"] == "no_report"
