"""The decision to go back, as it is journaled and shown."""

import json
from typing import Any

import pytest

from agent.local.views import detail
from agent.protocol import config_sha256
from agent.runtimes.probe import ProbeResult
from tests.activities.conftest import Bench, WorldProbe, make_config

SECRET = "correct horse battery staple"


def secret_config(config_id: int) -> dict[str, Any]:
    config = make_config(config_id, IGGY_ROOT_PASSWORD=SECRET)
    content = {key: config[key] for key in ("kind", "runtime_version", "values", "files")}
    secret_keys = ["IGGY_ROOT_PASSWORD"]
    return {**config, "secret_keys": secret_keys, "sha256": config_sha256(**content, secret_keys=secret_keys)}


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
