"""Tiny random float32 models of many architectures, built from a config and a seed; nothing is downloaded."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from tests.support.thorough import sample_of

VOCAB_SIZE = 64

_SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3": {
        "text_config": {
            **_SMALL,
            "model_type": "gemma3_text",
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        }
    },
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_ff_dim": 48,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": "auto",
        "chunk_size": 16,
    },
}
"""What each architecture needs beside the common sizes. gemma3 and gpt_oss have a sliding window of 8."""
COMPARED = sample_of(tuple(CONFIGS), ("llama", "gemma3", "gpt_oss", "lfm2", "mamba2"))
"""Those that tests of more than parity go over: of attention like Llama's only that."""


_WEIGHT_SCALE = 4.0


def build(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """A random model; `changes` are laid over its config.

    mlx's initial weights are so small that some models repeat one token for ever. Larger ones make the greedy
    tokens varied and set the best logit clearly apart from the next; `test_parity` checks both.
    """
    mx.random.seed(seed)
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    args = module.ModelArgs.from_dict({"model_type": architecture, **_SMALL, **CONFIGS[architecture], **changes})
    return vary(module.Model(args))


def vary(model: Any) -> Any:
    """Scale a new model's weights up, as `build` says."""
    model.update(tree_map_with_path(_scaled, model.parameters()))
    mx.eval(model.parameters())
    return model


def _scaled(path: str, weight: mx.array) -> mx.array:
    return weight * _WEIGHT_SCALE if weight.ndim > 1 and "embed" not in path else weight
