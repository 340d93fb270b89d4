"""The stand-in for `iggy-connectors`: what an agent sees of it, from the arguments to the exit code, and no plugins."""

import functools
import itertools
import os
import signal
import sys
import time
from pathlib import Path

from tests.standins import births, connector_files, connectors_settings, ending, listening
from tests.standins.configuration import CannotLoadError, Table
from tests.standins.connector_files import Connector, InvalidConfigurationError
from tests.standins.connectors_api import ConnectorsApi
from tests.standins.connectors_link import Link, LinkError
from tests.standins.console import Console, panic, usage_error
from tests.standins.faults import Faults
from tests.standins.generation import Generation, chosen

PROGRAM = "iggy-connectors"
LABEL = "stand-in for iggy-connectors, not Apache Iggy"
HELP = f"""\
{LABEL}

Usage: iggy-connectors

Options:
  -h, --help     Print help
  -V, --version  Print version
"""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STUCK = 5.0
"""The seconds that a stop waits for each source that cannot reach Iggy."""


class PanicError(Exception):
    """The runtime ends with exit code 101."""


class StreamMissingError(Exception):
    """A sink's stream does not exist."""


def main(arguments: list[str]) -> int:
    """Run the connectors until they are stopped and return their exit code."""
    ending.default_signals()
    environ = dict(os.environ)
    generation = chosen(environ)
    for argument in arguments:
        if argument in {"-V", "--version"}:
            print(f"{PROGRAM} {generation.connectors_version}")
            return 0
        if argument in {"-h", "--help"}:
            print(HELP, end="")
            return 0
        return usage_error(PROGRAM, argument, "")
    births.record(environ, "start", PROGRAM)
    try:
        code = Runtime(environ, generation).run()
    except PanicError as error:
        panic("main", str(error))
        return 101
    except (InvalidConfigurationError, LinkError, StreamMissingError) as error:
        sys.stderr.write(f"Error: {_debug(error)}\n")
        return 1
    births.record(environ, "end", PROGRAM, exit_code=code)
    return code


def _debug(error: Exception) -> str:
    if isinstance(error, InvalidConfigurationError):
        text = str(error).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'InvalidConfiguration("{text}")'
    return str(error)


class Runtime:
    """One run of the connectors runtime."""

    def __init__(self, environ: dict[str, str], generation: Generation) -> None:
        self._environ = environ
        self._generation = generation
        self._faults = Faults(environ)
        self._console = Console()
        self._stop = ending.Stop(self._faults, functools.partial(self._console.warn, "", "iggy_connectors"))
        self._numbers = itertools.count(1)

    def run(self) -> int:
        """Start, serve until a stop is asked for, stop, and return the exit code.

        Raises:
            PanicError, InvalidConfigurationError, LinkError, StreamMissingError: it cannot start.
        """
        print(f"Iggy Connectors {self._generation.connectors_version} ({LABEL})\n")
        path = connectors_settings.path(self._environ)
        print(f"Starting Iggy Connectors Runtime, loading configuration from: {path}...", flush=True)
        ending.exit_at_start(self._faults)
        ending.leave_child(self._faults)
        try:
            config = connectors_settings.read(self._environ)
        except CannotLoadError as error:
            msg = "Failed to load configuration: CannotLoadConfiguration"
            raise PanicError(msg) from error
        state = Path(config["state"]["path"])
        state.mkdir(parents=True, exist_ok=True)
        self._console.info("", "iggy_connectors", f"{LABEL}; state will be stored in: {state}")
        if ending.crashes_now(self._faults, state):
            msg = "stand-in: fault crash_loop"
            raise PanicError(msg)
        link = Link(config["iggy"], self._console)
        link.connect()
        connectors = self._read_connectors(config)
        for connector in connectors:
            self._start(connector, link)
        time.sleep(self._faults.seconds("slow_start") or 0)
        self._console.info("", "iggy_connectors", "All sources and sinks spawned.")
        acceptor = self._open(config, connectors)
        link.keep()
        ending.leave_later(self._faults, functools.partial(self._console.error, "", "iggy_connectors"))
        self._stop.wait()
        return self._shut_down(acceptor, link, connectors)

    def _read_connectors(self, config: Table) -> list[Connector]:
        folder = config["connectors"]["config_dir"]
        if not folder:
            msg = "Connectors configuration directory not provided"
            raise InvalidConfigurationError(msg)
        if not Path(folder).is_dir():
            text = f"Connectors configuration directory does not exist: {folder}"
            self._console.warn("", "iggy_connectors::configs::connectors::local_provider", text)
            return []
        return connector_files.read(Path(folder), self._environ)

    def _start(self, connector: Connector, link: Link) -> None:
        if not connector.enabled:
            return
        connector.load()
        broken = connector.key in self._faults.connectors_in_error()
        if not connector.start(next(self._numbers), broken=broken):
            text = f"Failed to initialize {connector.kind}: {connector.key}. {connector.refusal}"
            self._console.error("", f"iggy_connectors::{connector.kind}", text)
            return
        for stream in connector.streams():
            if connector.kind == "source":
                link.client.create_stream(stream)
            elif not link.client.has_stream(stream):
                self._miss(connector, stream)

    def _miss(self, connector: Connector, stream: str) -> None:
        if self._generation.legacy:
            msg = f'IggyError(StreamNameNotFound("{stream}"))'
            raise StreamMissingError(msg)
        connector.fail()

    def _open(self, config: Table, connectors: list[Connector]) -> listening.Acceptor | None:
        address = config["http"]["address"]
        if not config["http"]["enabled"] or self._faults.on("never_ready"):
            self._stop.listen(_STOP_SIGNALS)
            return None
        try:
            bound = listening.bind(address)
        except (listening.BadAddressError, OSError) as error:
            msg = f"Failed to bind to HTTP address {address}"
            raise PanicError(msg) from error
        self._stop.listen(_STOP_SIGNALS)  # before an answer can make a caller send one
        api = ConnectorsApi(self._generation, self._faults, config["http"]["api_key"], connectors, self._restart)
        acceptor = listening.Acceptor(bound, functools.partial(listening.serve_http, handler=api.answer))
        text = f"Started iggy-connectors HTTP API on: {listening.address_of(bound)}"
        self._console.info("", "iggy_connectors::api", text)
        return acceptor

    def _restart(self, connector: Connector) -> bool:
        broken = connector.key in self._faults.connectors_in_error()
        return connector.start(next(self._numbers), broken=broken)

    def _shut_down(self, acceptor: listening.Acceptor | None, link: Link, connectors: list[Connector]) -> int:
        self._console.info("", "iggy_connectors", "Received SIGTERM. Shutting down connectors runtime...")
        if acceptor is not None:
            acceptor.close()
        stuck = sum((one.kind, one.status) == ("source", "running") for one in connectors) if link.lost else 0
        self._stop.drain(stuck * _STUCK or 0.003)
        link.close()
        if self._faults.on("dirty_stop"):
            sys.stderr.write("Error: stand-in: fault dirty_stop\n")
            return 1
        self._console.info("", "iggy_connectors", "All connectors closed. Runtime shutdown complete.")
        return 0
