"""Calls to the Supervisor that its own OpenAPI document forbids, and some that it allows, made by schemathesis.

A real Supervisor with two nodes, an API key and a node token. Every check is on: no 5xx, only the documented statuses,
types and shapes, nothing accepted that the document forbids and nothing refused that it allows, no call without its
credentials. In the end its store has exactly the rows that the accepted calls made: a refused one creates nothing.
"""

import asyncio
import base64
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.process import clean_environment
from tests.faults.fault import Budget, Ground
from tests.faults.tally import Tally
from tests.supervisor.process import serving_rig
from tests.supervisor.rig import Rig

Json = Any
PROGRAM = (sys.executable, "-m", "schemathesis.cli")
SHORTEST = 30.0
"""Seconds below which a run is bounded by the number of its calls: a slow machine would else make none."""
LATEST = 120.0
"""Seconds after its time in which a run has to have ended."""
CREATED = {
    "activities": "/activities/",
    "configs": "/configs/",
    "enrollment_tokens": "/enrollment-tokens",
}
"""What a POST to such a path creates, as a table of the store."""


def narrowed(document: Json, deployment_id: int, nodes: list[int]) -> Json:
    """Put into a document what it cannot know: which deployment and which nodes there are.

    And take out how long a poll may be held, for it would be held that long.
    """
    changed = json.loads(json.dumps(document))
    for methods in changed["paths"].values():
        for operation in methods.values():
            operation["parameters"] = [one for one in operation.get("parameters", ()) if one["name"] != "wait"]
            for parameter in operation["parameters"]:
                if parameter["name"] == "deployment_id":
                    parameter["schema"] = {"type": "integer", "enum": [deployment_id]}
    known = changed["components"]["schemas"]["DispatchBody"]["properties"]["nodes"]
    known["items"] = {"type": "integer", "enum": nodes}
    known["examples"] = [nodes]
    return changed


def count_rows(data: Path) -> Counter[str]:
    """Count the lines of the tables that calls create something in."""
    with closing(sqlite3.connect(f"file:{data / 'supervisor.db'}?mode=ro", uri=True)) as store:
        return Counter({table: store.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in CREATED})


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was made, and its answer."""

    method: str
    url: str
    status: int
    replayed: bool
    body: bytes


def exchanges(har: Path) -> Iterator[Exchange]:
    """Read what was called from an HTTP archive."""
    for entry in json.loads(har.read_text())["log"]["entries"]:
        answer = entry["response"]
        content = answer["content"]
        text = content.get("text") or ""
        body = base64.b64decode(text) if content.get("encoding") == "base64" else text.encode()
        replayed = any(header["name"].lower() == "idempotent-replayed" for header in answer["headers"])
        yield Exchange(entry["request"]["method"], entry["request"]["url"], answer["status"], replayed, body)


def created(exchange: Exchange) -> Counter[str]:
    """Say what an accepted call made, by table."""
    if exchange.method != "POST" or not 200 <= exchange.status < 300 or exchange.replayed:
        return Counter()
    for table, path in CREATED.items():
        if path in exchange.url and not exchange.url.endswith("/activate"):
            return Counter({table: len(json.loads(exchange.body)["items"]) if table == "activities" else 1})
    return Counter()


async def supervisor_api(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Do the row."""
    async with serving_rig(ground.folder / "data", "--poll-wait", "0.05") as (_, rig):
        agents = [await rig.agent() for _ in range(2)]
        await rig.dispatch()
        await rig.config()
        document = (await rig.call("GET", "/openapi/supervisor.json", ld_api_key="")).ok()
        nodes = [agent.node_id for agent in agents]
        (ground.folder / "openapi.json").write_text(json.dumps(narrowed(document, rig.deployment["id"], nodes)))
        (ground.folder / "schemathesis.toml").write_text(
            f'[auth.openapi.apiKey]\napi_key = "{rig.key}"\n[auth.openapi.nodeToken]\nbearer = "{agents[0].token}"\n'
        )
        while budget.more():
            await _run(ground, rig, tally, budget.seconds)


async def _run(ground: Ground, rig: Rig, tally: Tally, seconds: float) -> None:
    folder = ground.folder
    before = await asyncio.to_thread(count_rows, rig.data)
    output = await _schemathesis(folder, rig.url, ground.chance.getrandbits(32), seconds)
    called = list(exchanges(folder / "calls.har"))
    tally.injected += sum(400 <= exchange.status < 500 for exchange in called)
    tally.cases += len(called)
    tally.notes.append(f"{len(called):,} calls; {_statuses(called)}")
    made = (await asyncio.to_thread(count_rows, rig.data)) - before
    expected = sum(map(created, called), Counter[str]())
    if made != expected:
        tally.fail("rows", AssertionError(f"the store has {made} more rows, and accepted calls made {expected}"))
    if output is not None:
        tally.fail("a call", AssertionError(output))


def _statuses(called: list[Exchange]) -> str:
    counts = Counter(exchange.status for exchange in called)
    return ", ".join(f"{count:,} times {status}" for status, count in sorted(counts.items()))


async def _schemathesis(folder: Path, url: str, seed: int, seconds: float) -> str | None:
    """Make the calls; returns what was wrong, if anything was."""
    limits = ("--max-examples", "2") if seconds < SHORTEST else ("--max-examples", "20", "--max-time", f"{seconds:.0f}")
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, "--config-file", str(folder / "schemathesis.toml"), "run", str(folder / "openapi.json")),
        *("--url", url, "--checks", "all", "--seed", str(seed), *limits),
        *("--continue-on-failure", "--generation-database", "none", "--no-color"),
        *("--generation-with-security-parameters", "false", "--warnings", "off"),
        *("--report-har-path", str(folder / "calls.har")),
        cwd=folder,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds + LATEST):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return None if process.returncode == 0 else output.decode(errors="replace")
