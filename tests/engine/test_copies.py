"""What a step in steady state copies: nothing of a slab's size, while the step before may still be reading it."""

from __future__ import annotations

import mlx.core as mx
import pytest
from tests.support.engine_runs import decode
from tests.support.row_specs import row_spec
from tests.support.tiny_models import VOCAB_SIZE, build

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import measure_cost

WIDTH = 8
NUM_LAYERS = 2
SLAB_COLUMNS = 2048


def settled(pipelined: bool) -> tuple[BatchEngine, int]:
    """An engine whose rows decode far from the next slab, and how many bytes one layer's slab takes."""
    model = build("llama", num_hidden_layers=NUM_LAYERS)
    layer_bytes = measure_cost(model).bytes_per_token // NUM_LAYERS
    engine = BatchEngine(model, decode, max_num_seqs=WIDTH, max_num_batched_tokens=512, pipelined=pipelined)
    for index in range(WIDTH):
        prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(1200))
        engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=500))
    while engine.step(0.0).num_prefilled:
        pass
    for _ in range(4):
        engine.step(0.0)
    return engine, WIDTH * SLAB_COLUMNS * layer_bytes


@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
def test_steps_copy_nothing_of_a_slabs_size(pipelined: bool) -> None:
    engine, slab_bytes = settled(pipelined)
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    for _ in range(20):
        engine.step(0.0)

    assert mx.get_peak_memory() - before < slab_bytes / 4
