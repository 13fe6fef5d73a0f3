"""What the engine asks of whatever runs its plans on arrays: `engine/packed` where it can, else `engine/padded`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import mlx.core as mx

from mlxq_worker.engine.row import Row
from mlxq_worker.engine.scheduler import Plan


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way: one token for each of its rows, not necessarily computed yet."""

    rows: tuple[Row, ...]
    tokens: mx.array  # (B,)

    def read(self) -> list[int]:
        """Wait for the tokens."""
        return cast(list[int], self.tokens.tolist())


class Runner(Protocol):
    """Owns the model's arrays for one batch. One thread builds and uses it: MLX streams are thread-local."""

    @property
    def max_num_seqs(self) -> int:
        """How many rows it can hold."""

    @property
    def max_num_batched_tokens(self) -> int | None:
        """How many tokens one plan may have; `None` for plans whose prompts come in one piece each."""

    @property
    def max_prefix_tokens(self) -> int:
        """How many tokens of prefixes that rows share it keeps; 0 if it can't share."""

    def launch(self, plan: Plan) -> Launched | None:
        """Bring the batch to `plan` and start computing it; `None` if no row is due a token from it."""

    def clear(self) -> None:
        """Drop the batch and free its memory."""
