"""As much of Hugging Face's `datasets` as `examples/with_datasets.py` uses, with its meaning: columns in, rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Dataset:
    """A table by its columns."""

    columns: dict[str, list[Any]]

    @classmethod
    def from_dict(cls, columns: dict[str, list[Any]]) -> Self:
        return cls(columns)

    def map(self, function: Callable[..., dict[str, list[Any]]], *, batched: bool, batch_size: int) -> Dataset:
        """The table with the columns that the function makes of all of it."""
        assert batched
        assert len(self) <= batch_size
        return Dataset({**self.columns, **function(self.columns)})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({name: column[row] for name, column in self.columns.items()} for row in range(len(self)))
