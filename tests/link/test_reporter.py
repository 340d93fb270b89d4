"""The reporter: nothing is lost, nothing is dropped, and one bad report holds up no other."""

import json
from typing import Any

import pytest

from agent.errors import JournalError
from agent.journal import Journal
from agent.link.held import Held
from agent.protocol import MAX_BODY_BYTES
from tests.fakes.supervisor import (
    FakeSupervisor,
    Fault,
    Handler,
    altered,
    cut,
    hang,
    huge,
    plain,
    problem,
    redirect,
    status,
)
from tests.link.conftest import Node, eventually, eventually_async, gaps, running, steady


def ids_of(call: Any) -> list[int]:
    return [report["activity_id"] for report in call.json()["reports"]]


def refuse(code: int, unless: Any) -> Fault:
    """Answer an error as long as the body is not as it should be."""

    async def fault(request: Any, handler: Handler) -> Any:
        reports = json.loads(await request.read())["reports"]
        return await handler() if unless(reports) else problem(code, "unprocessable")

    return fault


async def all_reported(node: Node) -> bool:
    return set((await node.states()).values()) == {"reported"}


async def test_it_reports_what_is_finished_and_what_is_finished_later(node: Node, supervisor: FakeSupervisor) -> None:
    first = await node.result(1, exit_code=0)
    async with running(node.reporter().run()):
        await eventually(lambda: first in supervisor.reports)
        second = await node.result(2)
        await eventually(lambda: second in supervisor.reports)
        await eventually_async(lambda: all_reported(node))
    assert supervisor.reports[first]["evidence"] == {"exit_code": 0}
    assert supervisor.count("reports") == 2


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(429, "rate_limited", retry_after="0"),
        status(404, "not_found"),
        cut(),
        cut(after=False),
        huge(2 * 1024 * 1024),
        redirect("/elsewhere"),
        plain(200, b"<html>"),
        plain(200, b'{"results": "none"}', "application/json"),
        plain(200, b"[]", "application/json"),
        altered(lambda answer: {"results": []}),
        altered(lambda answer: {"results": [{**result, "outcome": "later"} for result in answer["results"]]}),
        altered(
            lambda answer: {
                "results": [*answer["results"], *answer["results"], {"activity_id": 7, "outcome": "recorded"}]
            }
        ),
        hang(),
    ],
    ids=lambda fault: fault.__qualname__.partition(".")[0],
)
async def test_a_report_survives_any_failure(node: Node, supervisor: FakeSupervisor, fault: Fault) -> None:
    node.client._read_timeout = 0.7
    supervisor.script("reports", fault, fault)
    ids = [await node.result(number) for number in (1, 2, 3)]
    async with running(node.reporter().run()):
        await eventually_async(lambda: all_reported(node))
    assert sorted(supervisor.reports) == ids
    assert "supervisor_unreachable" not in node.conditions


@pytest.mark.parametrize("body", [b"[]", b"{}", b"null", b'{"results": "none"}', b'{"results": {}}', b'{"result": []}'])
async def test_an_answer_without_results_is_shown_as_not_understood(
    node: Node, supervisor: FakeSupervisor, body: bytes
) -> None:
    supervisor.always("reports", plain(200, body, "application/json"))
    await node.result(1)
    async with running(node.reporter().run()):
        await eventually(lambda: "supervisor_unreachable" in node.conditions)
        assert "cannot understand the Supervisor's answer" in node.conditions.all()[0].message
        supervisor.always("reports", None)
        await eventually_async(lambda: all_reported(node))
    assert "supervisor_unreachable" not in node.conditions


async def test_a_supervisor_that_fails_is_asked_ever_more_rarely(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.always("reports", status(500))
    await node.result(1)
    async with running(node.reporter(backoff=steady(0.1)).run()):
        await eventually(lambda: supervisor.count("reports") == 5)
        assert "supervisor_unreachable" in node.conditions
    for gap, least in zip(gaps(supervisor, "reports"), (0.1, 0.2, 0.4, 0.8), strict=True):
        assert gap >= least * 0.95


async def test_an_answer_that_was_lost_reports_again_and_is_known(node: Node, supervisor: FakeSupervisor) -> None:
    activity_id = await node.result(1)
    supervisor.script("reports", cut(after=True))
    async with running(node.reporter().run()):
        await eventually_async(lambda: all_reported(node))
    row = await node.journal.get(activity_id)
    assert row is not None
    assert row.outcome == "duplicate"
    assert supervisor.deliveries == [activity_id, activity_id]


async def test_an_id_that_answers_leave_out_is_tried_again_and_holds_up_no_other(
    node: Node, supervisor: FakeSupervisor
) -> None:
    ids = [await node.result(number) for number in (1, 2, 3)]

    def leave_out(answer: Any) -> Any:
        return {"results": [result for result in answer["results"] if result["activity_id"] != ids[0]]}

    supervisor.always("reports", altered(leave_out))
    async with running(node.reporter(held=Held(missing_first=0.2, missing_cap=60)).run()):
        await eventually(lambda: supervisor.count("reports") == 3)
        late = await node.result(4)
        await eventually(lambda: late in supervisor.reports)
        states = await node.states()
        assert [states[activity_id] for activity_id in ids] == ["finished", "reported", "reported"]
        supervisor.always("reports", None)
        await eventually_async(lambda: all_reported(node))
    assert gaps(supervisor, "reports")[0] >= 0.19
    assert gaps(supervisor, "reports")[1] >= 0.38


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_a_refused_batch_is_halved_down_to_the_one_at_fault_which_goes_without_evidence(
    node: Node, supervisor: FakeSupervisor, code: int
) -> None:
    ids = [await node.result(number, note="bad" if number == 5 else "good") for number in range(1, 9)]
    supervisor.always("reports", refuse(code, lambda reports: all(r["evidence"].get("note") != "bad" for r in reports)))
    async with running(node.reporter().run()):
        await eventually_async(lambda: all_reported(node))
    assert sorted(supervisor.reports) == ids
    assert [supervisor.reports[activity_id]["evidence"] for activity_id in ids[3:6]] == [
        {"note": "good"},
        {"evidence_dropped": "refused by the Supervisor: unprocessable"},
        {"note": "good"},
    ]
    # 8 refused, 4 taken, 4 refused, 2 refused, 1 refused, 1 light, 1, 2.
    assert supervisor.count("reports") == 8
    assert node.conditions.all() == []


async def test_a_report_refused_even_without_evidence_is_kept_shown_and_tried_again(
    node: Node, supervisor: FakeSupervisor
) -> None:
    bad = await node.result(1)
    good = [await node.result(number) for number in range(2, 151)]
    supervisor.always("reports", refuse(422, lambda reports: all(r["activity_id"] != bad for r in reports)))
    reporter = node.reporter()
    async with running(reporter.run()):
        await eventually(lambda: len(supervisor.reports) == len(good))
        assert "report_refused" in node.conditions
        assert (await node.states())[bad] == "finished"
        count = supervisor.count("reports")
        late = await node.result(200)
        await eventually(lambda: late in supervisor.reports)
        assert supervisor.count("reports") == count + 1
        supervisor.always("reports", None)
        reporter.try_refused()
        await eventually(lambda: bad in supervisor.reports)
        await eventually(lambda: "report_refused" not in node.conditions)
    assert "supervisor_unreachable" not in node.conditions


async def test_refusals_of_everything_are_paced_and_drop_nothing(node: Node, supervisor: FakeSupervisor) -> None:
    for number in range(1, 9):
        await node.result(number)
    supervisor.always("reports", status(400, "bad_request"))
    async with running(node.reporter(refusals=steady(0.1, cap=0.4)).run()):
        await eventually(lambda: supervisor.count("reports") >= 5)
    for gap, least in zip(gaps(supervisor, "reports"), (0.1, 0.2, 0.4, 0.4), strict=False):
        assert gap >= least * 0.95
    assert set((await node.states()).values()) == {"finished"}


async def test_more_refused_reports_than_a_batch_hide_no_other(
    node: Node, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.link.reporter.BATCH", 2)
    bad = {await node.result(number) for number in range(1, 6)}
    good = await node.result(6)
    supervisor.always("reports", refuse(400, lambda reports: not bad & {r["activity_id"] for r in reports}))
    async with running(node.reporter().run()):
        await eventually(lambda: good in supervisor.reports)
    assert set(supervisor.reports) == {good}


async def test_batches_stay_below_the_bound_as_sent(node: Node, supervisor: FakeSupervisor) -> None:
    ids = [await node.result(number, log="é" * 100_000) for number in range(1, 13)]
    giant = await node.result(20, log="x" * 2 * MAX_BODY_BYTES)
    large = await node.result(21, log="x" * (MAX_BODY_BYTES - 5000))
    async with running(node.reporter().run()):
        await eventually(lambda: len(supervisor.reports) == 14)
    assert all(len(call.body) <= MAX_BODY_BYTES for call in supervisor.calls("reports"))
    assert max(len(ids_of(call)) for call in supervisor.calls("reports")) > 1
    assert "log" in supervisor.reports[ids[0]]["evidence"]
    assert "log" in supervisor.reports[large]["evidence"]
    assert "bytes" in supervisor.reports[giant]["evidence"]["evidence_dropped"]


async def test_a_conflict_is_final_and_shown_for_a_while(
    node: Node, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.link.reporter.CONFLICT_SHOWN", 0.3)
    activity_id = await node.result(1)
    supervisor.reports[activity_id] = {"activity_id": activity_id, "status": "rejected"}
    async with running(node.reporter().run()):
        await eventually(lambda: "report_conflict" in node.conditions)
        await eventually_async(lambda: all_reported(node))
        await eventually(lambda: "report_conflict" not in node.conditions)
    assert supervisor.count("reports") == 1


async def test_an_unknown_activity_is_final(node: Node, supervisor: FakeSupervisor) -> None:
    activity_id = await node.result(1)
    supervisor.processing.clear()
    async with running(node.reporter().run()):
        await eventually_async(lambda: all_reported(node))
    row = await node.journal.get(activity_id)
    assert row is not None
    assert row.outcome == "unknown"


async def test_a_journal_that_cannot_be_read_or_written_delays_reports_only(
    node: Node, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.result(1)
    real = Journal.reported
    failures = 0

    async def failing(self: Journal, results: Any) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            msg = "cannot write the journal: disk full"
            raise JournalError(msg)
        await real(self, results)

    monkeypatch.setattr(Journal, "reported", failing)
    # The delay of the network, long after a night without it, has nothing to do with the disk.
    async with running(node.reporter(backoff=steady(60), disk=steady(0.1)).run()):
        await eventually_async(lambda: all_reported(node))
    assert supervisor.count("reports") == 3
    assert gaps(supervisor, "reports")[1] >= 0.19


async def test_a_disk_that_is_well_again_is_found_within_seconds(node: Node) -> None:
    for loop in (node.receiver(), node.reporter()):
        assert max(loop._disk.failed(JournalError("full")) for _ in range(200)) <= 5


async def test_reports_go_while_a_poll_hangs(node: Node, supervisor: FakeSupervisor) -> None:
    supervisor.always("activities", hang())
    node.client._held_margin = 30
    receiver = node.receiver()
    async with running(receiver.run(), node.reporter().run()):
        await eventually(lambda: supervisor.count("activities") == 1)
        activity_id = await node.result(1)
        await eventually(lambda: activity_id in supervisor.reports)
        assert receiver.status.failures == 0
    assert supervisor.count("activities") == 1
