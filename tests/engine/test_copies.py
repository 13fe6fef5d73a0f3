"""What a step in steady state copies: nothing of a slab's size, while the step before may still be reading it."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any
from unittest import mock

import mlx.core as mx
import pytest
from tests.support import architectures
from tests.support.engine_runs import decode
from tests.support.row_specs import row_spec
from tests.support.tiny_models import VOCAB_SIZE

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.slot_allocator import slab_sizes
from mlxq_worker.engine.runners.step import slab_attention

LENGTHS = (600, 200, 600, 600, 200, 600)
"""Of prompts: rows in two slabs."""
CHUNK = 8
"""Tokens a step of a prompt that joins them: so few that what they compute is small beside the slabs."""

OF_A_KIND: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "gpt_oss": {},
    "gemma2": {},
    "lfm2": {},
    "qwen3_next": {},
    "deepseek_v3": {"kv_lora_rank": 128, "qk_rope_head_dim": 32},
    "deepseek_v32": {"kv_lora_rank": 128},
    "baichuan_m1": {},
}
"""One of each kind of layers and of each way to attend."""


def settled(architecture: str, *, pipelined: bool) -> tuple[BatchEngine, int]:
    """An engine whose rows decode far from the next slab, and how many bytes the slabs of one layer take."""
    model = architectures.build(architecture, num_key_value_heads=4, **OF_A_KIND[architecture])
    engine = BatchEngine(
        model, decode, max_num_seqs=8, max_num_batched_tokens=512, max_prefix_bytes=0, pipelined=pipelined
    )
    for index, length in enumerate(LENGTHS):
        admit(engine, index, length)
    while engine.step(0.0).num_prefilled:
        pass
    for _ in range(4):
        engine.step(0.0)
    num_columns = sum(size.area for size in slab_sizes(LENGTHS).values())
    return engine, num_columns * engine._budget.cost.layer_bytes_per_token


def admit(engine: BatchEngine, index: int, length: int) -> None:
    prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(length))
    engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=200))


def most_copied(engine: BatchEngine, num_steps: int) -> int:
    """How many bytes more than before there were at most in these steps, beside what is there after them."""
    mx.synchronize()
    gc.collect()  # so that nothing older is freed meanwhile
    mx.reset_peak_memory()
    for _ in range(num_steps):
        engine.step(0.0)
    mx.synchronize()
    return mx.get_peak_memory() - mx.get_active_memory()


@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
@pytest.mark.parametrize("architecture", OF_A_KIND)
def test_steps_copy_nothing_of_a_slabs_size(architecture: str, pipelined: bool) -> None:
    engine, slabs_bytes = settled(architecture, pipelined=pipelined)

    assert most_copied(engine, 10) < slabs_bytes / 4


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_nor_do_steps_of_several_slabs_where_attention_is_a_single_kernel(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    engine, slabs_bytes = settled(architecture, pipelined=True)

    with mock.patch.object(slab_attention, "attend_in_slab", wraps=slab_attention.attend_in_slab) as attend_in_slab:
        copied_bytes = most_copied(engine, 20)

    assert attend_in_slab.called, "how they attend is traced"
    assert copied_bytes < slabs_bytes / 4


@pytest.mark.parametrize("architecture", OF_A_KIND)
def test_nor_do_steps_in_which_a_prompt_is_prefilled_beside_the_others(architecture: str) -> None:
    engine, slabs_bytes = settled(architecture, pipelined=True)
    admit(engine, len(LENGTHS), 600)
    engine.step(0.0)
    engine._scheduler.max_num_batched_tokens = len(LENGTHS) + CHUNK
    engine.step(0.0)

    assert most_copied(engine, 5) < slabs_bytes / 4
