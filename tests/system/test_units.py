import re

import pytest

from tests.system.node import Node

UNITS = ("iggy-agent.service", "iggy.service", "iggy-connectors.service")


async def test_systemd_finds_nothing_wrong_with_the_units(node: Node) -> None:
    done = node.system.run("systemd-analyze", "verify", *UNITS, "iggy-runtimes.target")
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("unit", UNITS)
async def test_each_unit_is_hardened(node: Node, unit: str) -> None:
    shown = node.system.run("systemd-analyze", "security", "--no-pager", "--threshold=15", unit).stdout
    found = re.search(r"Overall exposure level for .*: ([\d.]+) ", shown)
    assert found is not None
    assert float(found[1]) <= 1.5
