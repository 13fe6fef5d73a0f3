"""A Redis that refuses what a test tells it to: a relay in front of a real server that answers some commands itself.

For replies that a real server can't be brought to give at one chosen command. Speaks RESP 2 and 3 as far as finding the
end of a reply needs it, keeps connections open after an error (which fakeredis doesn't), and aborts a transaction of
which a command was refused.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit

Command = list[bytes]
"""Its name in capitals, and its arguments."""
_AGGREGATES = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}
"""Types of replies that hold others, and how many for each one that they count."""
_TEXTS = (b"$", b"=", b"!")


@dataclass(slots=True)
class Refusal:
    """The first commands that `matches` are answered with `errors`, each with the next one; with `at_exec` one in a
    transaction is queued as if all were well, and EXEC is refused."""

    matches: Callable[[Command], bool]
    errors: Sequence[str]
    at_exec: bool = False
    num_refused: int = 0

    @property
    def was_used_up(self) -> bool:
        return self.num_refused == len(self.errors)

    def error_for(self, command: Command) -> str | None:
        """What refuses this command, if anything does."""
        if self.was_used_up or not self.matches(command):
            return None
        self.num_refused += 1
        return self.errors[self.num_refused - 1]


class RefusingRedis:
    """The relay; `url` is for those who are to be refused something."""

    def __init__(self, upstream: str) -> None:
        self._path = urlsplit(upstream).path
        self._refusal: Refusal | None = None
        relay = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                relay._serve(self.rfile, self.wfile)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"redis://127.0.0.1:{self._server.server_address[1]}"

    def refuse(self, matches: Callable[[Command], bool], errors: Sequence[str], *, at_exec: bool = False) -> Refusal:
        """Refuse these commands from now on, once for each error, in place of what was refused before."""
        self._refusal = Refusal(matches, errors, at_exec)
        return self._refusal

    def __enter__(self) -> RefusingRedis:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, client: BinaryIO, answers: BinaryIO) -> None:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(self._path)
            with upstream.makefile("rb") as replies:
                _Session(self, client, answers, upstream, replies).run()

    def refuses(self, command: Command) -> tuple[str, bool] | None:
        """The error that this command is to get, if any, and whether only at EXEC."""
        refusal = self._refusal
        if refusal is None or (error := refusal.error_for(command)) is None:
            return None
        return error, refusal.at_exec


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


class _Session:
    """One client's connection."""

    def __init__(
        self, relay: RefusingRedis, client: BinaryIO, answers: BinaryIO, upstream: socket.socket, replies: BinaryIO
    ) -> None:
        self._relay = relay
        self._client = client
        self._answers = answers
        self._upstream = upstream
        self._replies = replies
        self._is_in_transaction = False
        self._abort: str | None = None

    def run(self) -> None:
        with _hung_up():
            for raw, command in _commands(self._client):
                if command[0] == b"SUBSCRIBE":
                    self._subscribe(raw)
                    return
                self._answers.write(self._answer(raw, command))

    def _answer(self, raw: bytes, command: Command) -> bytes:
        if command[0] == b"EXEC" and self._abort is not None:
            aborted, self._abort, self._is_in_transaction = self._abort, None, False
            self._ask(b"*1\r\n$7\r\nDISCARD\r\n")
            return f"-EXECABORT Transaction discarded because of{aborted}\r\n".encode()
        if (refused := self._relay.refuses(command)) is not None:
            error, at_exec = refused
            if self._is_in_transaction:
                self._abort = f": {error}" if at_exec else " previous errors."
            if not at_exec:
                return f"-{error}\r\n".encode()
        if command[0] in (b"MULTI", b"EXEC", b"DISCARD"):
            self._is_in_transaction = command[0] == b"MULTI"
        return self._ask(raw)

    def _ask(self, raw: bytes) -> bytes:
        self._upstream.sendall(raw)
        return _reply(self._replies)

    def _subscribe(self, raw: bytes) -> None:
        """From here on both sides talk whenever they like."""
        self._upstream.sendall(raw)
        threading.Thread(target=self._pass_on_messages, daemon=True).start()
        for raw, _ in _commands(self._client):
            self._upstream.sendall(raw)

    def _pass_on_messages(self) -> None:
        with _hung_up():
            while True:
                self._answers.write(_reply(self._replies))


@contextmanager
def _hung_up() -> Iterator[None]:
    """One side or the other may hang up at any time."""
    try:
        yield
    except (OSError, EOFError, ValueError):
        return


def _commands(client: BinaryIO) -> Iterator[tuple[bytes, Command]]:
    while header := client.readline():
        raw, command = header, []
        for _ in range(int(header[1:])):
            length = client.readline()
            text = client.read(int(length[1:]) + 2)
            raw += length + text
            command.append(text[:-2])
        command[0] = command[0].upper()
        yield raw, command


def _reply(replies: BinaryIO) -> bytes:
    """One reply with all that is in it."""
    header = replies.readline()
    if not header:
        raise EOFError
    kind, rest = header[:1], header[1:-2]
    if kind in _TEXTS and int(rest) >= 0:
        return header + replies.read(int(rest) + 2)
    if kind in _AGGREGATES and int(rest) > 0:
        return header + b"".join(_reply(replies) for _ in range(int(rest) * _AGGREGATES[kind]))
    return header
