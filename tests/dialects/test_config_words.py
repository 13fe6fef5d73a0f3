"""A config in transformers 5's words gives the same logits as one in 4's, for every architecture that has both; what
mlx-lm has no word for is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.rope_utils import YarnRoPE
from tests.support.architectures import OWN

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.architectures import words_of
from mlxq_worker.model.config_json.build import build, config_overrides, window_not_kept
from mlxq_worker.model.config_json.words import in_mlx_lm_words
from mlxq_worker.model.config_json.yarn import leave_range_unrounded

CORPUS = Path(__file__).parents[1] / "corpus"

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "attention_bias": False,
    "mlp_bias": False,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GRANITE = {
    "logits_scaling": 1.0,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
THETA = 1234.0
PLAIN = ({"rope_theta": THETA}, {"rope_theta": THETA, "rope_type": "default"})


def scaled(scaling: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """In transformers 4's words, and in 5's."""
    return {"rope_theta": THETA, "rope_scaling": scaling}, {"rope_theta": THETA, **scaling}


def partial(word: str = "partial_rotary_factor", theta: str = "rope_theta") -> tuple[dict[str, Any], dict[str, Any]]:
    return {theta: THETA, word: 0.5}, {"rope_theta": THETA, "partial_rotary_factor": 0.5, "rope_type": "default"}


CASES: dict[str, tuple[str, dict[str, Any], tuple[dict[str, Any], dict[str, Any]]]] = {
    "llama": ("llama", {}, PLAIN),
    "llama, scaled as Llama 3": ("llama", {}, scaled(LLAMA3)),
    "llama, by yarn": ("llama", {}, scaled(YARN)),
    "mistral, which is a llama": ("mistral", {}, PLAIN),
    "qwen2": ("qwen2", {}, PLAIN),
    "qwen2, linear": ("qwen2", {}, scaled(LINEAR)),
    "qwen3": ("qwen3", {}, PLAIN),
    "qwen3_moe": ("qwen3_moe", {**MOE, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}, PLAIN),
    "gemma": ("gemma", {}, PLAIN),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8}, PLAIN),
    "phi3": ("phi3", {}, PLAIN),
    "mixtral": ("mixtral", MOE, PLAIN),
    "starcoder2": ("starcoder2", {}, PLAIN),
    "olmo2": ("olmo2", {}, PLAIN),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4}, PLAIN),
    "granite": ("granite", GRANITE, PLAIN),
    "seed_oss": ("seed_oss", {}, PLAIN),
    "ernie4_5": ("ernie4_5", {"use_bias": False}, PLAIN),
    "cohere": ("cohere", {}, PLAIN),
    "stablelm": ("stablelm", {"use_qkv_bias": False}, partial()),
    "phi": ("phi", {}, partial()),
    "glm4": ("glm4", {}, partial()),
    "gpt_neox": ("gpt_neox", {}, partial("rotary_pct", "rotary_emb_base")),
    "nemotron": ("nemotron", {"hidden_act": "relu2", "norm_eps": 1e-5}, partial()),
    "gpt_oss": (
        "gpt_oss",
        {**MOE, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
        scaled(YARN),
    ),
    "lfm2": (
        "lfm2",
        {
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 32,
            "block_ff_dim": 48,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "full_attn_idxs": [1],
        },
        PLAIN,
    ),
}


def model_of(config: dict[str, Any]) -> Any:
    """As mlx-lm builds it from a config in the words that it is given."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict({**config, **config_overrides(config)}))


def logits(model: Any, weights: dict[str, mx.array]) -> Any:
    model.update(tree_unflatten(list(weights.items())))
    return model(mx.array([[(7 * place) % 61 for place in range(100)]]))


@pytest.mark.parametrize(("architecture", "more", "words"), CASES.values(), ids=CASES.keys())
def test_both_words_give_the_same_logits(
    architecture: str, more: dict[str, Any], words: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    fours, fives = words
    common = {"model_type": architecture, **SMALL, **more}
    mx.random.seed(0)
    model = model_of({**common, **fours})
    weights = {name: mx.random.normal(weight.shape) * 0.3 for name, weight in tree_flatten(model.parameters())}

    expected = logits(model, weights)
    found = logits(model_of({**common, "rope_parameters": fives}), weights)
    other = logits(model_of({**common, **fours, **_another_theta(fours)}), weights)

    assert mx.array_equal(found, expected)
    assert not mx.array_equal(other, expected)  # so that the parameters make a difference here


def _another_theta(fours: dict[str, Any]) -> dict[str, Any]:
    return {name: 10.0 for name in ("rope_theta", "rotary_emb_base") if name in fours}


def gemma3(**more: Any) -> dict[str, Any]:
    text = {"model_type": "gemma3_text", **SMALL, "sliding_window": 8, "query_pre_attn_scalar": 8, **more}
    return {"model_type": "gemma3", "vocab_size": 64, "text_config": text}


def test_gemmas_two_kinds_of_layers_have_parameters_of_their_own_in_a_nested_config() -> None:
    types = ["sliding_attention", "full_attention"] * 2
    fours = gemma3(rope_theta=THETA, rope_local_base_freq=77.0, sliding_window_pattern=2)
    parameters = {"full_attention": {"rope_theta": THETA}, "sliding_attention": {"rope_theta": 77.0}}
    fives = gemma3(rope_parameters=parameters, layer_types=types)
    model = model_of(fours)
    weights = {name: mx.random.normal(weight.shape) * 0.3 for name, weight in tree_flatten(model.parameters())}

    assert mx.array_equal(logits(model_of(fives), weights), logits(model, weights))


@pytest.mark.parametrize(
    ("architecture", "more", "said"),
    [
        ("llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is relu, and mlx-lm computes silu"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("olmoe", {**MOE, "clip_qkv": 8.0}, "clip_qkv"),
        ("glm", {"partial_rotary_factor": 0.25}, "goes by 0.5"),
        ("recurrent_gemma", {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 5.0, and mlx-lm goes by 10000"),
        ("phi", {"rope_scaling": LINEAR}, "rope_scaling is of the type linear"),
        (
            "gemma4_text",
            {"layer_types": ["full_attention"], "per_layer_config": {"0": {"top_k": 3}}},
            "a top_k of its own",
        ),
        ("exaone_moe", {"rope_parameters": {"rope_theta": 1.0}}, "does not say is_moe_layer, layer_types"),
        ("starcoder2", {"rope_parameters": {"rope_theta": 1.0, **YARN}}, "yarn"),
        ("llama", {"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}},
            "sliding_attention",
        ),
        ("cohere2", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "layer_types"),
    ],
)
def test_what_mlx_lm_has_no_word_for_is_refused(architecture: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        config_overrides({"model_type": architecture, **SMALL, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"use_bidirectional_attention": False, "attn_logit_softcapping": None, "hidden_act": "silu"},
        {"use_bidirectional_attention": "vision", "hidden_act": "swish", "clip_qkv": None},
        {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default", "mrope_section": [1, 1, 2]}},
    ],
)
def test_what_changes_nothing_for_text_is_not_refused(more: dict[str, Any]) -> None:
    config_overrides({"model_type": "qwen2", **SMALL, **more})


def test_a_number_is_found_under_any_of_its_names() -> None:
    config = {"model_type": "qwen3_moe", **SMALL, **MOE, "decoder_sparse_step": 1, "mlp_only_layers": []}
    said = config_overrides({**config, "norm_topk_prob": True, "rope_theta": 1.0, "num_experts": None})

    assert said["num_experts"] == 4


@pytest.mark.parametrize(
    ("mlp_layer_types", "architecture", "word", "value"),
    [
        (["dense", "sparse", "sparse"], "deepseek_v3", "first_k_dense_replace", 1),
        (["dense", "sparse", "sparse"], "afmoe", "num_dense_layers", 1),
        (["sparse", "dense", "sparse"], "step3p5", "moe_layers_enum", "0,2"),
        (["sparse", "dense", "sparse"], "qwen3_next", "mlp_only_layers", [1]),
    ],
)
def test_layers_with_experts_are_said_in_the_words_that_are_read(
    mlp_layer_types: list[str], architecture: str, word: str, value: Any
) -> None:
    words = words_of({"model_type": architecture}).top

    assert in_mlx_lm_words({"mlp_layer_types": mlp_layer_types}, words)[word] == value


def test_the_factor_of_yarns_attention_is_said_as_mlx_lm_computes_it() -> None:
    yarn = {**YARN, "attention_factor": 1.3}
    model = model_of({"model_type": "llama", **SMALL, "rope_parameters": {"rope_theta": 1.0e4, **yarn}})

    assert model.layers[0].self_attn.rope.mscale == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("more", "window"),
    [
        ({"model_type": "gemma2", "sliding_window": 16}, 16),
        ({"model_type": "mistral3", "text_config": {"model_type": "qwen2", "sliding_window": 16}}, None),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False}, None),
        ({"model_type": "qwen2", "sliding_window": 16, "layer_types": ["full_attention"]}, None),
        ({"model_type": "qwen2", "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, 16),
        ({"model_type": "gemma3_text", "sliding_window": 16}, None),
        ({"model_type": "mistral", "sliding_window": 16}, 16),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "llama", "sliding_window": 16}, None),
    ],
)
def test_a_window_that_mlx_lm_does_not_keep_is_known(more: dict[str, Any], window: int | None) -> None:
    assert window_not_kept(more) == window


def test_an_architecture_that_reads_the_new_words_keeps_them() -> None:
    config = {"model_type": "qwen3", **SMALL, "rope_parameters": {"rope_theta": THETA, "rope_type": "default"}}

    assert config_overrides(config) == {}


def test_mlx_lm_has_every_architecture_of_the_table() -> None:
    for architecture, _, _ in CASES.values():
        if architecture != "mistral":
            importlib.import_module(f"mlx_lm.models.{architecture}")


PUBLISHED: dict[str, dict[str, Any]] = json.loads((CORPUS / "published_configs.json").read_text(encoding="utf-8"))
"""What models on the Hub say, most of them with fewer layers."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_models_say_is_not_refused(name: str) -> None:
    config_overrides(PUBLISHED[name])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("internlm3-8b", "rope_scaling", None),  # never felt below max_position_embeddings
        ("granite-4.0-h-tiny", "time_step_limit", (0.0, float("inf"))),
        ("Qwen3-30B-A3B", "num_experts", 128),
        ("MiniMax-M2", "rotary_dim", 64),
        ("gemma-2b", "rope_theta", 10000.0),
    ],
)
def test_published_models_are_read_as_they_mean_it(name: str, key: str, value: Any) -> None:
    config = PUBLISHED[name]

    assert {**config, **config_overrides(config)}[key] == value


@pytest.mark.parametrize("words", ["rope_scaling", "rope_parameters"])
def test_yarn_that_is_not_to_be_rounded_is_not(words: str) -> None:
    # gpt-oss: 32 rotations in 4,096 tokens are dimension 8.09 of 64, one is 17.4; mlx-lm takes 8 and 18.
    stated = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
    common = {"model_type": "gpt_oss", **OWN["gpt_oss"], "head_dim": 64, "rope_theta": 150_000.0}
    rope = {**stated, "rope_theta": 150_000.0} if words == "rope_parameters" else stated
    config = {**common, words: rope}
    full = {**config, **config_overrides(config)}
    model = build(full)
    (plain, *_) = [m._freqs for _, m in model.named_modules() if isinstance(m, YarnRoPE)]

    leave_range_unrounded(model, full)

    for _, module in model.named_modules():
        if isinstance(module, YarnRoPE):
            place, pair = (13 - 8.092779) / (17.398025 - 8.092779), 150_000.0 ** (26 / 64)
            assert module._freqs[13].item() == pytest.approx(pair / (1 - place + place / 32), rel=1e-4)
            assert mx.allclose(module._freqs[:8], plain[:8], rtol=1e-5)
            assert mx.allclose(module._freqs[18:], plain[18:], rtol=1e-5)
            assert not mx.allclose(module._freqs[9:18], plain[9:18], rtol=1e-3)


def test_yarn_that_mlx_lm_reckons_otherwise_is_refused_where_it_is_not_to_be_rounded() -> None:
    stated = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    full = {"model_type": "gpt_oss", **OWN["gpt_oss"], "head_dim": 64, "rope_theta": 150_000.0, "rope_scaling": stated}
    said = {**full, "rope_scaling": {**stated, "factor": 4.0, "truncate": False}}

    with pytest.raises(ModelError, match='"truncate": false'):
        leave_range_unrounded(build(full), said)
