"""How the `iggy-server` double opens its ports, in Iggy's order, and how it ends when it cannot."""

import functools
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tests.standins import listening, server_settings, wire
from tests.standins.accounts import Accounts
from tests.standins.configuration import Table, dump
from tests.standins.console import Console, panic
from tests.standins.faults import Faults
from tests.standins.generation import Generation

LEGACY_QUIC_GIVE_UP = 10.0
"""For how many seconds a server of 0.8 whose QUIC port is taken stays up, without HTTP, before it ends."""


class FailedStartError(Exception):
    """The server ends before it is ready; the text is for stderr."""

    def __init__(self, code: int, text: str = "") -> None:
        self.code = code
        super().__init__(text)


class Ports:
    """The listeners of one server."""

    def __init__(self, config: Table, generation: Generation, faults: Faults, console: Console) -> None:
        self._config = config
        self._generation = generation
        self._faults = faults
        self._console = console
        self._sockets: list[socket.socket] = []
        self._acceptors: list[listening.Acceptor] = []
        self._tcp: listening.Acceptor | None = None

    @property
    def clients(self) -> int:
        """The number of clients of the binary protocol."""
        return self._tcp.connections if self._tcp else 0

    def open(self, accounts: Accounts, answer: listening.Handler) -> None:
        """Open TCP, WebSocket and QUIC, then HTTP, and write `current_config.toml` where the generation does.

        Raises:
            FailedStartError: a port is taken or an address is none.
        """
        session = wire.Session(
            knows=accounts.knows,
            knows_token=accounts.knows_personal_token,
            has_stream=lambda name: name in accounts.streams,
            create_stream=accounts.create_stream,
        )
        self._tcp = self._serve("tcp", functools.partial(wire.serve, session=session))
        self._serve("websocket", _read_on)
        if self._config["quic"]["enabled"]:
            self._bind("quic", socket.SOCK_DGRAM)
        if not self._generation.legacy:
            self._write_config()
        if not self._faults.on("never_ready"):
            self._serve("http", functools.partial(listening.serve_http, handler=answer))
        if self._generation.legacy:
            self._write_config()

    def close(self) -> None:
        """Stop accepting and cut the connections."""
        for acceptor in self._acceptors:
            acceptor.close()
        for one in self._sockets:
            one.close()

    def _serve(self, transport: str, serve: Callable[[socket.socket], None]) -> listening.Acceptor | None:
        if not self._config[transport]["enabled"]:
            return None
        acceptor = listening.Acceptor(self._bind(transport, socket.SOCK_STREAM), serve)
        self._acceptors.append(acceptor)
        return acceptor

    def _bind(self, transport: str, kind: socket.SocketKind) -> socket.socket:
        address = self._config[transport]["address"]
        try:
            bound = listening.bind(address, kind=kind, shared=self._generation.legacy)
        except (listening.BadAddressError, OSError) as error:
            self.close_after(transport, address, error)
        self._sockets.append(bound)
        if self._generation.legacy or transport != "http":
            self._config[transport]["address"] = listening.address_of(bound)
        started = "server HTTP listener started" if transport == "http" else f"{transport} server has started"
        if self._generation.legacy and transport == "http":
            started = "Started HTTP API"
        self._console.info("shard-0", f"server::{transport}", f"{started} on: {listening.address_of(bound)}")
        return bound

    def close_after(self, transport: str, address: str, error: Exception) -> NoReturn:
        """End as a server does that could not bind.

        One of 0.8 shuts down and exits with 0, for QUIC only after ten seconds without HTTP; one of 0.9 exits with 1.
        """
        taken = isinstance(error, OSError)
        if not self._generation.legacy:
            self.close()
            text = f'CannotBindToSocket("{address}")' if taken else f'InvalidAddress("{address}")'
            raise FailedStartError(1, f"Error: ShardJoinFailures {{ failures: [(0, {text})] }}") from error
        if transport == "http":
            panic("shard-0", f"Failed to bind to HTTP address {address}")
        elif not taken:
            panic("shard-0", f"Failed to parse {transport.upper()} address: AddrParseError(Socket)")
        else:
            text = f"task '{transport}_server' of kind Continuous failed: Cannot bind to socket with addr: {address}"
            self._console.error("shard-0", "server::shard::task_registry::registry", text)
        text = f"Critical task '{transport}_server' failed on shard 0, triggering shutdown for all shards"
        self._console.error("shard-0", "server::shard::task_registry::registry", text)
        if transport == "quic" and taken:
            time.sleep(LEGACY_QUIC_GIVE_UP)
        self.close()
        self._console.info("main", "iggy_server", "All shards have shut down. Iggy server is exiting.")
        raise FailedStartError(0) from error

    def _write_config(self) -> None:
        system = self._config["system"]
        path = Path(system["path"], system["runtime"]["path"], "current_config.toml")
        with path.open("w", encoding="utf-8") as file:
            file.write(dump(server_settings.public(self._config)))
            file.flush()
            os.fsync(file.fileno())
        self._console.info("shard-0", "server::config_writer", f"Current config written and synced to: {path}")


def _read_on(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass
