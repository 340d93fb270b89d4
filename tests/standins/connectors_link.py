"""The two connections of the `iggy-connectors` double to Iggy: made before all else, and made again when they break."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from tests.standins import wire
from tests.standins.console import Console
from tests.standins.listening import BadAddressError, split_address

RETRY = 1.0
"""The seconds between two attempts to connect."""

_TARGET = "iggy::tcp::tcp_client"
_ERRORS = {wire.INVALID_CREDENTIALS: "InvalidCredentials", wire.RESOURCE_NOT_FOUND: 'ResourceNotFound("")'}


class LinkError(Exception):
    """The runtime cannot sign in and ends with exit code 1; the text is Rust's word for why."""


class Link:
    """Connects to Iggy and stays connected.

    Args:
        settings: the table `[iggy]` of the configuration.
        console: the log.

    Attributes:
        lost: whether Iggy is away now, after it was there.

    Raises:
        LinkError: the address or the token cannot be used.
    """

    def __init__(self, settings: dict[str, Any], console: Console) -> None:
        self._console = console
        try:
            self._host, self._port = split_address(settings["address"])
        except BadAddressError as error:
            msg = "IggyError(InvalidConnectionString)"
            raise LinkError(msg) from error
        if not settings["token"] and not (settings["username"] and settings["password"]):
            msg = "MissingIggyCredentials"
            raise LinkError(msg)
        token = _resolve_token(settings["token"])
        self._credentials = wire.Credentials(settings["username"], settings["password"], token)
        self._clients: list[wire.Client] = []
        self.lost = False

    def connect(self) -> None:
        """Connect and sign in, twice, waiting for Iggy for ever; raise LinkError when it refuses."""
        self._clients = [self._connect(), self._connect()]

    def keep(self) -> None:
        """Look after the connections from now on, in a thread."""
        threading.Thread(target=self._keep, daemon=True).start()

    @property
    def client(self) -> wire.Client:
        """One of the connections."""
        return self._clients[0]

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()

    def _connect(self) -> wire.Client:
        where = f"{self._host}:{self._port}"
        attempt = 0
        while True:
            self._console.info("", _TARGET, f"Iggy client is connecting to server: {where}...")
            try:
                client = wire.Client(self._host, self._port, self._credentials)
            except wire.RefusedError as error:
                msg = f"IggyError({_ERRORS.get(error.status, error.status)})"
                raise LinkError(msg) from error
            except OSError as error:
                attempt += 1
                cause = f"{os.strerror(error.errno or 0)} (os error {error.errno})"
                self._console.error("", _TARGET, f"Failed to connect to server: {where}. Error: {cause}")
                text = f"Retrying to connect to server ({attempt}/unlimited): {where} in: {RETRY:.0f}s"
                self._console.info("", _TARGET, text)
                time.sleep(RETRY)
            else:
                self._console.info("", _TARGET, f"Iggy client has connected to server: {where}")
                return client

    def _keep(self) -> None:
        while True:
            time.sleep(RETRY)
            for position, client in enumerate(self._clients):
                try:
                    client.ping()
                except (OSError, ValueError):  # ValueError: it was closed by us
                    self._console.warn("", _TARGET, "The connection to the server is lost, reconnecting")
                    client.close()
                    self.lost = True
                    with contextlib.suppress(LinkError):  # a running runtime lives on without Iggy
                        self._clients[position] = self._connect()
                    self.lost = False


def _resolve_token(token: str) -> str:
    if not token.startswith("file:"):
        return token
    path = token.removeprefix("file:")
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        msg = f'TokenFileNotFound("{path}")'
        raise LinkError(msg) from error
    if not content:
        msg = f'TokenFileEmpty("{path}")'
        raise LinkError(msg)
    return content
