"""A running Supervisor, the user who calls it, and agents that call it: all over real HTTP."""

import asyncio
import contextlib
import io
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from supervisor.app import Options, Supervisor
from supervisor.cli import _parser
from supervisor.clock import SECOND, now_microseconds
from supervisor.fleet import Node

Json = Any
machines = itertools.count(1)


class Clock:
    """The wall clock, which a test may set forward."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return now_microseconds() + self.ahead

    def forward(self, seconds: float) -> None:
        self.ahead += round(seconds * SECOND)


async def command(data: Path, *arguments: str) -> Json:
    """Run a command of `iggy-supervisor` in this process, and return what it would print."""

    def run() -> Json:
        options = _parser().parse_args([*arguments, "--data", str(data)])
        return options.run(options)

    return await asyncio.to_thread(run)


@dataclass
class Answer:
    status: int
    headers: Any
    body: Json
    raw: bytes

    def problem(self, status: int, code: str) -> Json:
        """Check that this is a problem of the documented shape, and return it."""
        assert (self.status, self.body.get("code")) == (status, code), self.body
        assert self.headers["Content-Type"].startswith("application/problem+json")
        assert {"type", "title", "code", "reason", "instance", "field_issues", "status", "retryable"} <= set(self.body)
        assert self.body["type"] == "about:blank"
        assert self.body["status"] == status
        assert self.body["retryable"] is (status in {408, 425, 429, 500, 502, 503, 504})
        assert self.body["instance"] == self.headers["ld-request"]
        assert self.body["reason"].startswith("cannot ")
        return self.body

    def ok(self, status: int = 200) -> Json:
        assert self.status == status, self.raw[:2000]
        return self.body


@dataclass
class Rig:
    """A Supervisor that runs, with a deployment and a key that may do everything."""

    url: str
    data: Path
    session: aiohttp.ClientSession
    clock: Clock
    in_process: Supervisor | None = None
    """None when it runs in a process of its own."""
    deployment: Json = None
    key: str = ""

    @property
    def supervisor(self) -> Supervisor:
        assert self.in_process is not None
        return self.in_process

    @property
    def base(self) -> str:
        return f"/deployments/{self.deployment['id']}"

    async def call(self, method: str, path: str, *, json_body: Json = None, body: Any = None, **headers: str) -> Answer:
        """Call a path below the deployment, or an absolute one, with the key."""
        sent = {"ld-api-key": self.key} | {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(json_body).encode() if json_body is not None else body
        if isinstance(data, bytes):
            data = io.BytesIO(data)
        url = self.url + (path if path.startswith("/") else f"{self.base}/{path}")
        async with self.session.request(
            method, url, data=data, headers={name: value for name, value in sent.items() if value}
        ) as response:
            raw = await response.read()
            assert len(response.headers["ld-request"]) == 32
            return Answer(response.status, response.headers, json.loads(raw) if raw else None, raw)

    async def dispatch(self, action: str = "iggy/restart", nodes: list[int] | None = None) -> list[Json]:
        answer = await self.call("POST", f"activities/{action}", json_body={"nodes": nodes} if nodes else {})
        items: list[Json] = answer.ok(202)["items"]
        return items

    async def activity(self, activity_id: int) -> Json:
        return (await self.call("GET", f"activities/{activity_id}")).ok()

    async def config(self, kind: str = "iggy", **body: Json) -> Json:
        sent = {"name": "main", "values": {"IGGY_HTTP_ENABLED": "true"}} | body
        return (await self.call("POST", f"configs/{kind}", json_body=sent)).ok(201)

    async def agent(self, *, token: str | None = None, machine: str | None = None) -> "Agent":
        """Enrol a new agent."""
        token = token or (await self.call("POST", "enrollment-tokens")).ok(201)["enrollment_token"]
        number = next(machines)
        machine = machine or f"machine-{number}"
        answer = await self.enroll(token, machine)
        return Agent(self, answer.ok(201), token, machine, f"instance-{number}")

    async def enroll(self, token: str, machine: str) -> Answer:
        body = {"enrollment_token": token, "hostname": "host", "machine_id": machine, "agent_version": "1.2.3"}
        return await self.call("POST", "/agent/v1/enroll", json_body=body, ld_api_key="")


@dataclass
class Agent:
    """An agent, as far as the Supervisor can see one."""

    rig: Rig
    enrollment: Json
    enrollment_token: str
    machine: str
    instance: str
    revision: int = 0
    token: str = field(default="")

    def __post_init__(self) -> None:
        self.token = self.token or self.enrollment["node_token"]

    @property
    def node_id(self) -> int:
        node_id: int = self.enrollment["node_id"]
        return node_id

    async def call(self, method: str, path: str, **sent: Any) -> Answer:
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Agent-Instance": self.instance,
            "Journal-Revision": str(self.revision),
            "ld-api-key": "",
        } | sent.pop("headers", {})
        return await self.rig.call(method, f"/agent/v1/{path}", **sent, **headers)

    async def poll(self, after: int = 0, wait: float = 0, limit: int = 100) -> Json:
        return (await self.call("GET", f"activities?after={after}&wait={wait}&limit={limit}")).ok()

    async def report(self, *reports: Json) -> list[str]:
        answer = (await self.call("POST", "reports", json_body={"reports": list(reports)})).ok()
        return [result["outcome"] for result in answer["results"]]

    async def beat(self, **changes: Json) -> Json:
        return (await self.call("POST", "heartbeats", json_body=heartbeat(**changes))).ok()


def report(activity_id: int, **changes: Json) -> Json:
    """Make a report as an agent sends it."""
    now = datetime.now(UTC).isoformat()
    return {
        "activity_id": activity_id,
        "status": "completed",
        "started_at": now,
        "finished_at": now,
        "changed": True,
        "recovered": False,
        "reason": None,
        "evidence": {"after": {"state": "running"}},
    } | changes


def heartbeat(**changes: Json) -> Json:
    """Make a heartbeat as an agent sends it."""
    now = datetime.now(UTC).isoformat()
    return {
        "sent_at": now,
        "agent": {"version": "1.2.3", "started_at": now, "journal": {"waiting": 0, "unreported": 0}},
        "node": {"hostname": "host", "cpu_count": 2},
        "runtimes": [{"runtime": "iggy", "driver": "process", "state": "running", "ready": True}],
    } | changes


@contextlib.asynccontextmanager
async def running(data: Path, clock: Clock | None = None, **options: Any) -> AsyncIterator[Rig]:
    """Run a Supervisor on a data folder; the first time, make a deployment and a key."""
    clock = clock or Clock()
    async with (
        Supervisor.open(Options(data=data, clock=clock, **options)) as supervisor,
        supervisor.listen("127.0.0.1", 0) as port,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
    ):
        rig = Rig(f"http://127.0.0.1:{port}", data, session, clock, supervisor)
        await prepare(rig)
        yield rig


async def prepare(rig: Rig) -> None:
    """Use the store's first deployment, made now if there is none, with a fresh key."""
    known = await command(rig.data, "deployments", "list")
    rig.deployment = known[0] if known else await command(rig.data, "deployments", "create", "--name", "test")
    rig.key = (await command(rig.data, "keys", "create"))["api_key"]


def node_of(rig: Rig, agent: Agent) -> Node:
    """Return what the Supervisor keeps in memory of an agent's node."""
    return rig.supervisor._fleet._nodes[agent.node_id]


async def until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a condition of another part has no event of its own
            await asyncio.sleep(0.001)
