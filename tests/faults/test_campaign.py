import json
from pathlib import Path

import pytest

from tests.faults import __main__ as program
from tests.faults import campaign
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import LostError, RepeatedError, Tally, last_line, table


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
    assert not Budget(0).part(0.5).more()


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
