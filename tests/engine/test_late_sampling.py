"""On which side of which forward pass a row's grammar is asked and told; the answers themselves are compared in
`test_processors`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tests.support.countdown import VOCAB_SIZE, Countdown, counting_from, decode
from tests.support.engine_runs import run

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler, Sampled, Tokens


class WatchedModel(Countdown):
    """Writes down when it is run."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        self._events.append("forward")
        return super().__call__(tokens, cache)


@dataclass(frozen=True)
class WatchedTokens(Sampled):
    """Writes down when it is read."""

    events: list[str]

    def read(self) -> Tokens:
        self.events.append("read")
        return super().read()


class WatchedSampler(BatchSampler):
    """Writes down when it picks the tokens of a step, and when they are read."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def sample(self, rows: tuple[Row, ...], logits: mx.array) -> Sampled:
        self._events.append("sample")
        picked = super().sample(rows, logits)
        return WatchedTokens(picked.rows, picked.tokens, picked.peaks, picked.scores, self._events)


class WatchedConstraint:
    """Allows everything, and writes down when it is asked and told."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def allowed_ids(self) -> bytes:
        self._events.append("mask")
        return np.full((VOCAB_SIZE // 8,), 255, np.uint8).tobytes()

    @property
    def is_complete(self) -> bool:
        return True

    def advance(self, token_id: int) -> None:
        self._events.append(f"token {token_id}")


@pytest.mark.parametrize(
    ("pipelined", "expected"),
    [
        (True, "forward, mask, forward, token 2, mask, forward, token 1, mask"),
        (False, "forward, mask, token 2, forward, mask, token 1, forward, mask"),
    ],
    ids=["pipelined", "plain"],
)
def test_a_forward_pass_starts_before_the_last_token_is_read_and_is_sampled_after(
    pipelined: bool, expected: str
) -> None:
    events: list[str] = []
    engine = BatchEngine(WatchedModel(events), decode, max_num_seqs=2, packed=False, pipelined=pipelined)
    events.clear()  # the model is measured when an engine is built

    # The other row shares the batch, and ends later.
    run(engine, [counting_from(2, constraint=WatchedConstraint(events)), counting_from(4)])

    assert events[: len(expected.split(", "))] == expected.split(", ")
    num_masks, num_tokens = events.count("mask"), sum(event.startswith("token") for event in events)
    assert (num_masks, num_tokens) == (3, 2)


def test_a_batch_of_rows_that_need_no_last_token_is_sampled_at_once() -> None:
    events: list[str] = []
    engine = BatchEngine(
        Countdown(), decode, max_num_seqs=2, packed=False, pipelined=True, new_sampler=lambda: WatchedSampler(events)
    )
    engine.admit(counting_from(5, logit_bias={9: -1.0}, bad_words=((8,),), min_tokens=2))

    for now in range(3):
        engine.step(float(now))

    assert events == ["sample", "sample", "read", "sample", "read"]
