"""What a batch really takes at its peak, beside what admission reckoned for it: keys and values, growing slabs, and the
activations of a step, which nobody reckons."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest
from tests.support.engine_runs import decode
from tests.support.row_specs import row_spec
from tests.support.tiny_models import VOCAB_SIZE, build

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import measure_budget

MOST = 1.2
NUM_LAYERS = 20
"""As many as small real models have: one layer's slab is there twice while it grows."""


@pytest.mark.parametrize(
    "rows",
    [[(300, 260)] * 8, [(40 * index + 20, 200) for index in range(8)]],
    ids=["rows of one length", "rows of many lengths"],
)
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
def test_a_batch_takes_little_more_than_was_reckoned_for_it(rows: Sequence[tuple[int, int]], pipelined: bool) -> None:
    # given a model whose keys and values outweigh the rest, as those of real ones do
    model = build("llama", num_key_value_heads=4, num_hidden_layers=NUM_LAYERS)
    reckoned_bytes = measure_budget(model, 1 << 40, in_slabs=True).taken(map(sum, rows))
    mx.clear_cache()
    weights_bytes = mx.get_active_memory()
    engine = BatchEngine(
        model,
        decode,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_prefix_bytes=0,
        kv_bytes=1 << 40,
        pipelined=pipelined,
    )
    for index, (prompt_length, max_tokens) in enumerate(rows):
        prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(prompt_length))
        engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=max_tokens))
    mx.reset_peak_memory()

    # when
    while engine.step(0.0).num_running:
        pass

    # then
    assert mx.get_peak_memory() - weights_bytes <= MOST * reckoned_bytes
