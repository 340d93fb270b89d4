"""A user's side of the public API: what the demo and the tests dispatch and see."""

import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.waiting import PATIENCE, until


@dataclass(frozen=True, slots=True)
class Activity:
    """One activity, as the API shows it.

    Attributes:
        code: Of the reason, when it was rejected.
        raw: The whole item.
    """

    id: int
    runtime: str
    action: str
    node_id: int
    status: ActivityStatus
    code: str | None
    message: str | None
    raw: dict[str, Any]

    @classmethod
    def of(cls, item: dict[str, Any]) -> Self:
        """Read an item of an answer."""
        reason = item.get("reason") or {}
        return cls(
            id=item["id"],
            runtime=item["runtime"],
            action=item["action"],
            node_id=item["node_id"],
            status=ActivityStatus(item["status"]),
            code=reason.get("code"),
            message=reason.get("message"),
            raw=item,
        )

    @property
    def evidence(self) -> dict[str, Any]:
        """What the node reported beside the result; only in an activity that was got by itself."""
        return self.raw.get("evidence") or {}

    @property
    def recovered(self) -> bool:
        """Whether the agent finished it after a crash; only in an activity that was got by itself."""
        return bool(self.raw.get("recovered"))

    @property
    def changed(self) -> bool:
        """Whether anything had to be done; only in an activity that was got by itself."""
        return bool(self.raw.get("changed"))


class ApiError(Exception):
    """The API refused.

    Args:
        status: The HTTP status.
        problem: The body.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('code')}: {problem.get('reason')}")
        self.status = status
        self.problem = problem


class PublicApi:
    """The calls of one deployment with one API key; each on a connection of its own, so a restart of the Supervisor
    never meets an old one.
    """

    def __init__(
        self, url: str, deployment_id: int, api_key: str, *, tls: ssl.SSLContext | Literal[True] = True
    ) -> None:
        self.base = f"{url}/deployments/{deployment_id}"
        self.api_key = api_key
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=10),
            headers={"ld-api-key": self.api_key},
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Make a call below the deployment and return its answer.

        Raises:
            ApiError: It was refused.
            aiohttp.ClientError: The Supervisor is away.
        """
        if self._session is None:
            msg = "the API is used inside its `async with` only"
            raise RuntimeError(msg)
        async with self._session.request(method, f"{self.base}/{path}", json=body) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            if response.status >= 400:
                raise ApiError(response.status, answer)
            return answer

    async def dispatch(self, runtime: RuntimeName, action: str, nodes: Sequence[int] | None = None) -> Activity:
        """Dispatch an action and return its activity; the rig has one node."""
        body = {} if nodes is None else {"nodes": list(nodes)}
        answer = await self.call("POST", f"activities/{runtime}/{action}", body)
        (item,) = answer["items"]
        return Activity.of(item)

    async def get(self, activity_id: int) -> Activity:
        """Get an activity with its evidence."""
        return Activity.of(await self.call("GET", f"activities/{activity_id}"))

    async def activities(self) -> list[Activity]:
        """List all activities, newest first."""
        found: list[Activity] = []
        pages, page = 1, 1
        while page <= pages:
            answer = await self.call("GET", f"activities?page={page}&results=100")
            found += map(Activity.of, answer["items"])
            pages, page = answer["total_pages"], page + 1
        return found

    async def finished(self, activity_id: int, *, within: float = PATIENCE) -> Activity:
        """Wait until an activity is finished, also while the Supervisor is away, and return it with its evidence.

        Raises:
            TimeoutError: It is still processing.
        """

        async def look() -> Activity | None:
            try:
                activity = await self.get(activity_id)
            except aiohttp.ClientError:
                return None
            return None if activity.status is ActivityStatus.PROCESSING else activity

        return await until(look, f"activity {activity_id} is finished", within=within, every=0.02)

    async def run(self, runtime: RuntimeName, action: str, *, within: float = PATIENCE) -> Activity:
        """Dispatch an action, and return its activity when it is finished."""
        return await self.finished((await self.dispatch(runtime, action)).id, within=within)

    async def create_config(
        self,
        kind: RuntimeName,
        name: str,
        values: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        secret_keys: Iterable[str] = (),
    ) -> int:
        """Make a new version of a named config and return its id.

        Args:
            kind: The runtime that it is for.
            name: Of the config.
            values: Its variables.
            files: Content by path.
            secret_keys: Which of the values are secret.
        """
        body: dict[str, Any] = {"name": name, "values": values or {}, "secret_keys": list(secret_keys)}
        body["files"] = [{"path": path, "content": content} for path, content in (files or {}).items()]
        answer = await self.call("POST", f"configs/{kind}", body)
        return int(answer["id"])

    async def nodes(self) -> list[dict[str, Any]]:
        """List the nodes with their latest heartbeats."""
        items: list[dict[str, Any]] = (await self.call("GET", "nodes?results=100"))["items"]
        return items
