"""Says what config.json states in the words that mlx-lm's architecture reads, or refuses the load.

transformers 5 writes positions, layers and some numbers in other words than 4 did, and either leaves out what its
classes take for granted. mlx-lm's architectures read some of these words each, and would compute something else
without a word. Pure functions over dicts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.layers import in_layers
from mlxq_worker.model.config_json.rope import LOCAL_THETA, PARTIAL, THETA, rope

SAME = (
    THETA,
    PARTIAL,
    LOCAL_THETA,
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    ("num_attention_heads", "num_heads", "n_heads", "n_head"),
    ("num_key_value_heads", "num_attention_groups", "num_kv_heads"),
    ("hidden_size", "d_model", "n_embd"),
    ("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len"),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon"),
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
    ("num_shared_experts", "n_shared_experts", "moe_num_shared_experts", "num_shared_expert"),
    ("n_group", "num_expert_group"),
    ("norm_topk_prob", "moe_renormalize", "norm_expert_weight"),
    ("layer_types", "layers_block_type"),
    ("hidden_act", "hidden_activation", "activation_function"),
)
"""Words that mean the same, whoever uses which."""

UNSTATED: Mapping[tuple[str, str], Any] = {("granitemoehybrid", "time_step_limit"): (0.0, float("inf"))}
"""What transformers takes for a key that a file leaves out, where an architecture of mlx-lm takes something else."""

NONE_WHERE_UNSTATED = frozenset({"rope_scaling", "sliding_window", "sliding_window_pattern", "q_lora_rank"})


def in_mlx_lm_words(
    part: Mapping[str, Any],
    words: Collection[str],
    where: str = "config.json",
    *,
    architecture: str = "",
    required: Collection[str] = (),
) -> dict[str, Any]:
    """What has to be laid over a part of a config so that mlx-lm reads all that it says.

    Args:
        part: config.json, or its ``text_config``.
        words: the keys that mlx-lm's architecture reads from it, `required` those that it can't do without.
        where: what errors call the part.

    Raises:
        ModelError: it says something that this architecture has no word for, or lacks what it needs.
    """
    said = _other_names(part, words)
    said |= rope(part, words, architecture, where)
    said |= in_layers(part, words, architecture, where)
    said |= {word: value for (name, word), value in UNSTATED.items() if name == architecture and word not in part}
    return said | _taken_for_granted({**part, **said}, required, where)


def _other_names(part: Mapping[str, Any], words: Collection[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for names in SAME:
        stated = [name for name in names if part.get(name) is not None]
        if stated and not any(name in words for name in stated):
            said |= {name: part[stated[0]] for name in names if name in words}
    return said


def _taken_for_granted(config: Mapping[str, Any], required: Collection[str], where: str) -> dict[str, Any]:
    """What transformers takes for keys that a file leaves out."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    known: dict[str, Any] = {"tie_word_embeddings": True, "num_key_value_heads": heads}
    if hidden and heads:
        known["head_dim"] = hidden // heads
    if hidden and config.get("expand"):
        known["intermediate_size"] = int(hidden * config["expand"])
    missing = [word for word in required if word not in config]
    unknown = [word for word in missing if known.get(word) is None and word not in NONE_WHERE_UNSTATED]
    if unknown:
        raise ModelError(f"{where} does not say {', '.join(sorted(unknown))}, which mlx-lm needs for this model")
    return {word: known.get(word) for word in missing}
