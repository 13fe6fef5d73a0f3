"""Writes `config_words.json`: how transformers 4 and 5 write one config.json, for the architectures that mlx-lm has.

The tiny configs of `tests.support.architectures` are written by transformers 4's config classes (where it has none,
they stand as their authors wrote them), then read by transformers 5's and written again, each as it is and in a few
variants. The file holds what 4 wrote, and everything else as a delta: what is gone, and what is new. A second Python,
with ``transformers>=4.57,<5`` in it, is asked for 4's side:

    python -m tests.corpus.make_config_words --four .four/bin/python
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("config_words.json")

THETA = 1234.0  # no architecture's default, so that one which is not read shows
SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"rope_type": "linear", "type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "type": "dynamic", "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    **{name: {"rope_scaling": scaling} for name, scaling in SCALINGS.items()},
}
SHARED = {"falcon_mamba": "mamba", "mistral": "llama", "qwen2_5_vl": "qwen2_vl", "minimax_m2": "minimax"}
"""Architectures that mlx-lm computes as another, and whose tiny config they share."""
LEFT_OUT = {
    "bailing_hybrid": "transformers means another architecture",
    "minimax": "transformers means another architecture",
    "minimax_m3_vl": "transformers 4 doesn't have it",
    "mistral3": "transformers 4 has no ministral3",
    "muse_glimmer": "transformers knows its nested form alone, mlx-lm's tiny config is flat",
    "pixtral": "transformers means the vision tower",
}
_FIVES_ROPE = {"rope_parameters": {"rope_theta": THETA, "partial_rotary_factor": 0.5, "rope_type": "default"}}
_TYPES = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
CORRECTED: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"num_dense_layers": 1, "mup_enabled": True, "route_scale": 1.5},
    "ernie4_5_moe": {"moe_k": 2},
    "exaone4": {"sliding_window_pattern": "LLLG", "layer_types": _TYPES},
    "gemma4": {"use_double_wide_mlp": False},
    "gemma4_text": {"use_double_wide_mlp": False},
    "qwen3_5": _FIVES_ROPE,
    "qwen3_5_moe": _FIVES_ROPE,
    "gemma2": {"query_pre_attn_scalar": 8},
    "granitemoehybrid": {"mamba_n_heads": 8},
    "kimi_linear": {"num_experts_per_token": 2, "num_shared_experts": 1, "first_k_dense_replace": 1},
    "longcat_flash": {"num_hidden_layers": 4},
    "mimo_v2_flash": {
        "rope_theta": 5e6,
        "partial_rotary_factor": 0.334,
        "sliding_window": 9,
        "attention_value_scale": 0.7,
    },
    "olmo3": {"rope_theta": 5e5},
    "recurrent_gemma": {"rope_theta": 1e4},
    "step3p5": {"moe_router_scaling_factor": 1.5},
}
"""What the tiny configs say otherwise than these classes allow, or than they assume where a file leaves it open."""
DROPPED: Mapping[str, tuple[str, ...]] = {
    "glm4_moe_lite": ("head_dim",),
}
NOISE = frozenset(
    [
        "architectures",
        "transformers_version",
        "vision_config",
        "audio_config",
        "id2label",
        "label2id",
        "attention_dropout",
        "dtype",
        "initializer_range",
        "use_cache",
        "_name_or_path",
        "router_aux_loss_coef",
        "output_router_logits",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "embedding_dropout",
        "residual_dropout",
        "hidden_dropout",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "bos_token_id",
        "pad_token_id",
        "eos_token_id",
    ]
)
"""What no language model reads, or what has tests of its own."""


def asked() -> dict[str, dict[str, Any]]:
    """By name: the tiny config (``own``), and the ``sizes`` that are laid under it as far as somebody reads them."""
    from tests.support.architectures import OWN, SIZES

    from mlxq_worker.model.config_json.architectures import words_of

    found = {}
    for name in sorted({*OWN, *SHARED} - {*LEFT_OUT}):
        own = copy.deepcopy(OWN[SHARED.get(name, name)])
        text = own.get("text_config")
        if text is not None:
            text = own["text_config"] = {key: value for key, value in text.items() if SIZES.get(key) != value}
        (own if text is None else text).update(copy.deepcopy(dict(CORRECTED.get(name, {}))))
        words = words_of({"model_type": name, **own})
        found[name] = {
            "own": {**own, "model_type": name},
            "sizes": {key: value for key, value in {**SIZES, "rope_theta": THETA}.items() if _is_kept(name, key)},
            "words": sorted(words.text if text is not None else words.top),
        }
    return found


def _is_kept(name: str, key: str) -> bool:
    return key not in DROPPED.get(name, ())


def write_in_fours_words(asked_for: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, variant and config.json, by the transformers that is installed here."""
    classes = _config_classes()
    for name, about in asked_for.items():
        config_class = next((classes[each] for each in classes if each == name), None)
        for variant, more in {"": {}, **VARIANTS}.items():
            given = _config(about, more, None if config_class is None else config_class().to_dict())
            if given is None:
                continue
            if config_class is None:
                yield name, variant, given
                continue
            given.pop("model_type")
            try:
                yield name, variant, json.loads(config_class(**given).to_json_string())
            except (TypeError, ValueError, KeyError) as error:  # it does not allow this variant
                print(f"{name} {variant}: {error}", file=sys.stderr)


def _config(about: Mapping[str, Any], more: Mapping[str, Any], default: Mapping[str, Any] | None) -> Any:
    """The tiny config with a variant laid over it; nothing if nobody reads what the variant says."""
    config = copy.deepcopy(about["own"])
    text = config.get("text_config")
    written = about["words"] if default is None else (default if text is None else default.get("text_config") or ())
    if not set(more) <= {*written}:
        return None
    if default is None and "rope_parameters" in written and "rope_scaling" in more:
        return None  # its authors never wrote it so
    part = {**{key: value for key, value in about["sizes"].items() if key in written}, **(text or config)}
    part |= copy.deepcopy(dict(more))
    if text is None:
        return part
    return {**config, "text_config": part, "tie_word_embeddings": more.get("tie_word_embeddings", False)}


def _config_classes() -> Any:
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    return transformers.CONFIG_MAPPING


def in_fives_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as the transformers 5 that is installed here writes it again."""
    given = copy.deepcopy(dict(config))
    config_class = _config_classes()[given.pop("model_type")]
    written: dict[str, Any] = json.loads(config_class.from_dict(given).to_json_string())
    return written


def without_noise(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_noise(value[key]) for key in sorted(value) if key not in NOISE}
    return value


def delta(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be taken from one config and laid over it to make the other."""
    gone = [key for key in old if key not in new]
    laid: dict[str, Any] = {key: new[key] for key in new if key not in old or old[key] != new[key]}
    if isinstance(old.get("text_config"), dict) and isinstance(laid.get("text_config"), dict):
        laid["text_config"] = delta(old["text_config"], laid["text_config"])
    return {"gone": gone, "new": laid}


def apply(old: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The other of the two that `delta` was given."""
    made = {key: value for key, value in old.items() if key not in change["gone"]} | dict(change["new"])
    text = made.get("text_config")
    if isinstance(text, dict) and set(text) == {"gone", "new"}:
        made["text_config"] = apply(old["text_config"], text)
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--four", help="a Python that has transformers 4")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        json.dump(list(write_in_fours_words(json.load(sys.stdin))), sys.stdout)
        return
    answered = subprocess.run(
        [options.four, __file__, "--write"], input=json.dumps(asked()), text=True, stdout=subprocess.PIPE, check=True
    ).stdout
    found: dict[str, Any] = {}
    for name, variant, config in json.loads(answered):
        if name not in _config_classes():
            continue
        try:
            four, five = without_noise(config), without_noise(in_fives_words(config))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            print(f"{name} {variant}, in 5's words: {error}", file=sys.stderr)
            continue
        if not variant:
            found[name] = {"four": four, "five": delta(four, five), "variants": {}}
        elif name in found:
            change = delta(found[name]["four"], four)
            change_of_five = delta(apply(found[name]["four"], found[name]["five"]), five)
            found[name]["variants"][variant] = {"four": change, "five": change_of_five}
    lines = [f"{json.dumps(name)}: {json.dumps(about)}" for name, about in found.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
