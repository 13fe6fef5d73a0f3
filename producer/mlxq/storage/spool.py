"""Values in their order that take no memory, however many there are: in a file of its own that is gone with the
process.

Knows nothing of what they are.
"""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Spool(Generic[T]):
    """A list that is written first, and then read from its beginning, as often as need be.

    Args:
        folder: where there is room for it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the spool
        weakref.finalize(self, self._file.close)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        # Nobody but this process ever sees the file, so what is unpickled is what was pickled here: dates and decimals
        # come back as they were.
        self._file.seek(0)
        for _ in range(self._count):
            yield pickle.load(self._file)

    def append(self, value: T) -> None:
        """Add a value behind the others, before they are read. Raises `OSError`, on a full disk say."""
        pickle.dump(value, self._file, pickle.HIGHEST_PROTOCOL)
        self._count += 1
