"""Rows that enter the batch together and end together: as a rule a single row; those of a beam search in `beam_group`.

Plain Python. The scheduler's unit: it waits, is admitted, and is dropped as a whole; its rows are what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mlxq_worker.engine.api import AbortReason, RowResult, RowSpec
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.rows.row import Row


@dataclass(frozen=True, slots=True)
class Fork:
    """A row goes on from what `source`, itself or another row of its group, has computed, with the token given."""

    row: Row
    source: Row
    token_id: int


class RowGroup:
    """A row by itself, or several of a kind of group of its own.

    Attributes:
        rows: all its rows; the `first` is prefilled, the others go on from what it has computed.
        abort_reason: why the group is to be dropped at the next opportunity, if it is.
    """

    __slots__ = ("abort_reason", "first", "rows")

    is_search: ClassVar[bool] = False
    """Whether rows are forked, and rest."""

    def __init__(self, first: Row, *others: Row) -> None:
        self.first, self.rows = first, (first, *others)
        self.abort_reason: AbortReason | None = None

    def __repr__(self) -> str:
        return f"RowGroup({self.first!r})"

    @property
    def spec(self) -> RowSpec:
        """What the group was asked for."""
        return self.first.spec

    @property
    def finished(self) -> bool:
        return self.first.finished

    @property
    def results(self) -> Sequence[RowResult]:
        """What the group reports once it has ended."""
        return () if self.first.result is None else (self.first.result,)

    @property
    def num_wanted(self) -> int:
        """How many rows of the batch it still needs."""
        return sum(row.wants_token for row in self.rows)

    @property
    def due(self) -> Sequence[Row]:
        """The rows that a token can be asked for on this step."""
        return self.rows if self.first.is_due else ()

    @property
    def forks(self) -> Sequence[Fork]:
        """Where the due rows have to be brought before they decode, if not on from where each is. No row that is forked
        onto is the source of another."""
        return ()

    @property
    def resting(self) -> Sequence[Row]:
        """The rows that only keep what they have computed on a step that they aren't due on."""
        return ()

    def admit(self, now: float, prefixes: Iterable[Prefix | None], *, copies_prefix: bool = False) -> None:
        """Its rows enter the batch, each behind a prefix that it shares, or behind a copy of that."""
        for row, prefix in zip(self.rows, prefixes, strict=True):
            row.admit(now, prefix, copies_prefix=copies_prefix)

    @property
    def deadline_s(self) -> float:
        """When it will have used up its allowance of decode seconds."""
        return self.first.deadline_s

    def overdue(self, now: float) -> bool:
        """Whether it has."""
        return self.first.overdue(now)

    def abort(self, reason: AbortReason, now: float) -> None:
        """End it before its time, keeping the text it has."""
        self.first.abort(reason, now)
