"""The Supervisor as one web application: routes, error answers, the work in the background, start and stop."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from aiohttp import web

from agent.protocol import MAX_BODY_BYTES
from supervisor import activities, idempotency, nodes
from supervisor.agent_api import AgentApi, Pace
from supervisor.agent_routes import agent_routes
from supervisor.answering import add_routes, answer_every_request
from supervisor.clock import SECOND, now_microseconds
from supervisor.fleet import Fleet
from supervisor.openapi import PATH, openapi
from supervisor.problems import ProblemError
from supervisor.public_api import PublicApi
from supervisor.public_routes import public_routes
from supervisor.routes import Route, encode
from supervisor.store import Store

log = structlog.get_logger(__name__)

SHUTDOWN_SECONDS = 1.0
"""How long answers may take that are on their way when the server stops; held polls are answered at once."""
KEEPALIVE_SECONDS = 75.0
BACKLOG = 4096
"""Connections that may wait to be accepted: a whole fleet comes back at once after a restart."""
TICK_SECONDS = 1.0
"""How often the work in the background looks whether there is something to do."""
FORGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a Supervisor runs; seconds."""

    data: Path
    activity_ttl: float = 3600.0
    report_grace: float = 900.0
    heartbeat_interval: float = 10.0
    poll_wait: float = 50.0
    clock: Callable[[], int] = now_microseconds


class Supervisor:
    """A Supervisor: the store, the fleet in memory, and the two APIs over them."""

    def __init__(self, store: Store, fleet: Fleet, options: Options) -> None:
        self._store = store
        self._fleet = fleet
        self._options = options
        public = PublicApi(store, fleet, options.activity_ttl, options.clock)
        agents = AgentApi(store, fleet, Pace(options.heartbeat_interval, options.poll_wait), options.clock)
        self.routes = [*public_routes(public), *agent_routes(agents), self._openapi_route()]
        self._document = b""
        self.background: asyncio.Task[None]
        """Ends by itself only by a fault; whoever serves then stops too."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, options: Options) -> AsyncIterator["Supervisor"]:
        """Open the store, load the fleet and do the work in the background, until the block ends.

        Raises:
            StoreError: The store cannot be opened.
        """
        store = await Store.open(options.data)
        try:
            fleet = Fleet()
            fleet.load(
                *await store.read(
                    lambda connection: (
                        nodes.all_nodes(connection),
                        nodes.all_tokens(connection),
                        activities.open_activities(connection),
                    )
                )
            )
            supervisor = cls(store, fleet, options)
            supervisor.background = asyncio.create_task(supervisor._work(), name="supervisor-background")
            try:
                yield supervisor
            finally:
                supervisor.background.cancel()
                await asyncio.wait({supervisor.background})
                await supervisor.save_heartbeats()
            if not supervisor.background.cancelled():
                supervisor.background.result()
        finally:
            await store.close()

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """Serve on an address until the block ends, and tell the port, which the system chooses for 0.

        Raises:
            OSError: The address cannot be listened on.
        """
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, ssl_context=tls, backlog=BACKLOG)
            await site.start()
            yield runner.addresses[0][1]
        finally:
            self._fleet.stop()
            await runner.cleanup()

    def application(self) -> web.Application:
        """Make the web application."""
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[answer_every_request])
        add_routes(application, self.routes)
        return application

    async def _work(self) -> None:
        """Give up activities, save heartbeats, forget old answers, and see what commands did: once a second."""
        known = await self._store.changed_outside()
        loop = asyncio.get_running_loop()
        forget_at = loop.time()
        while True:
            try:
                await self.expire()
                await self.save_heartbeats()
                if (current := await self._store.changed_outside()) != known:
                    known = current
                    self._fleet.removed(await self._store.read(nodes.removed_nodes))
                if loop.time() >= forget_at:
                    forget_at = loop.time() + FORGET_SECONDS
                    await self._store.write(partial(idempotency.forget_old, now=self._options.clock()))
            except ProblemError as error:
                log.warning("background.failed", code=error.code, reason=error.reason)
            await asyncio.sleep(TICK_SECONDS)

    async def expire(self) -> None:
        """Give up activities whose time and grace are over, in bounded transactions."""
        now = self._options.clock()
        before = now - round(self._options.report_grace * SECOND)
        while self._fleet.any_expired(before):
            given_up = await self._store.write(
                lambda connection: activities.expire(connection, before, now), self._fleet.closed
            )
            log.info("activity.no_report", activities=len(given_up))
            if not given_up:
                break

    async def save_heartbeats(self) -> None:
        """Save the heartbeats that came since the last time, in one transaction."""
        if unsaved := self._fleet.take_unsaved():
            await self._store.write(lambda connection: nodes.save_heartbeats(connection, unsaved))

    def _openapi_route(self) -> Route:
        return Route("GET", PATH, self._openapi, "openapi", "This document", "meta", None, ())

    async def _openapi(self, _: web.Request) -> web.Response:
        # Made when somebody asks: it takes a tenth of a second, which most servers never need to spend.
        if not self._document:
            self._document = await asyncio.to_thread(lambda: encode(openapi(self.routes)))
        return web.Response(body=self._document, content_type="application/json")
