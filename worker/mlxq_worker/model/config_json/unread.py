"""What config.json says that mlx-lm's architecture doesn't read, and that makes it another model: refused by its name,
or noted where it is felt in long sequences only. Pure functions over dicts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.layers import SLIDING

HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "attn_logit_softcapping": (0,),
    "clip_qkv": (0,),
    "final_logit_softcapping": (0,),
    "is_encoder_decoder": (False,),
    "logits_soft_cap": (0,),
    "partial_rotary_factor": (1,),
    "rope_interleave": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_bidirectional_attention": (False, "vision"),
}
"""Keys that only some architectures read, with the values at which the others needn't: those that change nothing for
a model of text, or that all of mlx-lm's go by."""

FIXED: Mapping[tuple[str, str], float] = {
    ("glm", "partial_rotary_factor"): 0.5,
    ("nanochat", "final_logit_softcapping"): 15.0,
    ("recurrent_gemma", "partial_rotary_factor"): 0.5,
    ("recurrent_gemma", "rope_theta"): 10000.0,
}
"""What an architecture of mlx-lm goes by, whatever a config says."""

ACTIVATIONS: Mapping[str, str] = {"silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2"}
"""The families of activations, those of ``gelu`` apart: mlx-lm's architectures know one each."""


WINDOWED_THROUGHOUT = ("mistral",)
"""Architectures whose window is that of all layers, and that mlx-lm computes by one which goes by a list of them."""


def refuse_unread(
    part: Mapping[str, Any],
    words: Collection[str],
    where: str,
    *,
    architecture: str = "",
    known: Collection[str] = (),
    activation: object = None,
) -> None:
    """Refuse what would be left out of a model.

    Args:
        part: config.json, or its ``text_config``; `words` are the keys that mlx-lm reads from it.
        architecture: mlx-lm's name for it.
        known: keys that it goes by under another name.
        activation: what transformers takes for ``hidden_act`` in this architecture, if it has the architecture.

    Raises:
        ModelError: there is such a key.
    """
    fixed = {key: value for (name, key), value in FIXED.items() if name == architecture}
    for key, value in fixed.items():
        stated = _stated(part, key)
        if stated not in (None, value):
            raise ModelError(f"{where}: {key} is {stated}, and mlx-lm goes by {value} for this model")
    for key, harmless in HARMLESS.items():
        stated = part.get(key)
        if key in words or key in known or key in fixed or stated is None or stated in harmless:
            continue
        raise ModelError(f"{where}: {key} is {stated}, which mlx-lm does not read for this model")
    stated = part.get("hidden_act")
    if "hidden_act" in words or not isinstance(stated, str) or not isinstance(activation, str):
        return
    if _family(stated) != _family(activation):
        raise ModelError(f"{where}: hidden_act is {stated}, and mlx-lm computes {activation} for this model")


def _stated(part: Mapping[str, Any], key: str) -> Any:
    rope = part.get("rope_parameters")
    return rope[key] if isinstance(rope, Mapping) and key in rope else part.get(key)


def _family(activation: str) -> str:
    return "gelu" if "gelu" in activation else ACTIVATIONS.get(activation, activation)


def unread_window(part: Mapping[str, Any], words: Collection[str]) -> int | None:
    """The window of layers that attend to everything in mlx-lm: longer sequences get other answers there."""
    window, types = part.get("sliding_window"), part.get("layer_types")
    kept = "sliding_window" in words and not (part.get("model_type") in WINDOWED_THROUGHOUT and types is None)
    if kept or type(window) is not int or part.get("use_sliding_window") is False:
        return None
    if isinstance(types, Sequence) and SLIDING not in types:
        return None
    return window
