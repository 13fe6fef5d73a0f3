"""What a step is said to take beside what is kept, by shapes alone, beside what it takes at its peak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import pytest
from tests.support import architectures
from tests.support.thorough import sample_of
from tests.support.tried_models import packing_of

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost, StepCost
from mlxq_worker.engine.kvcache.slot_allocator import SlotAllocator
from mlxq_worker.engine.runners.packed_model import PackedModel
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span
from mlxq_worker.engine.runners.step_cost import measure_step

WIDE = {"hidden_size": 64, "intermediate_size": 256, "moe_intermediate_size": 96}
OF_A_KIND: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3_moe": {},
    "gpt_oss": {},
    "minimax": {},
    "gemma2": {},
    "deepseek_v3": {"kv_lora_rank": 64, "qk_nope_head_dim": 24, "v_head_dim": 24},
    "deepseek_v32": {"kv_lora_rank": 64},
    "lfm2": {"block_dim": 64},
    "qwen3_next": {"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "kimi_linear": {},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 32},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 32},
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("num_tokens", "num_before"),
    sample_of([(64, 0), (64, 512), (256, 0), (256, 1024), (512, 512)], [(256, 0), (64, 512)]),
)
@pytest.mark.parametrize("architecture", OF_A_KIND)
def test_a_step_takes_about_what_was_said(architecture: str, num_tokens: int, num_before: int) -> None:
    model = architectures.build(architecture, **{**WIDE, **OF_A_KIND[architecture]})
    said = measure_step(model).of_step(num_tokens, num_before + num_tokens)

    taken = most_taken(model, num_tokens, num_before)

    assert taken / 1.3 <= said <= 4 * taken


def most_taken(model: Any, num_tokens: int, num_before: int) -> int:
    """By a step of so many tokens of a row that has so many, beside what was there before it."""
    way = packing_of(model).way
    assert way is not None
    packed, slots = PackedModel(model, way), SlotAllocator[int]()
    packed.arrange(slots.arrange({0: num_before + num_tokens}))
    for first, last in ((0, num_before), (num_before, num_before + num_tokens)):
        layout = Layout([], [Span(slots[0], first, last)])
        for _ in range(2 if first == num_before else 1):  # the first time slabs are made
            mx.synchronize()
            mx.clear_cache()
            before_bytes = mx.get_active_memory()
            mx.reset_peak_memory()
            if last > first:
                mx.eval(packed.hidden(mx.zeros((last - first,), mx.uint32), layout), packed.arrays)
    return mx.get_peak_memory() - before_bytes


def test_nothing_is_computed_for_that() -> None:
    model = architectures.build("deepseek_v3")
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()

    measure_step(model)

    assert mx.get_peak_memory() - before_bytes < 1 << 16


def test_what_takes_keys_for_each_head_and_scores_counts_with_the_rows_length() -> None:
    latent = measure_step(architectures.build("deepseek_v3", num_attention_heads=4, qk_nope_head_dim=8, v_head_dim=16))
    state = measure_step(architectures.build("mamba2", num_heads=8))

    assert latent.bytes_per_context_token == 4 * (8 + 16) * 4  # heads, numbers of a key and a value, bytes
    assert latent.bytes_per_pair == 2 * 4 * 4  # arrays, heads, bytes
    assert (state.bytes_per_context_token, state.bytes_per_pair) == (0, 0)
    assert state.bytes_per_near_pair == 5 * 8 * 4


@pytest.mark.parametrize(
    ("architecture", "num_heads"),
    [("llama", 0), ("gpt_oss", 0), ("deepseek_v3", 4), ("deepseek_v32", 4 + 2), ("gemma2", 4)],
)
def test_on_a_gpu_scores_count_where_no_kernel_keeps_them_to_itself(
    architecture: str, num_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given attention that is fused, by a latent's scores, over chosen keys, with scores that are capped
    model = architectures.build(architecture)
    monkeypatch.setattr(device, "is_gpu", lambda: True)

    assert measure_step(model).bytes_per_pair == 2 * num_heads * 4


def test_a_budget_counts_the_largest_step_that_its_rows_can_fill() -> None:
    step = StepCost(bytes_once=1, bytes_per_token=10, bytes_per_context_token=100, bytes_per_pair=1000)
    budget = KvBudget(KvCost(bytes_per_token=1), 1 << 20, step=step, step_tokens=8)

    assert budget.taken([]) == 0
    assert budget.taken([3]) == 3 + 1 + 3 * 10 + 3 * 100 + 3 * 3 * 1000
    assert budget.taken([3, 9]) == 18 + 1 + 8 * 10 + 9 * 100 + 8 * 9 * 1000


def test_pairs_count_as_far_as_a_scan_goes_at_once() -> None:
    step = StepCost(bytes_per_near_pair=2, near_tokens=4)

    assert [step.of_step(num_tokens, 100) for num_tokens in (0, 3, 10)] == [0, 3 * 3 * 2, 10 * 4 * 2]
