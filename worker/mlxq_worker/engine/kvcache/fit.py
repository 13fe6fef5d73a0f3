"""What fits on a machine, reckoned before a model's weights are read: the weights, how many rows beside them, and how
wide a batch is that nobody has given a width.

A wider batch is faster until a step computes for as long as it reads weights. Beyond that each row gets slower and the
batch no faster, while the worker claims ahead in proportion to it (`jobs.claiming`). So the width is what fits, and no
more than what pays, which depends on what computes. Memory doesn't hang on it: admission counts each row with its own
length. Plain Python over a model's cost and sizes in bytes; `memory` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxq_worker.engine.kvcache.budget import KvBudget

TILE = 32
"""Matrix kernels work on tiles of so many rows: a further row in a tile that isn't full costs little."""
EXPECTED_TOKENS = 1024
"""Of prompt and answer together, where a width is to be found: what most requests of bulk work stay below. Of longer
rows fewer run, by admission."""


@dataclass(frozen=True, slots=True)
class MostRows:
    """The widest batch that pays, and `where` that is so: on a device, or with a kind of model."""

    num_rows: int
    where: str


ON_A_CPU = MostRows(32, "on a CPU")
"""Where a step computes from a few rows on: a model of 40M parameters makes 495 tokens a second at 16 rows, 635 at 32,
481 at 64 and 647 at 128 (``python -m tests.bench.widths --model 40m``, two cores); one of 6M goes on to gain."""
ON_METAL = MostRows(64, "on this GPU")
"""A step reads each weight once and computes twice with it for each row. By Apple's figures for operations and bytes a
second the two take as long at 9 to 11 rows with weights of 4 bits and at 33 to 38 with 16 (M1 to M4); this is the next
whole tile. Not run on Metal."""
ON_CUDA = MostRows(256, "on this GPU")
"""Likewise some 200 rows with weights of 16 bits on an H200; it is vLLM's default, too. Never run."""


ALONE = MostRows(1, "with this model, whose rows run one at a time")


def most_rows(*, is_gpu: bool, has_metal: bool, runs_alone: bool = False) -> MostRows:
    """The widest batch that pays on what MLX computes on, with a model whose caches can be batched or not."""
    if runs_alone:
        return ALONE
    if not is_gpu:
        return ON_A_CPU
    return ON_METAL if has_metal else ON_CUDA


@dataclass(frozen=True, slots=True)
class Fit:
    """Rows beside weights of `weights_bytes`.

    Args:
        weights_bytes: of the model, once they are read.
        limit_bytes: what the process may take.
        budget: what is left for rows.
        row_tokens: of a row as it is expected, prompt and answer.
        longest_tokens: of a row that asks for no limit, likewise.
        most: the widest batch that pays here.
        given: the width that somebody wants; `None` to take what fits.
    """

    weights_bytes: int
    limit_bytes: int
    budget: KvBudget
    row_tokens: int
    longest_tokens: int
    most: MostRows = ON_A_CPU
    given: int | None = None

    @property
    def wanted(self) -> int:
        """How many rows are wanted at once."""
        return self.given or self.most.num_rows

    @property
    def num_rows(self) -> int:
        """How many of the expected rows fit, up to `wanted`."""
        return self._rows_of(self.row_tokens)

    @property
    def num_longest(self) -> int:
        """How many rows that ask for no limit fit, up to `wanted`."""
        return self._rows_of(self.longest_tokens)

    @property
    def fitting(self) -> int:
        """As many rows as are wanted and fit, in whole tiles where they fill one; one in any case: it may be short."""
        return max(1, self.num_rows // TILE * TILE or self.num_rows)

    @property
    def max_num_seqs(self) -> int:
        """How many rows are decoded at once: as many as somebody has said, else as fit."""
        return self.given or self.fitting

    @property
    def reason(self) -> str:
        """Why it is that many where nobody has said anything."""
        rows = f"{self.fitting} {'row' if self.fitting == 1 else 'rows'} at once"
        length = f"of {self.row_tokens:,} tokens"
        if self.num_rows == self.wanted:
            fit = "" if self.wanted == 1 else f"; so many {length} fit into memory"
            return f"{rows}, the most that pays {self.most.where}{fit}"
        if self.fitting < self.num_rows:
            return f"{rows}, in whole tiles; {self.num_rows} {length} fit into memory"
        return f"{rows}, as many {length} as fit into memory" if self.num_rows else f"{rows}, though none {length} fits"

    def __str__(self) -> str:
        row = [self.row_tokens]
        return (
            f"weights of {_mib(self.weights_bytes)}, rows of {_mib(self.budget.kept(row))} for {self.row_tokens:,} "
            f"tokens and steps of {_mib(self.budget.of_step(row * self.max_num_seqs))}, in "
            f"{_mib(self.limit_bytes)}: {self.num_rows} of {self.wanted} rows of that length fit"
            + (f"; --max-num-seqs {self.fitting} would do" if self.given and 0 < self.num_rows < self.given else "")
        )

    def _rows_of(self, num_tokens: int) -> int:
        low, high = 0, self.wanted
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.budget.fits([num_tokens] * middle) else (low, middle - 1)
        return low


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
