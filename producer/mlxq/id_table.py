"""A table of custom ids that takes no memory to speak of, however many there are: SQLite, in a file of its own that is
gone with the process.

Knows nothing of what is kept of an id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

CACHE_KIB = 8 * 1024
"""What stays in memory; the rest is in a temporary file, once there is more than that."""


class IdTable:
    """Custom ids with one value each: text, bytes, a number or `None`. One thread at a time may use it."""

    def __init__(self) -> None:
        # Its file is deleted as it is made. No crash has to leave it whole, so nothing is logged or forced to the disk.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, value) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def __len__(self) -> int:
        count: int = self._database.execute("SELECT count(*) FROM ids").fetchone()[0]
        return count

    def __contains__(self, custom_id: str) -> bool:
        return self._row(custom_id) is not None

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self._database.execute("SELECT id FROM ids"))

    def get(self, custom_id: str) -> Any:
        """The value of an id; `None` if it isn't there."""
        row = self._row(custom_id)
        return None if row is None else row[0]

    def add(self, custom_id: str, value: Any = None) -> bool:
        """Keep an id, unless it is there. Returns whether it is new."""
        statement = "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO NOTHING"
        return self._database.execute(statement, (_key(custom_id), value)).rowcount == 1

    def put(self, custom_id: str, value: Any = None) -> None:
        """Keep an id with this value, whether it is there or not."""
        self._database.execute("INSERT OR REPLACE INTO ids VALUES (?, ?)", (_key(custom_id), value))

    def discard(self, custom_id: str) -> bool:
        """Forget an id. Returns whether it was there."""
        return self._database.execute("DELETE FROM ids WHERE id = ?", (_key(custom_id),)).rowcount == 1

    def close(self) -> None:
        """Give its file back."""
        self._database.close()

    def _row(self, custom_id: str) -> tuple[Any] | None:
        row: tuple[Any] | None = self._database.execute(
            "SELECT value FROM ids WHERE id = ?", (_key(custom_id),)
        ).fetchone()
        return row


def _key(custom_id: str) -> str | bytes:
    """SQLite has no text with lone surrogates, which JSON can spell."""
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        return custom_id.encode(errors="surrogatepass")
    return custom_id
