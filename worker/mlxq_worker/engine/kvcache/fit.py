"""What fits on a machine, reckoned before a model's weights are read: the weights, and how many rows beside them.

Plain Python over a model's cost and sizes in bytes; `memory` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxq_worker.engine.kvcache.budget import KvBudget

TILE = 32
"""Matrix kernels work on tiles of so many rows: a further row in a tile that isn't full costs little."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Rows of `row_tokens` tokens beside weights of `weights_bytes`.

    Args:
        weights_bytes: of the model, as it is stored.
        limit_bytes: what the process may take.
        budget: what is left for rows.
        row_tokens: of prompt and answer.
        max_num_seqs: how many rows are wanted at once.
    """

    weights_bytes: int
    limit_bytes: int
    budget: KvBudget
    row_tokens: int
    max_num_seqs: int

    @property
    def num_rows(self) -> int:
        """How many such rows fit, up to `max_num_seqs`."""
        low, high = 0, self.max_num_seqs
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle - 1)
        return low

    @property
    def proposed_rows(self) -> int:
        """A width that fits, in whole tiles where it has any."""
        return self.num_rows // TILE * TILE or self.num_rows

    def __str__(self) -> str:
        row_bytes = self.budget.taken([self.row_tokens])
        return (
            f"weights of {_mib(self.weights_bytes)} and rows of {_mib(row_bytes)} for {self.row_tokens:,} tokens, in "
            f"{_mib(self.limit_bytes)}: {self.num_rows} of {self.max_num_seqs} rows of that length fit"
            + (f"; --max-num-seqs {self.proposed_rows} would do" if 0 < self.num_rows < self.max_num_seqs else "")
        )

    def _fits(self, num_rows: int) -> bool:
        return self.budget.fits([self.row_tokens] * num_rows)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
