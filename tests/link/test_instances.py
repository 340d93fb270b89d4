"""The names of a state folder's agents: fresh for each start, and known again afterwards."""

from pathlib import Path

import pytest

from agent.link.instances import FILE_NAME, KEPT, Instances


async def test_each_start_has_a_fresh_name(tmp_path: Path) -> None:
    names = {(await Instances.open(tmp_path)).current for _ in range(3)}
    assert len(names) == 3
    assert set((tmp_path / FILE_NAME).read_text().splitlines()) == names


async def test_an_earlier_start_of_this_folder_is_known_and_another_agent_is_not(tmp_path: Path) -> None:
    earlier = await Instances.open(tmp_path)
    later = await Instances.open(tmp_path)
    was = later.current
    fresh = await later.renew(earlier.current)
    assert fresh == later.current not in {was, earlier.current}
    assert await later.renew("0" * 32) is None
    assert later.current == fresh
    assert await (await Instances.open(tmp_path)).renew(was) is not None


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    first = last = await Instances.open(tmp_path)
    for _ in range(KEPT):
        last = await Instances.open(tmp_path)
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == KEPT
    assert await last.renew(first.current) is None


async def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff\x00\n" + b"f" * 32 + b"\nx")
    instances = await Instances.open(tmp_path)
    assert await instances.renew("f" * 32) is not None


async def test_a_folder_that_cannot_be_used_stops_no_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE_NAME).mkdir()
    instances = await Instances.open(tmp_path)
    assert await instances.renew(instances.current) is not None
    assert "instances.not_read" in (output := capsys.readouterr().out)
    assert "instances.not_kept" in output
