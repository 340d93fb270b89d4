"""Which programs the suite runs on: the stand-ins of both generations, and the real ones where they are asked for."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import standins
from tests.conformance.programs import Connectors, Programs, Run, Server

PLUGINS = ("libiggy_connector_random_source.so", "libiggy_connector_stdout_sink.so")


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("stand-in 0.8", id="standin-0.8"),
        pytest.param("stand-in 0.9", id="standin-0.9"),
        pytest.param("real", id="real", marks=pytest.mark.real),
    ],
)
def programs(request: pytest.FixtureRequest) -> Programs:
    """The programs under test; real ones without `--run-real` are skipped, missing ones fail."""
    if request.param != "real":
        generation = request.param.split()[1]
        environment = {"STANDIN_GENERATION": generation}
        return Programs(standins.IGGY_SERVER, standins.IGGY_CONNECTORS, environment, legacy=generation == "0.8")
    if not request.config.getoption("--run-real"):
        pytest.skip("runs real binaries: pytest --run-real -m real")
    server, connectors = find("iggy-server", "IGGY_SERVER"), find("iggy-connectors", "IGGY_CONNECTORS")
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return Programs([server], [connectors], {}, legacy=version.startswith("0.8."), settling=0.3)


def find(name: str, variable: str) -> str:
    """Find a real binary, or fail and say how to give it."""
    path = os.environ.get(variable) or shutil.which(name)
    if path is None:
        pytest.fail(f"cannot run the real {name}: it is not on PATH; give it with {variable}=/path/to/{name}")
    if shutil.which(path) is None:
        pytest.fail(f"cannot run the real {name}: {variable}={path} is not a program")
    return str(Path(path).resolve())


@pytest.fixture
def plugins(programs: Programs) -> None:
    """The random source and the stdout sink, which a real runtime must have beside its binary."""
    if len(programs.connectors) > 1:
        return  # the stand-in pretends to have them
    missing = [name for name in PLUGINS if not Path(programs.connectors[0]).with_name(name).exists()]
    if missing:
        pytest.fail(f"cannot run real connectors: {', '.join(missing)} must lie beside {programs.connectors[0]}")


@pytest.fixture(scope="module")
def iggy(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is ready, for all tests of a module that do not stop it."""
    started: list[Run] = []
    server = Server(programs, tmp_path_factory.mktemp("shared") / "iggy", started)
    server.started()
    yield server
    for run in started:
        run.end()


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """All processes of a test, ended after it."""
    started: list[Run] = []
    yield started
    for run in started:
        run.end()


@pytest.fixture
def server(programs: Programs, tmp_path: Path, runs: list[Run]) -> Server:
    """A server of the test's own, not started yet."""
    return Server(programs, tmp_path / "iggy", runs)


@pytest.fixture
def connectors(programs: Programs, tmp_path: Path, runs: list[Run], iggy: Server) -> Connectors:
    """A connectors runtime of the shared server, not started yet."""
    return Connectors(programs, tmp_path / "connectors-runtime", iggy.ports["tcp"], runs)


@pytest.fixture
def connectors_of_server(programs: Programs, tmp_path: Path, runs: list[Run], server: Server) -> Connectors:
    """A connectors runtime of the test's own server; neither is started yet."""
    return Connectors(programs, tmp_path / "connectors-runtime", server.ports["tcp"], runs)
