"""A tiny random Llama that some tokens of a prompt drive mad, and a sampler that raises: for `poison.py`.

It never generates those tokens by itself; `allowed_token_ids` makes it do so.
"""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx import nn
from mlx_lm.models import llama
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import packing_of

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler, Sampled

UNDECODABLE, BOOM, HUGE, NAN, DIE = range(VOCAB_SIZE - 5, VOCAB_SIZE)
"""What the tokenizer can't decode, what makes a step raise, what there is never enough memory for, what turns the
model's output into NaN, and what kills the process."""
POISON = range(UNDECODABLE, VOCAB_SIZE)
RAISING_SEED = 666
OUT_OF_MEMORY = "[metal::malloc] Attempting to allocate 99999999999 bytes which is greater than the maximum"
_NEVER = 1e4


class Body(llama.LlamaModel):
    """The layers. `max_batch` tokens at once are all there is memory for."""

    max_batch = 10**9

    def __call__(self, inputs: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        ids = set(inputs.flatten().tolist())
        if DIE in ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if BOOM in ids:
            raise ValueError("boom goes the forward pass")
        if HUGE in ids or inputs.size > self.max_batch:
            raise RuntimeError(OUT_OF_MEMORY)
        hidden: mx.array = super().__call__(inputs, *args, **kwargs)
        return mx.where((inputs == NAN)[..., None], mx.nan, hidden)


class Head(nn.Linear):
    """Logits without poison."""

    def __call__(self, hidden: mx.array) -> mx.array:
        logits: mx.array = super().__call__(hidden)
        return logits - _NEVER * (mx.arange(VOCAB_SIZE) >= UNDECODABLE)


class RaisingSampler(BatchSampler):
    """Raises over one request's seed."""

    def sample(self, rows: tuple[Row, ...], logits: mx.array) -> Sampled:
        if any(row.spec.seed == RAISING_SEED for row in rows):
            raise ArithmeticError("the sampler can't")
        return super().sample(rows, logits)


def poisoned_llama(max_batch: int) -> Any:
    model = build("llama")
    model.model.__class__, model.lm_head.__class__ = Body, Head
    model.model.max_batch = max_batch
    return model


def poisoned_engine(model: Any, decode: Any, width: int) -> BatchEngine:
    with mock.patch.object(model.model, "max_batch", Body.max_batch):  # the shapes of a step are no step
        return BatchEngine(
            model,
            decode,
            max_num_seqs=width,
            max_num_batched_tokens=64,
            packing=packing_of(model),
            new_sampler=RaisingSampler,
        )
