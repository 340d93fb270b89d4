"""The Docker Engine's API, in a few named threads: every call is bounded, and an Engine that is away is found again.

This is the only module that imports the `docker` package, and it uses its low-level client only. Each thread takes a
client of its own for as long as a call lasts, because a client is a `requests` session, which is not made for sharing.
"""

import asyncio
import errno
import itertools
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import docker
import docker.errors
import requests
import structlog
import urllib3

log = structlog.get_logger(__name__)

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
CALL_TIMEOUT = 10.0
"""Seconds that the Engine may take for a call that does not wait for a program; it answers in milliseconds."""
SLOW = 6
"""Times the short call's limit for making, starting or removing a container: a slow disk, a network driver."""
KILL = 1.5
"""Times the same, beyond its grace, for a stop: after SIGKILL the Engine waits 10 s for the end."""
THREADS = 4
"""Calls at a time. A stop takes one for as long as the program takes to end; looking must go on meanwhile."""
ABANDON_AFTER = 2.0
"""Seconds beyond a call's own time limit after which its thread is not waited for any more."""
TRY_AGAIN = 0.25
"""Seconds between two tries to reach an Engine that is away."""
ONE_SHOT_SINCE = (1, 41)
"""The API version from which the Engine tells the use of memory and CPU without measuring for two seconds."""

T = TypeVar("T")


class EngineError(Exception):
    """The Engine did not do what was asked."""


class AwayError(EngineError):
    """The Engine cannot be reached, or does not answer.

    Args:
        message: Why.
        uncertain: Whether the call may have reached it.
    """

    def __init__(self, message: str, *, uncertain: bool) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class DeniedError(AwayError):
    """This user may not open the Engine's socket."""


class ThreadlessError(AwayError):
    """The system lets the agent make no thread for the call, which was not made."""

    def __init__(self) -> None:
        super().__init__(f"no thread can be made for it: {os.strerror(errno.EAGAIN)}", uncertain=False)


class RefusedError(EngineError):
    """The Engine answered with an error.

    Args:
        status: The HTTP status.
        text: What it says.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Engine:
    """One Engine, as one driver uses it.

    Args:
        name: Of its threads.
        address: `unix://…` or `tcp://…`; the system's socket when None.
        call_timeout: Seconds for a short call.
    """

    def __init__(self, name: str, address: str | None, *, call_timeout: float = CALL_TIMEOUT) -> None:
        self.address = address or DEFAULT_ADDRESS
        self.call_timeout = call_timeout
        self._slow = SLOW * call_timeout
        self._name = name
        self._numbers = itertools.count(1)
        self._slots = asyncio.Semaphore(THREADS)
        self._idle: deque[docker.APIClient] = deque(maxlen=THREADS)
        self._version: str | None = None
        self._is_closed = False

    # --- reading -------------------------------------------------------------------------------------------------

    async def inspect(self, container: str) -> Mapping[str, Any] | None:
        """Read a container by its name or id; None when there is none (GET /containers/{id}/json)."""
        try:
            return await self._call(lambda client: client.inspect_container(container))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    async def image_id(self, image: str) -> str | None:
        """Return the id that an image's name stands for now; None when there is none (GET /images/{name}/json)."""
        try:
            return str((await self._call(lambda client: client.inspect_image(image)))["Id"])  # type: ignore[no-untyped-call]  # the stub has no types for it
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    async def usage(self, container: str) -> Mapping[str, Any] | None:
        """Return its use of memory and CPU (GET /containers/{id}/stats); None where that would take seconds."""

        def read(client: docker.APIClient) -> Mapping[str, Any] | None:
            if _version(client.api_version) < ONE_SHOT_SINCE:
                return None
            answer: Mapping[str, Any] = client.stats(container, stream=False, one_shot=True)
            return answer

        return await self._call(read)

    async def logs(self, container: str, *, since: float, until: float | None, lines: int, max_bytes: int) -> bytes:
        """Return the end of what it wrote (GET /containers/{id}/logs).

        Args:
            container: Its id.
            since: Seconds since the epoch.
            until: The same; None for now.
            lines: At most so many.
            max_bytes: Of these, keep the last; the rest is dropped as it comes.
        """
        deadline = time.monotonic() + self.call_timeout

        def read(client: docker.APIClient) -> bytes:
            kept = bytearray()
            stream = client.logs(
                container, stdout=True, stderr=True, stream=True, since=since, until=until, tail=lines, follow=False
            )
            with_end: Any = stream
            try:
                for part in stream:
                    kept += part
                    del kept[:-max_bytes]
                    if time.monotonic() > deadline:
                        break
            finally:
                with_end.close()
            return bytes(kept)

        return await self._call(read)

    # --- acting --------------------------------------------------------------------------------------------------

    async def start(self, container: str) -> None:
        """Start it; one that runs already is left as it is (POST /containers/{id}/start)."""
        await self._call(lambda client: client.start(container), self._slow)

    async def stop(self, container: str, *, grace: float) -> None:
        """Stop it, with SIGKILL after `grace` seconds; one that is down is left so (POST /containers/{id}/stop).

        The client adds the grace to its own time limit, which leaves that for the kill.
        """
        seconds = max(1, round(grace))
        await self._call(
            lambda client: client.stop(container, timeout=seconds), KILL * self.call_timeout, lasts=seconds
        )

    async def unpause(self, container: str) -> None:
        """Let it go on (POST /containers/{id}/unpause)."""
        await self._call(lambda client: client.unpause(container))

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Make a container, and return its id (POST /containers/create)."""

        def call(client: docker.APIClient) -> str:
            return str(client.create_container_from_config(dict(body), name)["Id"])  # type: ignore[no-untyped-call]  # as above

        return await self._call(call, self._slow)

    async def connect(self, network: str, container: str, endpoint: Mapping[str, Any]) -> None:
        """Connect a container to a further network (POST /networks/{id}/connect)."""

        def call(client: docker.APIClient) -> None:
            url = f"{client.base_url}/v{client.api_version}/networks/{network}/connect"
            body = {"Container": container, "EndpointConfig": dict(endpoint)}
            response = client.post(url, json=body, timeout=client.timeout)
            if not response.ok:
                raise RefusedError(response.status_code, _explanation(response))

        await self._call(call, self._slow)

    async def set_restart_policy(self, container: str, policy: Mapping[str, Any]) -> None:
        """Change its restart policy (POST /containers/{id}/update)."""
        wanted: Any = dict(policy)
        await self._call(lambda client: client.update_container(container, restart_policy=wanted))

    async def rename(self, container: str, name: str) -> None:
        """Give it another name (POST /containers/{id}/rename)."""
        await self._call(lambda client: client.rename(container, name))

    async def remove(self, container: str) -> None:
        """Remove one that is down, but none of its volumes (DELETE /containers/{id})."""
        try:
            await self._call(lambda client: client.remove_container(container, v=False, force=False), self._slow)
        except RefusedError as error:
            under_way = error.status == 409 and "already in progress" in str(error)
            if error.status != 404 and not under_way:
                raise

    # --- reaching it ---------------------------------------------------------------------------------------------

    async def wait_until_up(self, seconds: float) -> None:
        """Wait until the Engine answers, but no longer than so many seconds; the next call tells."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    with suppress(EngineError):
                        await self._call(lambda client: client.ping())
                        return
                    await asyncio.sleep(TRY_AGAIN)

    def new_client(self) -> docker.APIClient:
        """Make a client that speaks a version which the Engine knows; blocks (GET /version).

        Raises:
            AwayError: It cannot be asked for its version.
        """
        return self._translated(self._connect, sent=False)

    def _connect(self) -> docker.APIClient:
        self._knock()
        client = docker.APIClient(self.address, version=self._version or "auto", timeout=self.call_timeout)  # type: ignore[arg-type]  # the stub knows whole seconds only
        client.trust_env = False  # a proxy for the web is none for the Engine
        self._version = client.api_version
        return client

    def _knock(self) -> None:
        """See that somebody listens: where nobody does, the client would leave its socket open (docker 7.2)."""
        if self.address.startswith("unix://"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
                knock.settimeout(self.call_timeout)
                knock.connect(self.address.removeprefix("unix://"))

    async def _call(self, job: Callable[[docker.APIClient], T], timeout: float | None = None, lasts: float = 0) -> T:  # noqa: ASYNC109 - it bounds the HTTP call as well, in its thread
        """Make a call in a thread of its own.

        A cancelled caller stops waiting; the call is made to its end all the same. The threads are daemons: the
        Engine's stop takes as long as the program, and the agent's own end must not wait for it.
        """
        limit = timeout or self.call_timeout
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        try:
            async with asyncio.timeout(limit):
                await self._slots.acquire()
        except TimeoutError as error:
            msg = f"it did not answer any of {THREADS} calls"
            raise AwayError(msg, uncertain=False) from error

        def run() -> None:
            outcome: T | Exception
            try:
                outcome = self._with_client(job, limit)
            except Exception as error:  # noqa: BLE001 - it is raised where the call was made
                outcome = error
            with suppress(RuntimeError):  # the loop ended meanwhile, and with it who waited
                loop.call_soon_threadsafe(self._finish, answer, outcome)

        try:
            threading.Thread(target=run, name=f"{self._name}-{next(self._numbers)}", daemon=True).start()
        except RuntimeError as error:  # pthread_create(3): EAGAIN
            self._slots.release()
            raise ThreadlessError from error
        try:
            async with asyncio.timeout(limit + lasts + ABANDON_AFTER):
                return await answer
        except TimeoutError as error:
            msg = f"it did not answer within {limit + lasts:g} s"
            raise AwayError(msg, uncertain=True) from error

    def _finish(self, answer: asyncio.Future[T], outcome: T | Exception) -> None:
        self._slots.release()
        if answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _with_client(self, job: Callable[[docker.APIClient], T], limit: float) -> T:
        """Make a call with a client that is idle, or a new one; runs in a thread."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = self.new_client()
        client.timeout = limit  # type: ignore[assignment]  # as above
        try:
            self._translated(self._knock, sent=False)
            result = self._translated(lambda: job(client), sent=True)
        except AwayError:
            client.close()
            self._forget_clients()
            raise
        except RefusedError:
            self._put_back(client)
            raise
        self._put_back(client)
        return result

    def _put_back(self, client: docker.APIClient) -> None:
        if self._is_closed:
            client.close()
        else:
            self._idle.append(client)

    def _forget_clients(self) -> None:
        """Begin anew with connections and version: it may be another Engine that comes back."""
        self._version = None
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()

    def close(self) -> None:
        """Close what is idle; a call under way is left to its thread."""
        self._is_closed = True
        self._forget_clients()

    def _translated(self, call: Callable[[], T], *, sent: bool) -> T:
        try:
            return call()
        except docker.errors.APIError as error:
            raise RefusedError(error.status_code or 500, str(error.explanation or error)) from error
        except docker.errors.DockerException as error:
            raise self._away(error, sent=sent) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._away(error, sent=sent) from error

    def _away(self, error: Exception, *, sent: bool) -> AwayError:
        text = f"{type(error).__name__}: {error}"
        if "PermissionError" in text or "Permission denied" in text:
            return DeniedError(f"this user may not open {self.address}", uncertain=False)
        if "Read timed out" in text or "timed out" in text:
            return AwayError("it does not answer", uncertain=sent)
        never_sent = any(word in text for word in ("FileNotFoundError", "ConnectionRefusedError", "NewConnectionError"))
        why = f"there is nobody at {self.address}" if never_sent else "the connection broke"
        return AwayError(why, uncertain=sent and not never_sent)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _explanation(response: requests.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
