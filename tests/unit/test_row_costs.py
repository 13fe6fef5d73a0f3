"""What a row of models as they are published costs: what is reckoned from their config.json before any weight is read,
beside what it is by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxq_worker.engine.kvcache.memory import measure_cost
from mlxq_worker.model.config_json.build import build, config_overrides

CORPUS = Path(__file__).parents[1] / "corpus" / "published_configs.json"
PUBLISHED: dict[str, dict[str, Any]] = json.loads(CORPUS.read_text(encoding="utf-8"))

KV = 2
"""Keys and values."""
HALF, FULL = 2, 4
"""Bytes of a number in bfloat16, as the weights are, and in float32, as recurrent states are kept."""


def in_bfloat16(name: str) -> Any:
    config = PUBLISHED[name]
    model = build({**config, **config_overrides(config)})
    model.set_dtype(mx.bfloat16)
    return model


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        # layers x keys and values x heads x numbers a head x bytes a number
        ("Llama-3.1-8B", 32 * KV * 8 * 128 * HALF),
        ("gpt-oss-20b", 24 * KV * 8 * 64 * HALF),
        ("gemma-3-4b", 34 * KV * 4 * 256 * HALF),
        ("gemma-4-E2B", (12 * 256 + 3 * 512) * KV * 1 * HALF),  # the last 20 of 35 layers have none of their own
        ("Qwen3-Next-80B", 2 * KV * 2 * 256 * HALF),  # here of 8 layers
        ("Qwen3.5-4B", 2 * KV * 4 * 256 * HALF),  # here of 8 layers
        ("LFM2-350M", 2 * KV * 8 * 64 * HALF),  # here of 6 layers
        ("granite-4.0-h-tiny", 1 * KV * 4 * 128 * HALF),  # here of 6 layers
        ("Nemotron-H-8B", 4 * KV * 8 * 128 * HALF),
        # latents: a rank and what is rotated
        ("DeepSeek-V3", 5 * (512 + 64) * HALF),  # here of 5 layers
        ("GLM-4.7-Flash", 47 * (512 + 64) * HALF),
        ("Kimi-Linear-48B-A3B", 7 * (512 + 64) * HALF),
    ],
)
def test_a_token_costs_what_its_layers_keep_of_it(name: str, num_bytes: int) -> None:
    model = in_bfloat16(name)

    assert measure_cost(model, in_slabs=True).bytes_per_token == num_bytes


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        # layers x (the convolution's last inputs + the state)
        ("Qwen3-Next-80B", 6 * (3 * (2 * 16 * 128 + 32 * 128) * HALF + 32 * 128 * 128 * FULL)),
        ("Qwen3.5-4B", 6 * (3 * (2 * 16 * 128 + 32 * 128) * HALF + 32 * 128 * 128 * FULL)),
        ("Kimi-Linear-48B-A3B", 20 * (3 * 3 * 32 * 128 * HALF + 32 * 128 * 128 * FULL)),
        ("Nemotron-H-8B", 24 * (3 * (128 * 64 + 2 * 8 * 128) * HALF + 128 * 64 * 128 * FULL)),
        ("granite-4.0-h-tiny", 5 * (3 * (48 * 64 + 2 * 128) * HALF + 48 * 64 * 128 * FULL)),
        ("LFM2-350M", 4 * 2 * 1024 * HALF),
        ("Llama-3.1-8B", 0),
    ],
)
def test_states_cost_what_they_are_once_a_row_and_in_slabs_twice(name: str, num_bytes: int) -> None:
    model = in_bfloat16(name)

    assert measure_cost(model).fixed_bytes == num_bytes
    assert measure_cost(model, in_slabs=True).fixed_bytes == 2 * num_bytes


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("gpt-oss-20b", 12 * [(KV * 8 * 64 * HALF, 128)]),
        ("gemma-3-4b", 29 * [(KV * 4 * 256 * HALF, 1024)]),
        ("gemma-4-E2B", 12 * [(KV * 1 * 256 * HALF, 512)]),
    ],
)
def test_padded_a_sliding_layer_costs_no_more_than_its_window(name: str, windows: list[tuple[int, int]]) -> None:
    assert measure_cost(in_bfloat16(name)).windows == tuple(windows)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_row_costs_is_known_of_every_published_model_and_nothing_is_computed(name: str) -> None:
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()

    cost = measure_cost(in_bfloat16(name), in_slabs=True)

    assert cost.of_row(1024) > 0
    assert mx.get_peak_memory() - before_bytes < 1 << 20
