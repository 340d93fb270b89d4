"""What the tests on a booted systemd rest on."""

from contextlib import ExitStack

import pytest

from tests.system.booted import Booted
from tests.system.control_groups import make_groups, remove_groups
from tests.system.installed import mounted

UNIT = "[Service]\nExecStart=sleep infinity\n"

pytestmark = pytest.mark.usefixtures("python")


def booted(stack: ExitStack) -> Booted:
    system = stack.enter_context(mounted())
    system.boot()
    system.write("etc/systemd/system/same.service", UNIT)
    system.run("systemctl", "start", "same")
    return system


async def test_two_at_once_leave_the_units_of_the_other_alone() -> None:
    with ExitStack() as stack:
        first, second = booted(stack), booted(stack)
        before = first.show("same", "MainPID", "ActiveState", "InvocationID")
        second.run("systemctl", "kill", "--signal=KILL", "same")
        second.run("systemctl", "stop", "same")
        second.cut_power()
        assert before["ActiveState"] == "active"
        assert first.show("same", *before) == before
        assert first.run("cat", f"/proc/{before['MainPID']}/comm").stdout == "sleep\n"


async def test_nothing_of_its_control_groups_is_left() -> None:
    with ExitStack() as stack:
        system = booted(stack)
        name = system.folder.name
    remove_groups(make_groups(name))  # could not be made, were they still there
