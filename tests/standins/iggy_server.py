"""The stand-in for `iggy-server`: what an agent sees of it, from the arguments to the exit code."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

from tests.standins import births, ending, server_settings
from tests.standins.accounts import Accounts, NoRootCredentialsError
from tests.standins.configuration import CannotLoadError, Table
from tests.standins.console import Console, panic, usage_error
from tests.standins.faults import Faults
from tests.standins.generation import Generation, chosen
from tests.standins.process_facts import Clock
from tests.standins.server_api import ServerApi
from tests.standins.server_ports import FailedStartError, Ports

PROGRAM = "iggy-server"
LABEL = "stand-in for iggy-server, not Apache Iggy"
HELP = f"""\
{LABEL}

Usage: iggy-server [OPTIONS]

Options:
  -f, --fresh                          Remove the data before starting
      --with-default-root-credentials  Create the root user as iggy/iggy
  -h, --help                           Print help
  -V, --version                        Print version
"""
_FLAGS = {"-f", "--fresh", "--with-default-root-credentials"}
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ROOT = ("IGGY_ROOT_USERNAME", "IGGY_ROOT_PASSWORD")


def main(arguments: list[str]) -> int:
    """Run the server until it is stopped and return its exit code."""
    ending.default_signals()
    environ = dict(os.environ)
    generation = chosen(environ)
    code = _parse(arguments, generation)
    if code is not None:
        return code
    births.record(environ, "start", PROGRAM)
    if "--with-default-root-credentials" in arguments:
        environ = dict.fromkeys(_ROOT, "iggy") | environ
    server = Server(environ, generation, fresh=not {"-f", "--fresh"}.isdisjoint(arguments))
    try:
        code = server.run()
    except FailedStartError as failure:
        sys.stderr.write(f"{failure}\n" if str(failure) else "")
        return failure.code
    births.record(environ, "end", PROGRAM, exit_code=code)
    return code


def _parse(arguments: list[str], generation: Generation) -> int | None:
    flags = _FLAGS | ({"--follower"} if generation.legacy else set())
    options = {"-c", "--config-provider"} if generation.legacy else {"--replica-id"}
    rest = iter(arguments)
    for argument in rest:
        if argument in {"-V", "--version"}:
            print(f"server {generation.server_version}")
            return 0
        if argument in {"-h", "--help"}:
            print(HELP, end="")
            return 0
        if argument in options:
            next(rest, None)
        elif argument not in flags:
            return usage_error(PROGRAM, argument, " [OPTIONS]")
    return None


class Server:
    """One run of the server."""

    def __init__(self, environ: dict[str, str], generation: Generation, *, fresh: bool) -> None:
        self._environ = environ
        self._generation = generation
        self._fresh = fresh
        self._clock = Clock()
        self._faults = Faults(environ)
        self._console = Console()
        self._stop = ending.Stop(self._faults, functools.partial(self._console.warn, "ctrl-c", "iggy_server"))

    def run(self) -> int:
        """Start, serve until a stop is asked for, stop, and return the exit code.

        Raises:
            FailedStartError: the server cannot start.
        """
        print(f"Iggy Server {self._generation.server_version} ({LABEL})\n", flush=True)
        ending.exit_at_start(self._faults)
        ending.leave_child(self._faults)
        config = self._configure()
        self._prepare(config)
        accounts = self._recover(config)
        if not self._generation.legacy:
            self._start_slowly()
        self._stop.listen(_STOP_SIGNALS)
        self._console.info("main", "iggy_server", "Iggy server is running. Press Ctrl+C or send SIGTERM to shutdown.")
        ports = Ports(config, self._generation, self._faults, self._console)
        if not (self._generation.legacy and self._start_slowly()):
            api = ServerApi(self._generation, accounts, self._faults, self._clock, config, lambda: ports.clients)
            ports.open(accounts, api.answer)
            ending.leave_later(self._faults, functools.partial(self._console.error, "main", "iggy_server"))
            self._stop.wait()
        return self._shut_down(ports)

    def _configure(self) -> Table:
        error = self._generation.error
        missing = [name for name in _ROOT if name not in self._environ]
        if not self._generation.legacy and len(missing) == 1:
            provided = _ROOT[1 - _ROOT.index(missing[0])]
            names = f'provided_env: "{provided}", missing_env: "{missing[0]}"'
            raise FailedStartError(1, f"Error: RootCredentialsIncomplete {{ {names} }}")
        try:
            return server_settings.read(self._environ)
        except CannotLoadError as failure:
            raise FailedStartError(1, f"Error: {error}(CannotLoadConfiguration)") from failure
        except server_settings.InvalidValueError as failure:
            raise FailedStartError(1, f"{failure}\nError: {error}(InvalidConfigurationValue)") from failure

    def _prepare(self, config: Table) -> None:
        folder = Path(config["system"]["path"])
        if self._fresh and folder.exists():
            from shutil import rmtree  # late: it takes 8 ms of the start

            rmtree(folder)
        for part in ["logs", "runtime", "state", "streams", *([] if self._generation.legacy else ["metadata"])]:
            (folder / part).mkdir(parents=True, exist_ok=True)
        for left in (folder / "runtime").iterdir():
            left.unlink()
        if config["system"]["logging"]["file_enabled"]:
            self._console.open_file(folder / "logs" / "iggy-server.log")
        self._console.info("main", "iggy_server", LABEL)
        self._console.info("main", "server::bootstrap", f"Initializing system, data will be stored at: {folder}")
        if ending.crashes_now(self._faults, folder):
            raise FailedStartError(1, "Error: stand-in: fault crash_loop")

    def _recover(self, config: Table) -> Accounts:
        path = Path(config["system"]["path"], "state", "standin.json")
        try:
            accounts = Accounts(path, self._environ, config["http"]["jwt"]["encoding_secret"])
        except NoRootCredentialsError as error:
            panic("main", str(error))
            raise FailedStartError(101) from error
        if accounts.generated_password is not None:
            print(f"Generated root user password: {accounts.generated_password}", flush=True)
        return accounts

    def _start_slowly(self) -> bool:
        seconds = self._faults.seconds("slow_start")
        return seconds is not None and self._stop.wait(seconds)

    def _shut_down(self, ports: Ports) -> int:
        began = time.monotonic()
        text = "Received shutdown signal (SIGTERM/SIGINT), initiating graceful shutdown..."
        self._console.info("ctrl-c", "iggy_server", text)
        ports.close()
        self._stop.drain(self._generation.drain)
        if self._faults.on("dirty_stop"):
            self._console.error("main", "iggy_server", "Server shutting down due to shard failure.")
            sys.stderr.write('Error: ShardFailure { message: "stand-in: fault dirty_stop" }\n')
            return 1
        took = round((time.monotonic() - began) * 1000)
        text = f"All shards have shut down. Iggy server is exiting. (shutdown took {took} ms)"
        self._console.info("main", "iggy_server", text)
        return 0
