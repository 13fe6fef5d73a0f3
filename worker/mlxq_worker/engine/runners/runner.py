"""What the engine asks of whatever runs its plans on arrays: `packed` where it can, else `padded`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import mlx.core as mx

from mlxq_worker.engine.plan import Plan
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler, Sampled, Tokens


class Launched:
    """A step on its way. Its tokens are chosen at once, or, where that depends on the tokens before, by `sample`.

    Args:
        rows: B rows, each due a token.
        logits: (B, V), not computed yet.
        sampler: the runner's.
        deliver: told of the tokens (B,) once there is an array of them, computed or not.
    """

    def __init__(
        self, rows: tuple[Row, ...], logits: mx.array, sampler: BatchSampler, deliver: Callable[[mx.array], None]
    ) -> None:
        self.rows = rows
        self._sampler, self._deliver = sampler, deliver
        self._logits: mx.array | None = logits
        self._sampled: Sampled | None = None
        if sampler.samples_late(rows):
            mx.async_eval(logits)
        else:
            self.sample()

    def sample(self) -> None:
        """Choose the tokens, if that hasn't been done: the step before must have been committed."""
        if self._logits is not None:
            self._sampled = self._sampler.sample(self.rows, self._logits)
            self._logits = None
            self._deliver(self._sampled.tokens)
            self._sampled.start()

    def read(self) -> Tokens:
        """Wait for the tokens."""
        self.sample()
        assert self._sampled is not None
        return self._sampled.read()


class Runner(Protocol):
    """Owns the model's arrays for one batch. One thread builds and uses it: MLX streams are thread-local."""

    @property
    def max_num_seqs(self) -> int:
        """How many rows it can hold."""

    @property
    def max_prefix_tokens(self) -> int:
        """How many tokens of prefixes that rows share it keeps; 0 if it can't share."""

    @property
    def num_slab_tokens(self) -> int:
        """How many tokens its slabs have room for now, used or not; 0 if it has none."""

    def launch(self, plan: Plan) -> Launched | None:
        """Bring the batch to `plan` and start computing it; `None` if no row is due a token from it."""

    def clear(self) -> None:
        """Drop the batch and free its memory."""
