"""The records of `mlxq serve`, in one SQLite file that several processes may use at once.

Each record is a JSON document beside the few columns that are asked for; every change is one transaction, so that a
kill leaves the record before it or the one after. Knows nothing of what records mean, but whose they are, when a file
expires and which batches have not ended.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec

from mlxq.errors import InputFileError
from mlxq.serve.store.records import ENDED, BatchRecord, FileRecord, Purpose

R = TypeVar("R", FileRecord, BatchRecord)

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for another process's."""
Order = Literal["asc", "desc"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    purpose TEXT NOT NULL, expires_at INTEGER, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, seq);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    is_open INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batches_of_owner ON batches (owner, seq);
CREATE INDEX IF NOT EXISTS open_batches ON batches (seq) WHERE is_open;
"""


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """Some records in the order that was asked for, and whether more follow."""

    records: tuple[R, ...]
    has_more: bool


class Database:
    """The records in one file; may be used from any thread.

    Raises:
        InputFileError: the file can't be used; every method raises it, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            # What is answered to a client outlives a power cut, too.
            self._connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_SCHEMA}")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def add_file(self, record: FileRecord) -> None:
        """Note a file whose content is there."""
        with self._transaction() as connection:
            _insert_file(connection, record)

    def file(self, file_id: str, owner: str) -> FileRecord | None:
        """A key's file; `None` if it has none of that id."""
        row = self._one("SELECT record FROM files WHERE id = ? AND owner = ?", file_id, owner)
        return None if row is None else msgspec.json.decode(row, type=FileRecord)

    def files(
        self, owner: str, *, limit: int, after: str | None = None, order: Order = "desc", purpose: Purpose | None = None
    ) -> Page[FileRecord]:
        """A key's files, the newest first unless `order` says otherwise, from the one behind `after` on."""
        extra = ("AND purpose = ?", purpose) if purpose else None
        return self._page("files", FileRecord, owner, limit, after, order, extra)

    def remove_file(self, file_id: str, owner: str) -> bool:
        """Forget a key's file. `False` if there was none."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner)).rowcount > 0

    def remove_expired(self, now: int) -> list[str]:
        """Forget the files whose time is over; their ids."""
        with self._transaction() as connection:
            rows = connection.execute("DELETE FROM files WHERE expires_at <= ? RETURNING id", (now,)).fetchall()
        return [file_id for (file_id,) in rows]

    def known_ids(self) -> set[str]:
        """The ids of all files, those that batches are about to have, and of the batches that have not ended."""
        # Batches first: what one of them is about to have may have become a file when those are looked at.
        ids = {name for record in self.open_records() for name in (record.id, record.output_id, record.error_id)}
        with self._reading() as connection:
            return ids | {file_id for (file_id,) in connection.execute("SELECT id FROM files")}

    def add_batch(self, record: BatchRecord) -> None:
        """Note a batch whose input is there."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO batches (id, owner, is_open, record) VALUES (?, ?, 1, ?)",
                (record.id, record.owner, msgspec.json.encode(record)),
            )

    def batch(self, batch_id: str, owner: str | None = None) -> BatchRecord | None:
        """A key's batch, or without a key anybody's; `None` if there is none."""
        whose, values = ("", (batch_id,)) if owner is None else (" AND owner = ?", (batch_id, owner))
        row = self._one(f"SELECT record FROM batches WHERE id = ?{whose}", *values)
        return None if row is None else msgspec.json.decode(row, type=BatchRecord)

    def has_ended(self, batch_id: str) -> bool:
        """Whether there is such a batch, and nothing more will be done for it."""
        return self._one("SELECT 1 FROM batches WHERE id = ? AND NOT is_open", batch_id) is not None

    def batches(self, owner: str, *, limit: int, after: str | None = None) -> Page[BatchRecord]:
        """A key's batches, the newest first, from the one behind `after` on."""
        return self._page("batches", BatchRecord, owner, limit, after, "desc", None)

    def open_batches(self) -> dict[str, str]:
        """The ids of everybody's batches that have not ended, oldest first, and whose each is."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT id, owner FROM batches WHERE is_open ORDER BY seq").fetchall())

    def open_records(self) -> list[BatchRecord]:
        """Everybody's batches that have not ended, oldest first."""
        with self._reading() as connection:
            rows = connection.execute("SELECT record FROM batches WHERE is_open ORDER BY seq").fetchall()
        return [msgspec.json.decode(row, type=BatchRecord) for (row,) in rows]

    def num_files(self) -> int:
        """How many files there are, of everybody."""
        return int(self._one("SELECT COUNT(*) FROM files") or 0)

    def num_open_batches(self, owner: str) -> int:
        """How many of a key's batches have not ended."""
        return int(self._one("SELECT COUNT(*) FROM batches WHERE is_open AND owner = ?", owner) or 0)

    def change_batch(
        self, batch_id: str, change: Callable[[BatchRecord], BatchRecord | None], new_files: tuple[FileRecord, ...] = ()
    ) -> BatchRecord:
        """Replace a batch's record by what `change` makes of it, in one step; the record as it is afterwards.

        Args:
            change: `None` leaves it as it is.
            new_files: noted in the same step.

        Raises:
            KeyError: there is no such batch.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT record FROM batches WHERE id = ?", (batch_id,)).fetchone()
            if row is None:
                raise KeyError(batch_id)
            before = msgspec.json.decode(row[0], type=BatchRecord)
            after = change(before)
            if after is None:
                return before
            is_open = after.status not in ENDED
            connection.execute(
                "UPDATE batches SET is_open = ?, record = ? WHERE id = ?",
                (is_open, msgspec.json.encode(after), batch_id),
            )
            for record in new_files:
                _insert_file(connection, record)
            return after

    def _page(
        self,
        table: Literal["files", "batches"],
        kind: type[R],
        owner: str,
        limit: int,
        after: str | None,
        order: Order,
        extra: tuple[str, object] | None,
    ) -> Page[R]:
        where = "owner = ?"
        values: list[object] = [owner]
        if after is not None:
            # Of another key's record there is nothing behind it either.
            where += f" AND seq {'<' if order == 'desc' else '>'} (SELECT seq FROM {table} WHERE id = ? AND owner = ?)"
            values += [after, owner]
        if extra is not None:
            where += f" {extra[0]}"
            values.append(str(extra[1]))
        query = f"SELECT record FROM {table} WHERE {where} ORDER BY seq {order} LIMIT ?"
        with self._reading() as connection:
            rows = connection.execute(query, (*values, limit + 1)).fetchall()
        return Page(tuple(msgspec.json.decode(row, type=kind) for (row,) in rows[:limit]), len(rows) > limit)

    def _one(self, query: str, *values: object) -> bytes | None:
        with self._reading() as connection:
            row = connection.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """For one query, which sees the records as they are at one moment."""
        with self._errors(), self._lock:
            yield self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._lock:
            # Taken for writing at once: who reads first, and writes then, may find that another has written meanwhile.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise InputFileError(f"can't use {self._path}: {error}") from error


def _insert_file(connection: sqlite3.Connection, record: FileRecord) -> None:
    connection.execute(
        "INSERT INTO files (id, owner, purpose, expires_at, record) VALUES (?, ?, ?, ?, ?)",
        (record.id, record.owner, record.purpose, record.expires_at, msgspec.json.encode(record)),
    )
