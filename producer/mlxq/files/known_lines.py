"""Input lines that a result file has the answers to: they are known by a mark, and need not be read to be skipped.

A mark is a hash of a line as it stands, of how it is read, and of what is filled in where it says nothing. It is kept
beside the answer; where it is the same, so is the request. Knows nothing of files, and leaves it to others which
answers count.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from mlxq.storage.id_table import IdTable
from mlxq.versions import version_of

MARK_BYTES = 15
"""Of 2**60 lines a handful would be taken for others."""
MADE_UP = "row-"
"""How the ids begin of requests that have none."""
ID_DIGITS = 16

Marker = Callable[[bytes | Mapping[str, Any]], str | None]
"""The mark of a record: a line, or a row of a table; `None` for one that has none."""


def marker(settings: Sequence[object]) -> Marker:
    """Marks of records that this version reads with these settings, whose `repr` says what they are."""
    key = hashlib.blake2b(repr([version_of("mlxq"), *settings]).encode(errors="replace"), digest_size=32).digest()

    def mark(record: bytes | Mapping[str, Any]) -> str | None:
        try:
            data = record if isinstance(record, bytes) else msgspec.msgpack.encode(record)
        except (TypeError, ValueError, OverflowError, RecursionError):  # a value of pyarrow's own
            return None
        digest = hashlib.blake2b(data, digest_size=MARK_BYTES, key=key).digest()
        return binascii.b2a_base64(digest, newline=False).decode()

    return mark


def made_up_id(content_hash: str) -> str:
    """What the first request is called that asks for this and has no id."""
    return f"{MADE_UP}{content_hash[:ID_DIGITS]}"


class Known(NamedTuple):
    """A line's answer: its custom id, and the model that it is by."""

    custom_id: str
    model: str | None


@dataclass(frozen=True, slots=True)
class KnownBlock:
    """Some lines in a row that have their answers. `models` counts whose these are; `kept` has the columns that go
    along, where there are any; `num_bytes` is how long the lines were."""

    custom_ids: Sequence[str]
    models: Mapping[str | None, int]
    kept: Sequence[Mapping[str, Any]] = ()
    num_bytes: int = field(default=0, compare=False)


class Marked(NamedTuple):
    """A line: what it is called, if it says so itself, and its mark, if it has one."""

    custom_id: str | None
    mark: str | None

    @property
    def key(self) -> str:
        """Mostly an id: input and output are in about the same order, and their ids often are."""
        return f"\0{self.mark}" if self.custom_id is None else self.custom_id


class KnownLines:
    """The answers that there are, by their lines. It is filled before lines are read, and void for good as soon as an
    id gets another answer, from whatever thread."""

    def __init__(self) -> None:
        self.filled_in: Sequence[tuple[str, float]] | None = None
        self._table = IdTable()  # number of the model, mark and custom id
        self._models: list[str | None] = []
        self._is_void = False

    def __len__(self) -> int:
        return 0 if self._is_void else len(self._table)

    def expect(self, filled_in: Mapping[str, float] | None) -> None:
        """What stands for fields that a line leaves out, as far as that is known, to be said before lines are read:
        with another the same line has another mark."""
        self.filled_in = None if filled_in is None else sorted(filled_in.items())

    def put_many(self, answers: Sequence[tuple[Marked, Known]]) -> None:
        """Note the answers to lines."""
        self._table.put_many(
            [(line.key, f"{self._number_of(known.model)} {line.mark} {known.custom_id}") for line, known in answers]
        )

    def void(self) -> None:
        """Know nothing from now on."""
        self._is_void = True

    def look_up(self, lines: Sequence[Marked]) -> list[Known | None]:
        """The answer to each, in their order; `None` where there is none."""
        if not len(self):
            return [None] * len(lines)
        found = self._table.get_many([line.key for line in lines if line.mark is not None])
        return [self._answer(line, found.get(line.key)) for line in lines]

    def _number_of(self, model: str | None) -> int:
        if model not in self._models:
            self._models.append(model)
        return self._models.index(model)

    def _answer(self, line: Marked, value: str | None) -> Known | None:
        if value is None:
            return None
        number, mark, custom_id = value.split(" ", 2)
        return Known(custom_id, self._models[int(number)]) if mark == line.mark else None
