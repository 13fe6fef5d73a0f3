"""What a batch really takes at its peak, beside what admission reckoned for it: keys and values, states, and slabs that
grow; the activations of a step nobody reckons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from tests.support import architectures
from tests.support.row_specs import row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import engine_over, packing_of

from mlxq_worker.engine.kvcache.memory import measure_budget

Rows = Sequence[tuple[int, int]]

MOST = 1.2
NUM_LAYERS = 20
"""As many as small real models have: one layer's slab is there twice while it grows."""


@cache
def deep_llama() -> Any:
    return build("llama", num_key_value_heads=4, num_hidden_layers=NUM_LAYERS)


OF_A_KIND: Mapping[str, Mapping[str, Any]] = {
    "gemma3_text": {"num_hidden_layers": 12, "num_key_value_heads": 4},
    "gpt_oss": {
        "num_hidden_layers": 12,
        "num_key_value_heads": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 6,
    },
    "lfm2": {"num_hidden_layers": 12, "num_key_value_heads": 4, "full_attn_idxs": [1, 3, 5, 7, 9, 11]},
    "qwen3_next": {
        "num_hidden_layers": 12,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    "deepseek_v3": {"num_hidden_layers": 12, "kv_lora_rank": 128, "qk_rope_head_dim": 32},
    "mamba2": {"num_hidden_layers": 12, "num_heads": 4, "head_dim": 32, "state_size": 64},
}
"""A model of each kind of layers, whose caches outweigh a step's activations as those of real ones do."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "rows",
    [[(230, sample_of(330, 40))] * 8, [(40 * index + 20, sample_of(200, 40)) for index in range(8)]],
    ids=["rows of one length", "rows of many lengths"],
)
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
def test_a_batch_takes_little_more_than_was_reckoned_for_it(rows: Rows, pipelined: bool) -> None:
    # given a model whose keys and values outweigh the rest, as those of real ones do, and rows that outgrow the 256
    # columns of their slots
    model = deep_llama()

    assert taken_over_reckoned(model, rows, pipelined=pipelined) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OF_A_KIND)
def test_so_does_a_batch_of_every_kind_of_layers(architecture: str) -> None:
    model = architectures.build(architecture, **OF_A_KIND[architecture])
    rows = [(48 * index + 16, 24) for index in range(8)]

    assert taken_over_reckoned(model, rows, pipelined=True) <= MOST


def taken_over_reckoned(model: Any, rows: Rows, *, pipelined: bool) -> float:
    """How many times what admission reckoned for rows, of so many tokens in and out, is what they take at most."""
    way = packing_of(model).way
    assert way is not None
    budget = measure_budget(model, 1 << 40, in_slabs=True, copies_prefixes=way.copies_prefixes)
    engine = engine_over(
        model,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_prefix_bytes=0,
        kv_bytes=1 << 40,
        pipelined=pipelined,
    )
    for index, (prompt_length, max_tokens) in enumerate(rows):
        prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(prompt_length))
        engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=max_tokens))
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    while engine.step(0.0).num_running:
        pass
    return (mx.get_peak_memory() - before_bytes) / budget.taken(map(sum, rows))
