"""What the Engine says of its containers as it happens, read in a thread of its own.

It is a hint to look, never the truth: whoever hears it reads the container. So the stream may break, lag or lie; after
any end of it, and after anything odd in it, there is one more hint.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import requests
import structlog
import urllib3

from agent.runtimes.engine import Engine, EngineError

log = structlog.get_logger(__name__)

SILENCE = 60.0
"""Seconds without an event after which the stream is opened anew: one that is dead is silent too."""
PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds before the stream is opened again after it broke; doubling while it breaks at once."""
MAX_EVENT = 1024 * 1024
"""Bytes of one event; a line that is longer is no event."""
_NOISE = ("exec_", "top", "archive-path", "extract-to-dir", "export", "attach", "detach", "resize")


class Events:
    """Hints that one of some containers may have changed.

    Args:
        engine: Whose events.
        names: Of the containers.
        on_change: Called in the event loop.
        name: Of the thread.
        silence: Seconds, as above.
    """

    def __init__(
        self,
        engine: Engine,
        names: Collection[str],
        on_change: Callable[[], None],
        *,
        name: str,
        silence: float = SILENCE,
    ) -> None:
        self._engine = engine
        self._names = frozenset(names)
        self._on_change = on_change
        self._name = name
        self._silence = silence
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._response: requests.Response | None = None

    def open(self) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, name=self._name, daemon=True).start()

    def close(self) -> None:
        """Stop listening; the thread ends by itself, a moment later."""
        self._ended.set()
        response = self._response
        if response is not None:
            with suppress(OSError, ValueError, RuntimeError):
                response.raw.shutdown()

    def _listen(self) -> None:
        pause = PAUSE
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._read_stream()
            except (EngineError, requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                log.debug("docker.events_broke", error=str(error))
            if self._ended.is_set():
                return
            self._tell()
            pause = PAUSE if time.monotonic() - began > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            self._ended.wait(pause)

    def _read_stream(self) -> None:
        client = self._engine.new_client()
        try:
            url = f"{client.base_url}/v{client.api_version}/events"
            filters = json.dumps({"type": ["container"]})
            with client.get(url, params={"filters": filters}, stream=True, timeout=(10, self._silence)) as response:
                response.raise_for_status()
                self._response = response
                if self._ended.is_set():
                    return
                self._tell()  # what happened before the stream began
                for line in _lines(response):
                    if self._is_about_us(line):
                        self._tell()
        finally:
            self._response = None
            client.close()

    def _is_about_us(self, line: bytes) -> bool:
        """Tell whether to look; yes for all that cannot be read."""
        try:
            event: Any = json.loads(line)
            action, name = event["Action"], event["Actor"]["Attributes"]["name"]
            known = bool(event["Actor"]["ID"]) and isinstance(action, str) and isinstance(name, str)
        except (ValueError, KeyError, TypeError):
            return True
        if not known:
            return True
        return name in self._names and not action.startswith(_NOISE)

    def _tell(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop ended meanwhile
                self._loop.call_soon_threadsafe(self._on_change)


def _lines(response: requests.Response) -> Any:
    """Cut the stream into lines, as they come."""
    rest = b""
    for part in response.iter_content(chunk_size=None):
        *lines, rest = (rest + part).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > MAX_EVENT:
            msg = "an event without an end"
            raise ValueError(msg)
