"""How many rows fit in memory: the KV budget that admission spends.

A batch takes as much room as its longest row, times its number of rows: slots are all equally long, and padded rows are
padded to the longest. A row counts with its prompt and all that it may generate, so a row that was admitted never runs
out of room. Plain Python; `engine/memory` measures a model and a machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvCost:
    """What one row keeps, by kind of layer: some bytes for every token, some for every token up to a window's length
    (`windows`: pairs of bytes a token and tokens), and some once (recurrent states)."""

    bytes_per_token: int = 0
    windows: tuple[tuple[int, int], ...] = ()
    fixed_bytes: int = 0

    def of_row(self, num_tokens: int) -> int:
        """Bytes that a row of this many tokens takes."""
        in_windows = sum(size * min(num_tokens, length) for size, length in self.windows)
        return self.bytes_per_token * num_tokens + in_windows + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class KvBudget:
    """What rows cost and what there is, in bytes."""

    cost: KvCost
    limit_bytes: int

    def fits(self, row_lengths: Iterable[int]) -> bool:
        """Whether rows of these lengths, in tokens, fit together."""
        lengths = list(row_lengths)
        return len(lengths) * self.cost.of_row(max(lengths, default=0)) <= self.limit_bytes
