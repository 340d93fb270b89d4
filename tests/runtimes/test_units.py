"""What a unit's properties mean."""

from typing import Any

import pytest

from agent.runtimes.live_unit import unit_path
from agent.runtimes.units import Unit

RUN = bytes(range(16))
FAILED = {"ActiveState": "failed", "InvocationID": RUN, "ExecMainExitTimestamp": 5}


def command(path: str, *, code: int, status: int, may_fail: bool = False) -> list[Any]:
    """A command line and how it ended, as systemd tells it."""
    return [path, [path], may_fail, 1, 1, 2, 2, 77, code, status]


@pytest.mark.parametrize(
    ("properties", "cause"),
    [
        ({"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 3}, "it ended by itself with exit code 3"),
        ({"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 217}, "set its process up (217/USER"),
        ({"Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 11}, "SIGSEGV ended it"),
        ({"Result": "core-dump", "ExecMainCode": 3, "ExecMainStatus": 6}, "SIGABRT ended it"),
        ({"Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 99}, "signal 99 ended it"),
        ({"Result": "oom-kill", "ExecMainCode": 2, "ExecMainStatus": 9}, "memory ran out"),
        ({"Result": "start-limit-hit"}, "started too often"),
        ({"Result": "timeout"}, "took longer"),
        ({"Result": "watchdog"}, "watchdog"),
        ({"Result": "protocol"}, "Type="),
        ({"Result": "resources"}, "could not get"),
        ({"Result": "a-new-word"}, "systemd says a-new-word"),
        ({"Result": "exit-code", "LoadState": "masked"}, "its unit is masked"),
        ({"LoadState": "error", "LoadError": ["org.x.Y", ""]}, "badly written: org.x.Y"),
        ({"LoadState": "error"}, "badly written: error"),
    ],
)
def test_why_a_unit_failed_is_told_in_words(properties: dict[str, Any], cause: str) -> None:
    assert cause in str(Unit({**FAILED, **properties}).cause())


def test_a_command_before_the_process_is_told_apart_from_the_process() -> None:
    before = [command("/bin/ok", code=1, status=0), command("/bin/no", code=1, status=5)]
    unit = Unit({**FAILED, "Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 3, "ExecStartPre": before})
    assert unit.cause() == "/bin/no of its ExecStartPre= failed"
    assert unit.exit_code() is None
    after = Unit({**unit.properties, "ExecStartPre": [], "ExecStartPost": [command("/bin/post", code=2, status=9)]})
    assert after.cause() == "/bin/post of its ExecStartPost= failed"
    assert after.exit_code() == 3
    allowed = Unit({**unit.properties, "ExecStartPre": [command("/bin/no", code=1, status=5, may_fail=True)]})
    assert allowed.cause() == "it ended by itself with exit code 3"


@pytest.mark.parametrize(
    ("code", "status", "exit_code"), [(1, 0, 0), (1, 7, 7), (2, 9, 137), (3, 6, 134), (0, 0, None)]
)
def test_an_exit_code_is_that_of_a_shell(code: int, status: int, exit_code: int | None) -> None:
    assert Unit({**FAILED, "ExecMainCode": code, "ExecMainStatus": status}).exit_code() == exit_code


def test_a_condition_counts_for_the_last_try_only() -> None:
    unmet = {
        "ActiveState": "inactive",
        "ConditionResult": False,
        "ConditionTimestampMonotonic": 20,
        "Conditions": [
            ["ConditionPathExists", True, True, "/a", -1],
            ["ConditionHost", False, False, "b", 1],
            ["ConditionHost", False, False, "c", 0],
        ],
    }
    words = "a condition of its unit was not met (ConditionPathExists=|!/a)"
    assert Unit({**unmet, "InactiveEnterTimestampMonotonic": 10}).cause() == words
    assert Unit({**unmet, "InactiveEnterTimestampMonotonic": 30}).cause() is None
    assert Unit({**unmet, "ActiveState": "active"}).cause() is None
    assert Unit({**unmet, "Conditions": []}).cause() == "a condition of its unit was not met"


def test_figures_that_systemd_does_not_have_are_null() -> None:
    seen = Unit({"ActiveState": "active", "MemoryCurrent": 2**64 - 1, "CPUUsageNSec": 2**64 - 1}).observation(None)
    assert (seen.memory_bytes, seen.cpu_seconds, seen.pid, seen.started_at) == (None, None, None, None)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("iggy.service", "iggy_2eservice"),
        ("iggy-connectors@1.service", "iggy_2dconnectors_401_2eservice"),
        ("9.service", "_39_2eservice"),
    ],
)
def test_a_unit_has_the_path_that_systemd_gives_it(name: str, path: str) -> None:
    assert unit_path(name) == f"/org/freedesktop/systemd1/unit/{path}"
