"""Names of hosts, looked up for a probe over HTTP; a module of its own because a probe over TCP needs no aiohttp."""

import errno
import socket

import aiohttp
from aiohttp.abc import ResolveResult

from agent.runtimes.probe import NO_THREAD


class Resolver(aiohttp.ThreadedResolver):
    """Looks names up in the event loop's threads, and says when it may make none."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up."""
        try:
            return await super().resolve(host, port, family)
        except RuntimeError as error:  # pthread_create(3): EAGAIN
            raise OSError(errno.EAGAIN, NO_THREAD) from error
