"""When the runtime is restarted, and the decision to go back, as it is journaled and shown."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.activities import reconfigure
from agent.local.views import detail
from agent.protocol import ReportStatus, RuntimeState, config_sha256
from agent.runtimes.driver import Observation
from agent.runtimes.probe import ProbeResult
from tests.activities.conftest import Bench, WorldProbe, make_config

SECRET = "correct horse battery staple"


def secret_config(config_id: int) -> dict[str, Any]:
    config = make_config(config_id, IGGY_ROOT_PASSWORD=SECRET)
    content = {key: config[key] for key in ("kind", "runtime_version", "values", "files")}
    secret_keys = ["IGGY_ROOT_PASSWORD"]
    return {**config, "secret_keys": secret_keys, "sha256": config_sha256(**content, secret_keys=secret_keys)}


def shown_as(bench: Bench, monkeypatch: pytest.MonkeyPatch, *states: RuntimeState) -> None:
    """Have the last look at the first run, which has ended, show the last of these, and the looks before it the others.

    The first look is that of the reconfigure before anything is done.
    """
    monkeypatch.setattr(reconfigure, "REST_PATIENCE", 0.05)
    bench.world.begin()
    bench.world.end(1)
    real, left = bench.driver.observe, list(states)

    async def observe() -> Observation:
        seen = await real()
        if bench.world.began > 1:
            return seen
        return replace(seen, state=left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(bench.driver, "observe", observe)


async def test_a_config_that_mends_a_crash_loop_is_applied_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look finds it on its way up; the next action, which may be what ends the loop, must not wait for it."""
    shown_as(bench, monkeypatch, RuntimeState.STARTING)
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    assert (row.status, row.evidence["outcome"], row.evidence["committed"]) == ("completed", "applied", True)
    assert (bench.world.began, bench.world.runs_with) == (2, make_config(5)["sha256"])


async def test_a_runtime_that_somebody_stops_meanwhile_is_waited_for_and_not_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 8  # the patience is over more than once: a look that is not woken comes after it
    shown_as(bench, monkeypatch, *[RuntimeState.STOPPING] * looks, RuntimeState.STOPPED)
    await bench.run()
    row = await bench.finished(await bench.dispatch("reconfigure:5", config=make_config(5)))
    assert (row.status, row.evidence["committed"]) == (ReportStatus.COMPLETED, False)
    assert (bench.world.began, await bench.current()) == (1, "5-1")


async def test_a_decision_to_go_back_is_journaled_and_shown_without_secrets(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tells_a_secret(probe: WorldProbe) -> ProbeResult:
        ready = probe._world.is_ready
        return ProbeResult(ready=ready, why=None if ready else f"it says {SECRET}")

    monkeypatch.setattr(WorldProbe, "check", tells_a_secret)
    bench.world.begin()
    await bench.run()
    config = secret_config(8)
    bench.world.never_ready_with = {config["sha256"]}
    row = await bench.finished(await bench.dispatch("reconfigure:8", config=config))
    assert row.going_back is not None
    assert "it says [redacted]" in row.going_back.reason.message
    assert SECRET not in json.dumps([row.going_back.reason.model_dump(), dict(row.going_back.evidence)])
    assert SECRET not in json.dumps(detail(row))
