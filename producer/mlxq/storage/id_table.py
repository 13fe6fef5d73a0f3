"""A table of custom ids that takes no memory to speak of, however many there are: SQLite, in a file of its own that is
gone with the process.

Knows nothing of what is kept of an id.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

CACHE_KIB = 8 * 1024
"""What stays in memory; the rest is in a temporary file, once there is more than that."""
MAX_AT_ONCE = 250
"""Ids in one question: SQLite takes 999 at least, and keeps the statements that it has seen last."""


class IdTable:
    """Custom ids with one value each: text, bytes, a number or `None`. One thread at a time may use it."""

    def __init__(self) -> None:
        # Its file is deleted as it is made. No crash has to leave it whole, so nothing is logged or forced to the disk.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._database.close)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, value) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._count: int | None = 0  # `None` where nobody has counted

    def __len__(self) -> int:
        if self._count is None:
            self._count = int(self._database.execute("SELECT count(*) FROM ids").fetchone()[0])
        return self._count

    def __contains__(self, custom_id: str) -> bool:
        return self._row(custom_id) is not None

    def get(self, custom_id: str) -> Any:
        """The value of an id; `None` if it isn't there."""
        row = self._row(custom_id)
        return None if row is None else row[0]

    def items(self) -> Iterator[tuple[str, Any]]:
        """All ids with their values, by id."""
        for key, value in self._database.execute("SELECT id, value FROM ids ORDER BY id"):
            yield _id(key), value

    def add(self, custom_id: str, value: Any = None) -> bool:
        """Keep an id, unless it is there. Returns whether it is new."""
        statement = "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO NOTHING"
        is_new = self._database.execute(statement, (_key(custom_id), value)).rowcount == 1
        if self._count is not None:
            self._count += is_new
        return is_new

    def put(self, custom_id: str, value: Any = None) -> None:
        """Keep an id with this value, whether it is there or not."""
        if not self.add(custom_id, value):
            self._database.execute("UPDATE ids SET value = ? WHERE id = ?", (value, _key(custom_id)))

    def put_many(self, items: Sequence[tuple[str, Any]]) -> None:
        """`put` for each of them; of several with one id the last counts."""
        statement = "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
        self._database.executemany(statement, [(_key(custom_id), value) for custom_id, value in items])
        self._count = None

    def add_many(self, items: Sequence[tuple[str, Any]]) -> list[int]:
        """`add` for each of them; no value may be in the table twice. Returns which were there already, by their place
        in the list."""
        statement = "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO NOTHING"
        rows = [(_key(custom_id), value) for custom_id, value in items]
        num_new = self._database.executemany(statement, rows).rowcount
        if self._count is not None:
            self._count += num_new
        if num_new == len(items):
            return []
        return [index for index, (custom_id, value) in enumerate(items) if self.get(custom_id) != value]

    def get_many(self, custom_ids: Sequence[str]) -> dict[str, Any]:
        """The values of those ids that are there."""
        found: dict[str, Any] = {}
        for start in range(0, len(custom_ids), MAX_AT_ONCE):
            wanted = list(map(_key, custom_ids[start : start + MAX_AT_ONCE]))
            statement = f"SELECT id, value FROM ids WHERE id IN ({', '.join('?' * len(wanted))})"
            found |= {_id(key): value for key, value in self._database.execute(statement, wanted)}
        return found

    def discard(self, custom_id: str) -> bool:
        """Forget an id. Returns whether it was there."""
        was_there = self._database.execute("DELETE FROM ids WHERE id = ?", (_key(custom_id),)).rowcount == 1
        if self._count is not None:
            self._count -= was_there
        return was_there

    def _row(self, custom_id: str) -> tuple[Any] | None:
        if self._count == 0:  # as in all tables of what was there before, in a first run
            return None
        row: tuple[Any] | None = self._database.execute(
            "SELECT value FROM ids WHERE id = ?", (_key(custom_id),)
        ).fetchone()
        return row


def is_text(custom_id: str) -> bool:
    """Whether this can be written as text: JSON can spell lone surrogates, which are none."""
    if custom_id.isascii():  # as nearly all are
        return True
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key(custom_id: str) -> str | bytes:
    """SQLite has no text with lone surrogates."""
    return custom_id if custom_id.isascii() or is_text(custom_id) else custom_id.encode(errors="surrogatepass")


def _id(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode(errors="surrogatepass")
