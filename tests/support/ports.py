"""A port for a server that has to be told one before it can bind it.

None that the kernel gives to connections and to port 0, on Linux and macOS: such a one may be taken by any process
between the look and the start, or while a server is away that comes back at its old port.
"""

from __future__ import annotations

import random
import socket

_PORTS = range(10_000, 22_000)
"""A cluster's second port, 10,000 above the first one, is below those that the kernel gives as well."""
_random = random.SystemRandom()


def free_port() -> int:
    """One of this machine that nobody listens at, drawn so that processes side by side hardly ever draw the same."""
    while not _is_free(port := _random.choice(_PORTS)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
