"""What happens to one request of the agent, drawn by chance: each kind of fault, and how often it comes."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web
from yarl import URL

from agent.protocol import MAX_BODY_BYTES
from tests.e2e import fault_proxy
from tests.e2e.fault_proxy import Exchange, Fault, answer_with
from tests.e2e.waiting import until

LONGEST_DELAY = 1.5
"""Seconds that a request or an answer may be held up; less than a hasty agent's patience, so most still arrive."""
LONGEST_KEPT = 30.0
"""Seconds after which an answer is too old to come in the place of a newer one."""
EARLY = 0.03
"""Seconds by which a Retry-After may seem to be cut short, for it is counted from when the answer was on its way."""

PORTAL = "<!doctype html><html><head><title>Welcome</title></head><body>Please accept our terms.</body></html>"
GARBAGE: tuple[tuple[int, bytes, str], ...] = (
    (200, b"", "application/json"),
    (200, b"null", "application/json"),
    (200, b"{}", "application/json"),
    (200, b"[]", "application/json"),
    (200, b'"ok"', "text/plain"),
    (200, b"[" * 100_000, "application/json"),
    (200, b"\x00\xff\xfe\x80" * 300, "application/octet-stream"),
    (200, b'{"items": {}, "results": 5, "server_time": "never"}', "application/json"),
    (200, b'{"items": [], "last": -1, "revision": 1e400}', "application/json"),
    (200, b'{"items": null, "results": [null, {"activity_id": "1"}, {"outcome": "recorded"}]}', "application/json"),
    (200, b" " * (MAX_BODY_BYTES + 1), "application/json"),
    (204, b"", "application/json"),
    (299, b"?", "text/plain"),
    (418, b"{", "application/problem+json"),
)


async def _stall(exchange: Exchange) -> web.StreamResponse:
    """Take the request and say nothing, until the agent gives up."""
    await until(lambda: exchange.left, "the agent gives the call up", within=fault_proxy.LONGEST, every=0.02)
    return exchange.abort()


async def _stall_in_body(exchange: Exchange) -> web.StreamResponse:
    """Give half of the answer, and nothing more until the agent gives up."""
    await fault_proxy.answer_by_half(exchange)
    return await _stall(exchange)


async def _cut_request(exchange: Exchange) -> web.StreamResponse:
    """Bring the Supervisor half of the request's body, or of its head if it has none, and close both connections."""
    request, url = exchange.request, URL(exchange.upstream)
    lines = [
        f"{request.method} {request.path_qs} HTTP/1.1",
        *(f"{key}: {text}" for key, text in request.headers.items()),
    ]
    content = "\r\n".join([*lines, "", ""]).encode() + exchange.body
    _, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(content[: -len(exchange.body) // 2 if exchange.body else len(content) // 2])
        await writer.drain()
    finally:
        writer.close()
    return exchange.abort()


async def _gibberish(exchange: Exchange) -> web.StreamResponse:
    """Answer with something that is not HTTP."""
    transport = exchange.request.transport
    if transport is not None:
        transport.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        transport.close()
    return web.Response(status=502)


def _late(chance: random.Random) -> Fault:
    """Bring the Supervisor the request after the agent gave it up, or was killed."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await _stall(exchange)
        await asyncio.sleep(chance.uniform(0.0, LONGEST_DELAY))
        await exchange.forward()
        return exchange.abort()

    return fault


def _twice(chance: random.Random) -> Fault:
    """Send the request twice at the same time, and give the agent one of the two answers."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answers = await asyncio.gather(exchange.forward(), exchange.forward())
        return chance.choice(answers)

    return fault


def _replay(chance: random.Random) -> Fault:
    """Bring the Supervisor the request once more, a while later, when nobody waits for what it answers."""
    later: set[asyncio.Task[None]] = set()

    async def again(exchange: Exchange) -> None:
        await asyncio.sleep(chance.uniform(0.1, 2 * LONGEST_DELAY))
        await exchange.forward()

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        task = asyncio.create_task(again(exchange))
        later.add(task)
        task.add_done_callback(later.discard)
        return answer

    return fault


def _reorder(chance: random.Random) -> Fault:
    """Give the items of a list, or the results of reports, in another order, and some of them again."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        key = {"activities": "items", "reports": "results"}.get(exchange.path)
        content = json.loads(answer.body) if answer.status == 200 and isinstance(answer.body, bytes) else {}
        if key is None or not content.get(key):
            exchange.hit = False
            return answer
        again = chance.choices(content[key], k=chance.randint(1, len(content[key])))
        content[key] = [*reversed(content[key]), *again]
        return web.json_response(content)

    return fault


def _older(_chance: random.Random) -> Fault:
    """Give the answer to the call of the same kind before, if that is not too long ago.

    Not so for sweeps: nothing tells an old list from that of a Supervisor that was put back from a copy, and no cache
    may keep what is answered to a request with a token (RFC 9111, 3.5).
    """
    kept: dict[str, tuple[float, bytes]] = {}

    async def fault(exchange: Exchange) -> web.StreamResponse:
        before, answer = kept.get(exchange.path), await exchange.forward()
        if exchange.request.query.get("after") == "0" or answer.status != 200 or not isinstance(answer.body, bytes):
            exchange.hit = False
            return answer
        kept[exchange.path] = time.monotonic(), answer.body
        if before is None or time.monotonic() - before[0] > LONGEST_KEPT:
            exchange.hit = False
            return answer
        return web.Response(body=before[1], content_type="application/json")

    return fault


def _delay(chance: random.Random) -> Fault:
    """Hold the request up, or its answer, which is out of date when it arrives."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        before, after = chance.choice(((1, 0), (0, 1), (0.5, 0.5)))
        seconds = chance.uniform(0.05, LONGEST_DELAY)
        await asyncio.sleep(before * seconds)
        answer = await exchange.forward()
        await asyncio.sleep(after * seconds)
        return answer

    return fault


def _error(chance: random.Random) -> Fault:
    """Answer 500, 502, 503 or 504; half of the time after the Supervisor has done what it was asked for."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        if chance.random() < 0.5:
            await exchange.forward()
        return await answer_with(chance.choice((500, 502, 503, 504)))(exchange)

    return fault


def _too_many(chance: random.Random) -> Fault:
    """Answer 429 with a Retry-After in seconds, or as a date."""

    async def fault(_exchange: Exchange) -> web.StreamResponse:
        seconds, now = chance.choice((0, 1, 2)), datetime.now(UTC).replace(microsecond=0)
        headers = {"Retry-After": str(seconds)}
        if chance.random() < 0.3:
            until = format_datetime(now + timedelta(seconds=seconds), usegmt=True)
            headers = {"Retry-After": until, "Date": format_datetime(now, usegmt=True)}
        return web.json_response({"code": "rate_limited"}, status=429, headers=headers)

    return fault


def _refuse(chance: random.Random) -> Fault:
    """Answer 401 or 403, as a Supervisor does that does not know the token for a while."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        return await answer_with(chance.choice((401, 401, 403)))(exchange)

    return fault


def _garbage(chance: random.Random) -> Fault:
    """Answer with what is no answer; half of the time after the Supervisor has done what it was asked for."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward() if chance.random() < 0.5 else None
        if chance.random() < 0.15:
            return await _gibberish(exchange)
        if answer is not None and isinstance(answer.body, bytes) and chance.random() < 0.3:
            return web.Response(body=answer.body[:-1], content_type="application/json")
        status, body, kind = chance.choice(GARBAGE)
        return web.Response(status=status, body=body, content_type=kind)

    return fault


def _portal(chance: random.Random) -> Fault:
    """Answer as the captive portal of a network does: with a page, or with the way to one."""

    async def fault(_exchange: Exchange) -> web.StreamResponse:
        status = chance.choice((200, 200, 302, 307, 511))
        headers = {"Location": "http://portal.invalid/login"} if 300 <= status < 400 else {}
        return web.Response(status=status, text=PORTAL, content_type="text/html", headers=headers)

    return fault


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        key: Of its row.
        name: Of its row.
        make: Makes it, with what it draws from.
        odds: How likely a request is hit in a storm of it alone.
    """

    key: str
    name: str
    make: Callable[[random.Random], Fault]
    odds: float


def _plain(fault: Fault) -> Callable[[random.Random], Fault]:
    return lambda _: fault


def _either(*faults: Fault) -> Callable[[random.Random], Fault]:
    def make(chance: random.Random) -> Fault:
        async def fault(exchange: Exchange) -> web.StreamResponse:
            return await chance.choice(faults)(exchange)

        return fault

    return make


KINDS: tuple[Kind, ...] = (
    Kind("drop", "request dropped", _plain(fault_proxy.drop), 0.4),
    Kind("swallow", "answer lost", _plain(fault_proxy.swallow), 0.4),
    Kind("stall", "stalled, until the agent gives up", _either(_stall, _stall_in_body), 0.25),
    Kind("late", "arrives when it was given up", _late, 0.25),
    Kind("cut", "answer cut in its body", _plain(fault_proxy.cut), 0.4),
    Kind("cut-request", "request cut in its body", _plain(_cut_request), 0.4),
    Kind("duplicate", "request sent twice", _twice, 0.8),
    Kind("replay", "request sent again later", _replay, 0.5),
    Kind("reorder", "items out of order and again", _reorder, 1.0),
    Kind("older", "an older answer", _older, 0.3),
    Kind("delay", "held up", _delay, 0.5),
    Kind("5xx", "answered 5xx", _error, 0.4),
    Kind("429", "answered 429", _too_many, 0.3),
    Kind("401", "token refused for a while", _refuse, 0.3),
    Kind("garbage", "garbage for an answer", _garbage, 0.4),
    Kind("portal", "captive portal", _portal, 0.4),
)


class Weather:
    """The fault of a proxy: draws for each request whether one comes, and which.

    Args:
        kinds: What comes; one after the other first, so that all come, and then by chance.
        chance: Draws.
        odds: How likely a request is hit, once one was.
        only: The kind of call that is hit; None for all.
    """

    def __init__(self, kinds: Sequence[Kind], chance: random.Random, odds: float, *, only: str | None = None) -> None:
        self._only = only
        self._chance = chance
        self._odds = odds
        self._faults = {kind.key: kind.make(chance) for kind in kinds}
        self._next = itertools.chain(self._faults, iter(lambda: chance.choice(list(self._faults)), None))
        self._quiet_until: dict[str, float] = {}
        self.hits: Counter[str] = Counter()
        """How often each kind came."""
        self.hurried: list[str] = []
        """Calls that came before the Retry-After of the one before was over."""

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        early = self._quiet_until.pop(exchange.path, 0.0) - time.monotonic()
        if early > EARLY:
            self.hurried.append(f"{exchange.path} came {early:.3f} s too early")
        spared = bool(self.hits) and self._chance.random() >= self._odds
        if spared or self._only not in {None, exchange.path}:
            return await exchange.forward()
        key = next(self._next)
        answer = await self._faults[key](exchange)
        if exchange.hit:
            self.hits[key] += 1
        if answer.status == 429 and answer.headers["Retry-After"].isdigit():
            self._quiet_until[exchange.path] = time.monotonic() + int(answer.headers["Retry-After"])
        return answer
