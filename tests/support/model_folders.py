"""Folders of tiny random models, as mlx-lm's conversion writes them and as they are published."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import quantize_model, save_config, save_model
from tests.support import architectures
from tests.support.architectures import OWN, SIZES
from tests.support.small_tokenizers import LLAMA_CONFIG, write_model_files

_OF_TOKENIZER = {key: LLAMA_CONFIG[key] for key in ("vocab_size", "eos_token_id")}


@dataclass(frozen=True, slots=True)
class Weights:
    """How weights are stored: as numbers of this type; or packed, so many bits each, in one of MLX's modes or by one of
    mlx-lm's recipes, which gives each layer its own."""

    dtype: mx.Dtype = mx.bfloat16
    bits: int | None = None
    mode: str = "affine"
    recipe: str | None = None

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("mlx.core.")
        packed = self.recipe or ("" if self.bits is None else f"{self.mode} {self.bits}")
        return f"{packed} {dtype}".strip()


def write_folder(folder: Path, architecture: str, weights: Weights, changes: Mapping[str, Any]) -> Path:
    """Write a model of an architecture that holds no other, `changes` laid over its config."""
    changes = {**changes, **_OF_TOKENIZER}
    args = importlib.import_module(f"mlx_lm.models.{architecture}").ModelArgs
    known = {"model_type", "eos_token_id", *(field.name for field in fields(args))}
    said = {"model_type": architecture, **SIZES, **OWN[architecture], **changes}
    config = {key: value for key, value in said.items() if key in known}
    model = architectures.build(architecture, **changes)
    model.set_dtype(weights.dtype)
    if weights.bits is not None or weights.recipe is not None:
        recipe = mixed_quant_predicate_builder(weights.recipe, model, 32) if weights.recipe else None
        group_size = 32 if weights.mode == "affine" else None
        model, config = quantize_model(
            model, config, group_size, weights.bits, mode=weights.mode, quant_predicate=recipe
        )
    write_model_files(folder)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder
