import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.e2e.scenarios import Stop
from tests.faults import __main__ as program
from tests.faults import campaign, kills
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import LostError, RepeatedError, Tally, last_line, table

ENOUGH = 4.0
"""Seconds beyond its first round that a row has in a campaign of the usual length, if it can use them."""


async def _nothing(_ground: Ground, _budget: Budget, _tally: Tally) -> None:
    return


async def _one_of_each(_ground: Ground, budget: Budget, tally: Tally) -> None:
    while budget.more():
        tally.injected += 1
    tally.fail("one", LostError("gone"))
    tally.fail("two", RepeatedError("again"))
    tally.fail("three", AssertionError("not true"))
    tally.fail("four", TimeoutError("in vain"))


def test_a_budget_ends_by_rounds_and_not_before_the_least() -> None:
    assert [Budget(60, most=2).more() for _ in range(1)] == [True]
    budget = Budget(60, most=2)
    assert [budget.more() for _ in range(3)] == [True, True, False]
    over = Budget(0, least=2)
    assert [over.more() for _ in range(3)] == [True, True, False]


def test_each_part_of_a_budget_has_a_round_and_what_one_leaves_over_the_others_share() -> None:
    first, second = Budget(0).parts(2)
    assert [first.more(), first.more(), second.more(), second.more()] == [True, False, True, False]
    assert [part.most for part in Budget(60, most=6, impatient=True).parts(3)] == [2, 2, 2]
    assert [round(part.seconds) for part in Budget(60).parts(3)] == [20, 30, 60]  # nothing has gone by


async def test_what_a_row_takes_in_any_case_is_kept_for_it_and_only_the_rest_is_shared() -> None:
    rows = [Fault("a", "a", _nothing, share=0.0, takes=50.0), Fault("b", "b", _nothing, share=3.0, takes=10.0)]
    rows.append(Fault("c", "c", _nothing, takes=20.0))
    assert campaign.plan(rows, 120) == [0.0, 30.0, 10.0]
    assert campaign.plan(rows, 60) == [0.0, 0.0, 0.0]
    assert campaign.plan(rows[:1], 60) == [0.0]


async def test_a_row_that_takes_too_long_takes_from_what_is_shared_and_not_from_what_is_kept() -> None:
    budgets: dict[str, float] = {}

    async def slow(_ground: Ground, budget: Budget, tally: Tally) -> None:
        budgets["slow"] = budget.seconds
        tally.injected += 1
        await asyncio.sleep(0.2)

    async def short(_ground: Ground, budget: Budget, tally: Tally) -> None:
        budgets["short"] = budget.seconds
        tally.injected += budget.more()

    rows = [Fault("slow", "slow", slow, takes=0.0), Fault("short", "short", short, takes=0.1)]
    said: list[str] = []
    tallies = await campaign.run_all(rows, 0.2, 1, said.append)
    assert 0.04 < budgets["slow"] < 0.06
    assert budgets["short"] == 0.0
    assert all(tally.good for tally in tallies)
    assert campaign.idle(rows, tallies) == []
    assert "nothing" not in "".join(said)


def test_in_a_whole_campaign_each_row_has_time_beyond_what_it_takes_or_is_as_long_as_it_is() -> None:
    for fault, more in zip(FAULTS, campaign.plan(FAULTS, program.MINUTES * 60), strict=True):
        assert fault.takes > 0, fault.key
        assert more >= ENOUGH or not fault.share, (fault.key, more)


async def test_failures_are_counted_by_their_kind() -> None:
    tally = await campaign.run(Fault("a.b", "a row", _one_of_each), 1, Budget(60, most=3))
    assert (tally.injected, tally.lost, tally.repeated, tally.false, tally.good) == (3, 2, 1, 1, False)
    assert Tally.from_json(json.loads(json.dumps(tally.as_json()))) == tally


async def test_a_row_that_injected_nothing_is_not_good() -> None:
    assert not (await campaign.run(Fault("a.b", "a row", _nothing), 1, Budget(60))).good


def test_rows_are_added_up() -> None:
    tally = Tally("a row", injected=1, lost=1, stories=["x"])
    tally.add(Tally("a row", injected=2, false=1, stories=["y"], notes=["z"]))
    assert tally == Tally("a row", injected=3, lost=1, false=1, stories=["x", "y"], notes=["z"])
    assert last_line([tally, tally], 7.4) == "faults: injected=6 lost=2 repeated=0 false=2 seconds=7"
    assert table([tally]).splitlines()[2].startswith("| a row |        3 |")


def test_rows_are_chosen_by_the_beginning_of_their_keys() -> None:
    rows = [Fault(key, key, _nothing) for key in ("a.b", "a.c", "ab.c")]
    assert campaign.chosen(rows, []) == rows
    assert campaign.chosen(rows, ["a"]) == rows[:2]
    with pytest.raises(ValueError, match=r"cannot choose 'x': there are a\.b, a\.c, ab\.c"):
        campaign.chosen(rows, ["x"])


def test_keys_and_names_of_rows_are_unique() -> None:
    assert len({fault.key for fault in FAULTS}) == len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_command_ends_with_its_line_and_with_1_when_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(program, "FAULTS", (Fault("a.b", "a row", _one_of_each),))
    rows = tmp_path / "rows.json"
    assert program.main(["--minutes", "0.001", "--seed", "5", "--rows", str(rows)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 kinds of faults in about 0.001 minutes; --seed 5"
    assert said[-1].startswith("faults: injected=")
    assert json.loads(rows.read_text())[0]["repeated"] == 1


def test_a_campaign_with_a_row_that_injected_nothing_ends_with_1_and_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def one(_ground: Ground, _budget: Budget, tally: Tally) -> None:
        tally.injected += 1

    monkeypatch.setattr(program, "FAULTS", (Fault("a.b", "a row", one), Fault("a.c", "another", _nothing)))
    assert program.main(["--minutes", "0.001", "--only", "a.b"]) == 0
    assert "nothing" not in capsys.readouterr().out
    assert program.main(["--minutes", "0.001"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "a.c: nothing was injected, so nothing was shown" in said
    assert said[-2:-1] == ["these rows injected nothing, so the campaign failed: a.c"]
    assert said[-1].startswith("faults: injected=1 lost=0")


def test_the_list_says_how_long_each_row_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (Fault("a.b", "a row", _nothing, share=0.0, takes=90.0), Fault("a.c", "another", _nothing, takes=10.0))
    monkeypatch.setattr(program, "FAULTS", rows)
    assert program.main(["--minutes", "3", "--list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["a.b", "90", "s", "a", "row"],
        ["a.c", "90", "s", "another"],
    ]


async def test_a_row_that_breaks_keeps_its_count_and_fails_and_the_others_are_played() -> None:
    async def broken(_ground: Ground, _budget: Budget, tally: Tally) -> None:
        tally.injected += 1
        tally.fail("before", RepeatedError("again"))

        async def raises(error: Exception) -> None:
            raise error

        async with asyncio.TaskGroup() as group:
            group.create_task(raises(FileNotFoundError("no such program")))
            group.create_task(raises(LostError("the agent ended")))

    rows = [Fault("a", "a", broken), Fault("b", "b", _one_of_each)]
    said: list[str] = []
    tallies = await campaign.run_all(rows, 0.0, 1, said.append)
    assert "no such program" in said[0]
    assert "in raises" in said[0]
    assert (tallies[0].injected, tallies[0].lost, tallies[0].repeated, tallies[0].false) == (1, 1, 1, 1)
    assert (tallies[0].broken, tallies[1].broken) == (2, 0)
    assert not tallies[0].good
    assert tallies[1].injected == 1


def test_kinds_are_drawn_for_the_time_there_is_and_never_stops_alone() -> None:
    for seed in range(30):
        (only,) = kills.draw_kinds(kills.PLAIN, Budget(5), random.Random(seed))
        assert only is not Stop
        drawn = kills.draw_kinds(kills.PLAIN, Budget(3 * kills.ENOUGH), random.Random(seed))
        assert len(set(drawn)) == 3
    assert set(kills.draw_kinds(kills.PLAIN, Budget(5, most=1), random.Random(1))) == set(kills.PLAIN)
