"""A node as people have it: installed by `make install` on a booted systemd, enrolled, and up."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tests.e2e.node_settings import Options
from tests.e2e.programs import Programs
from tests.system.booted import Booted, missing, system_python
from tests.system.node import Node, Outside, wheelhouse_is_there


def lacks() -> list[str]:
    """Say what this machine lacks for it; nothing when it can be had."""
    found = missing()
    if system_python() is None:
        found.append("a Python with venv outside of /root and /home (Debian: python3-venv)")
    if not wheelhouse_is_there():
        found.append("the wheels (make wheelhouse)")
    return found


@contextmanager
def mounted() -> Iterator[Booted]:
    """Mount the files of a node; it is not booted yet."""
    system = Booted()
    try:
        system.mount()
        yield system
    finally:
        system.end()


@asynccontextmanager
async def up(system: Booted, python: str, programs: Programs) -> AsyncIterator[Node]:
    """Install, boot, enrol and start it."""
    # Rare heartbeats: what is seen sooner was pushed.
    async with Outside(programs, Options(heartbeat_interval=30)) as supervisor:
        node = Node(system, supervisor)
        node.install(python)
        node.write(python)
        system.boot()
        node.start()
        await node.until_up()
        yield node
