"""A config.json as transformers 4 writes it and the same as 5 does, with the same weights: the same model, or both are
refused, for every architecture that mlx-lm and transformers have (`tests/corpus/make_config_words.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from tests.corpus.make_config_words import LEFT_OUT, OUT, SCALINGS, SHARED, apply
from tests.support.architectures import OWN
from tokenizers import Tokenizer, models

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.build import build, config_overrides, untagged
from mlxq_worker.model.config_json.rope_check import check_scaling
from mlxq_worker.model.load import load_model

WRITTEN: Mapping[str, Any] = json.loads(OUT.read_text(encoding="utf-8"))
GPU_ONLY = {"bitnet"}
"""Its kernels need a GPU by Apple."""
ARCHITECTURES = [name for name in WRITTEN if name not in GPU_ONLY]
PROMPT = mx.array([[(7 * place) % 61 for place in range(40)]])


def both(name: str, variant: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers 4 writes, and 5."""
    about = WRITTEN[name]
    four, five = about["four"], apply(about["four"], about["five"])
    if not variant:
        return four, five
    changes = about["variants"][variant]
    return apply(four, changes["four"]), apply(five, changes["five"])


def model_of(written: dict[str, Any]) -> Any:
    config = json.loads(json.dumps(written), object_hook=untagged)
    full = {**config, **config_overrides(config)}
    model = build(full)
    check_scaling(model, full, build)
    return model


def random_weights(model: Any) -> dict[str, mx.array]:
    mx.random.seed(0)
    weights = dict(tree_flatten(model.parameters()))
    return {name: 0.3 * mx.random.normal(w.shape) if w.dtype == mx.float32 else w for name, w in weights.items()}


def logits(model: Any, weights: dict[str, mx.array]) -> mx.array:
    model.update(tree_unflatten(list(weights.items())))
    computed: mx.array = model(PROMPT)
    return computed


def write_folder(path: Path, config: Mapping[str, Any], weights: dict[str, mx.array]) -> str:
    path.mkdir()
    Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="a")).save(str(path / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (path / "tokenizer_config.json").write_text(json.dumps(described))
    (path / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    return str(path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_folders_with_the_same_weights_are_the_same_model_in_either_words(name: str, tmp_path: Path) -> None:
    four, five = both(name)
    weights = random_weights(model_of(four))
    folders = [write_folder(tmp_path / "4", four, weights), write_folder(tmp_path / "5", five, weights)]

    computed = [load_model(folder).model(PROMPT) for folder in folders]

    assert not mx.any(mx.isnan(computed[0]))
    assert mx.array_equal(computed[0], computed[1])


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "tied" in WRITTEN[name]["variants"]])
def test_tied_embeddings_are_tied_in_either_words(name: str) -> None:
    four, five = (model_of(config) for config in both(name, "tied"))

    shapes = [{key: w.shape for key, w in tree_flatten(model.parameters())} for model in (four, five)]

    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "scaling"),
    [(name, scaling) for name in ARCHITECTURES for scaling in SCALINGS if scaling in WRITTEN[name]["variants"]],
)
def test_stretched_positions_are_stretched_in_either_words_or_refused_in_both(name: str, scaling: str) -> None:
    four, five = both(name, scaling)
    try:
        model = model_of(four)
    except (ModelError, ValueError, AttributeError) as refusal:
        with pytest.raises(type(refusal)):
            model_of(five)
        return
    weights = random_weights(model)

    assert mx.array_equal(logits(model, weights), logits(model_of(five), weights))


def test_the_table_has_every_architecture_that_both_have() -> None:
    from transformers import CONFIG_MAPPING

    known = {name for name in (*OWN, *SHARED) if name in CONFIG_MAPPING}

    assert known - {*LEFT_OUT} == {*WRITTEN}
