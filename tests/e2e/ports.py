"""Free loopback ports that stay this rig's own while its programs are stopped and started again."""

import errno
import secrets
import socket

FIRST, COUNT = 20000, 12000
"""Below the range that the kernel gives to outgoing connections: ip(7), ip_local_port_range."""
ATTEMPTS = 500


class Ports:
    """Hands out ports; each is claimed by an abstract unix socket, which ends with this process whatever happens.

    Abstract names belong to the network namespace, as ports do (unix(7)), so several rigs and users never collide.
    """

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []

    def take(self) -> int:
        """Claim a port that is free for TCP and UDP on 127.0.0.1."""
        for _ in range(ATTEMPTS):
            port = FIRST + secrets.randbelow(COUNT)
            if not _is_free(port):
                continue
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0iggy-node-agent-rig/{port}")
            except OSError as error:
                claim.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            self._claims.append(claim)
            return port
        msg = f"cannot find a free port: {ATTEMPTS} of {COUNT} above {FIRST} were taken"
        raise RuntimeError(msg)

    def close(self) -> None:
        """Give all ports back."""
        while self._claims:
            self._claims.pop().close()


def _is_free(port: int) -> bool:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        try:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
