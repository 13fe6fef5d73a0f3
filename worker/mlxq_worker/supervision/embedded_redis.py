"""fakeredis behind a socket, for machines without a Redis server: what it takes to serve it to other processes.

It has no passwords, so that whoever reaches the socket may do anything: where that is, is up to the caller. Knows
nothing of queues, and nothing of fakeredis beyond its TCP server.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from socketserver import TCPServer

from mlxq.errors import ConfigError


@contextmanager
def embedded_redis(path: Path) -> Iterator[None]:
    """Serve an empty fakeredis at a Unix socket for the length of the block, in a thread of this process.

    Raises:
        ConfigError: fakeredis isn't installed.
    """
    with _new_server(path) as server:
        thread = threading.Thread(target=server.serve_forever, name="fakeredis", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()


def _new_server(path: Path) -> TCPServer:
    try:
        from fakeredis import TcpFakeServer
        from fakeredis._clients._tcp_server import TCPFakeRequestHandler
    except ImportError:
        raise ConfigError("fakeredis is not installed") from None

    class Handler(TCPFakeRequestHandler):  # type: ignore[misc]
        """Less a bug (2.41): it puts Python tuples into CLIENT INFO, which every RQ worker reads when it starts and
        redis-py then can't parse."""

        def setup(self) -> None:
            super().setup()
            info = self.current_client.get_socket()._client_info
            info.update({"laddr": f"{path}:0", "addr": f"{path}:0"})  # as a real server says it of a Unix socket

    class Server(TcpFakeServer):  # type: ignore[misc]
        """fakeredis tells its clients apart by where they come from, and those of a Unix socket come from nowhere."""

        address_family = socket.AF_UNIX
        daemon_threads = True

        def __init__(self) -> None:
            super().__init__(str(path), server_type="redis")
            self.RequestHandlerClass = Handler
            self._numbers = count(1)

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            request, _ = super().get_request()
            return request, ("unix", next(self._numbers))

    server: TCPServer = Server()
    return server
