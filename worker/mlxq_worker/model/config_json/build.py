"""Reads a config.json as mlx-lm does, and builds what that makes of it, without weights. Imports mlx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.architectures import words_of
from mlxq_worker.model.config_json.rope import PARTIAL
from mlxq_worker.model.config_json.unread import refuse_unread, unread_window
from mlxq_worker.model.config_json.words import in_mlx_lm_words

QUANTISATIONS = frozenset({"bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"})
"""Other tools' ways to pack weights that mlx-lm reads, beside its own."""

_SHARED_WITH_TEXT = ("tie_word_embeddings",)
"""What the whole of a model that holds a language model decides: the text model alone has no head."""


def config_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is laid over config.json for mlx-lm, which doesn't know all of transformers' words. Imports mlx.

    Raises:
        ModelError: it says something that mlx-lm's architecture has no word for, or lacks what that needs.
    """
    words = words_of(config)
    text = config.get("text_config")
    if not words.top:
        raise ModelError(
            f"mlx-lm can't load the {config.get('model_type')} model: it has no architecture of this name, or lacks a"
            " package for it"
        )
    _refuse_weights(config)
    if not isinstance(text, Mapping):
        return _overrides(config, words.architecture, words.top, words.required, "config.json")
    if not words.text:  # the architecture takes the text model's keys for its own
        said = _overrides({**config, **text}, words.architecture, words.top, words.required, "config.json")
        return {**said, "text_config": {**text, **said}}
    said = in_mlx_lm_words(config, words.top, required=words.required - {"text_config"})
    if "vocab_size" in words.top and "vocab_size" not in config and "vocab_size" in text:
        said["vocab_size"] = text["vocab_size"]  # mlx-lm would put its default over the text model's
    inner = {**text, **{key: config[key] for key in _SHARED_WITH_TEXT if key in config}}
    required = words.text_required - {"model_type"}
    more = _overrides(inner, words.text_architecture, words.text, required, "config.json: text_config")
    return {**said, "text_config": {**inner, **more}}


def _overrides(
    part: Mapping[str, Any], architecture: str, words: frozenset[str], required: frozenset[str], where: str
) -> dict[str, Any]:
    known = PARTIAL if not words.isdisjoint({*PARTIAL, "rotary_dim"}) else ()
    activation = _activation_of(part.get("model_type"))
    refuse_unread(part, words, where, architecture=architecture, known=known, activation=activation)
    return in_mlx_lm_words(part, words, where, architecture=architecture, required=required)


def _refuse_weights(config: Mapping[str, Any]) -> None:
    """Weights that are packed in a way which mlx-lm doesn't know would be met as numbers, or as unknown names."""
    if config.get("quantization") is not None:
        return  # mlx-lm's own
    for part in (config, config.get("text_config")):
        stated = part.get("quantization_config") if isinstance(part, Mapping) else None
        method = stated.get("quant_method") if isinstance(stated, Mapping) else None
        if method is not None and method not in QUANTISATIONS:
            raise ModelError(f"config.json: the weights are quantised by {method}, which mlx-lm does not read")


def _activation_of(model_type: object) -> object:
    """What transformers takes for ``hidden_act`` in an architecture, if it has it."""
    from transformers import CONFIG_MAPPING

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    return getattr(CONFIG_MAPPING[model_type], "hidden_act", None)


def window_not_kept(config: Mapping[str, Any]) -> int | None:
    """The sliding window that config.json states, in tokens, where mlx-lm attends to everything instead."""
    words = words_of(config)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return unread_window(text, words.text or words.top)
    return unread_window(config, words.top)


def untagged(value: dict[str, Any]) -> Any:
    """transformers 5 writes numbers that JSON has no word for as ``{"__float__": "Infinity"}``."""
    return float(str(value["__float__"])) if set(value) == {"__float__"} else value


def build(config: Mapping[str, Any]) -> Any:
    """The model of a config in mlx-lm's words, with weights that nobody has read; raises whatever its code does."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(dict(config))
    return model_class(args_class.from_dict(dict(config)))
