"""What is said to fit before weights are read, beside what is allocated then: for weights what they take, for rows at
least what they take and at most twice that, since a slab that grows and a step's new states are counted beside those
before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tests.support.engine_runs import decode
from tests.support.model_folders import Weights, write_folder
from tests.support.row_specs import row_spec
from tests.support.tiny_models import VOCAB_SIZE

from mlxq_worker.backend import fit_of
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.model.load import load_model

LARGE = {"hidden_size": 128, "intermediate_size": 512, "moe_intermediate_size": 256}
"""So that weights outweigh what a model keeps beside them, such as the frequencies of RoPE."""
NUM_ROWS = 8
NUM_PROMPT_TOKENS, NUM_TOKENS = 480, 30

OF_A_KIND: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "full": ("llama", {"num_key_value_heads": 4}),
    "sliding": ("gemma3_text", {"num_key_value_heads": 4}),
    "recurrent": ("mamba2", {"num_heads": 4, "head_dim": 32, "state_size": 64}),
    "conv": ("lfm2", {"num_key_value_heads": 4, "block_dim": 128}),
    "latent": ("deepseek_v3", {"kv_lora_rank": 128, "qk_rope_head_dim": 32}),
    "hybrid": ("qwen3_next", {"num_key_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32}),
    "latent and recurrent": ("kimi_linear", {"kv_lora_rank": 128, "qk_rope_head_dim": 32}),
}


@pytest.mark.parametrize("kind", OF_A_KIND)
def test_what_is_allocated_is_what_was_said(kind: str, tmp_path: Path) -> None:
    # given
    architecture, sizes = OF_A_KIND[kind]
    folder = write_folder(tmp_path / "model", architecture, Weights(mx.float32), {**LARGE, **sizes})
    said = fit_of(WorkerConfig(model=str(folder)))

    # when
    before_bytes = mx.get_active_memory()
    loaded = load_model(str(folder))
    weights_bytes = mx.get_active_memory() - before_bytes
    engine = BatchEngine(loaded.model, decode, max_num_seqs=NUM_ROWS, max_num_batched_tokens=512, max_prefix_bytes=0)
    before_bytes = mx.get_active_memory()
    for index in range(NUM_ROWS):
        prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(NUM_PROMPT_TOKENS))
        engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=NUM_TOKENS))
    while engine.step(0.0).num_prefilled:
        pass
    engine.step(0.0)
    rows_bytes = mx.get_active_memory() - before_bytes

    # then
    assert weights_bytes == pytest.approx(said.weights_bytes, rel=0.05)
    assert rows_bytes <= said.budget.kept([NUM_PROMPT_TOKENS + NUM_TOKENS] * NUM_ROWS) <= 2 * rows_bytes
    assert replace(engine._budget, limit_bytes=0) == replace(
        said.budget, limit_bytes=0, copies_prefixes=engine._budget.copies_prefixes, step_tokens=512
    )


@pytest.mark.parametrize("kind", ["full", "latent"])
def test_as_many_rows_run_as_were_said_to_fit(kind: str, tmp_path: Path) -> None:
    # given room for five rows and their steps, as is reckoned before the weights are read
    architecture, sizes = OF_A_KIND[kind]
    folder = write_folder(tmp_path / "model", architecture, Weights(mx.float32), {**LARGE, **sizes})
    said = fit_of(WorkerConfig(model=str(folder)))
    num_tokens = NUM_PROMPT_TOKENS + NUM_TOKENS
    room_bytes = said.budget.taken([num_tokens] * 5)
    fitting = replace(said, row_tokens=num_tokens, budget=replace(said.budget, limit_bytes=room_bytes)).fitting
    engine = BatchEngine(
        load_model(str(folder)).model,
        decode,
        max_num_seqs=2 * NUM_ROWS,
        max_num_batched_tokens=said.budget.step_tokens,
        max_prefix_bytes=0,
        kv_bytes=room_bytes,
    )

    # when
    for index in range(NUM_ROWS):
        prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(NUM_PROMPT_TOKENS))
        engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=NUM_TOKENS))
    most_running = max(engine.step(0.0).num_running for _ in range(24))

    # then
    assert most_running == fitting == 5
