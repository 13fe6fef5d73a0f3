"""Reads a config.json as mlx-lm does, and builds what that makes of it, without weights. Imports mlx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxq_worker.model.config_json.architectures import words_of
from mlxq_worker.model.config_json.words import in_mlx_lm_words

_SHARED_WITH_TEXT = ("tie_word_embeddings",)
"""What the whole of a model that holds a language model decides: the text model alone has no head."""


def config_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is laid over config.json for mlx-lm, which doesn't know all of transformers' words. Imports mlx.

    Raises:
        ModelError: it says something that mlx-lm's architecture has no word for, or lacks what that needs.
    """
    words = words_of(config)
    text = config.get("text_config")
    if not words.text or not isinstance(text, Mapping):
        return in_mlx_lm_words(config, words.top, architecture=words.architecture, required=words.required)
    said = in_mlx_lm_words(
        config, words.top, architecture=words.architecture, required=words.required - {"text_config"}
    )
    if "vocab_size" in words.top and "vocab_size" not in config and "vocab_size" in text:
        said["vocab_size"] = text["vocab_size"]  # mlx-lm would put its default over the text model's
    shared = {key: config[key] for key in _SHARED_WITH_TEXT if key in config}
    more = in_mlx_lm_words(
        {**text, **shared},
        words.text,
        "config.json: text_config",
        architecture=words.text_architecture,
        required=words.text_required - {"model_type"},
    )
    return {**said, "text_config": {**text, **shared, **more}}


def untagged(value: dict[str, Any]) -> Any:
    """transformers 5 writes numbers that JSON has no word for as ``{"__float__": "Infinity"}``."""
    return float(str(value["__float__"])) if set(value) == {"__float__"} else value


def build(config: Mapping[str, Any]) -> Any:
    """The model of a config in mlx-lm's words, with weights that nobody has read; raises whatever its code does."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(dict(config))
    return model_class(args_class.from_dict(dict(config)))
