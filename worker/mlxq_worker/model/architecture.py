"""What mlx-lm makes of a model's config: whether it has the architecture, and how its rows can be batched.

Builds the model without weights, and computes nothing with it. Imports mlx.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlxq.errors import ModelError
from mlxq_worker.blas import preload_openblas
from mlxq_worker.model.config_json.build import build, config_overrides
from mlxq_worker.model.config_json.rope_check import check_scaling

PADDED: Mapping[str, str] = {
    "plamo3": "its masks have windows one token longer than its caches",
}
"""Why each of those architectures that can't be packed can't. The engine finds out by trying, and knows no list."""
ALONE: Mapping[str, str] = {
    "afm7": "later layers take their queries' positions from how many keys an earlier layer hands them",
    "deepseek_v41": "its layers keep compressed keys and an index, in a cache that mlx-lm can't batch either",
    "gpt_bigcode": "its positions are counted outside MLX, from one offset for all rows",
    "llama4": "its layers attend in chunks, with a cache that mlx-lm can't batch either",
    "longcat_flash_ngram": "its state has another shape until a row has a few tokens",
}
"""Why each of those run one row at a time: in a batch of mlx-lm's own they would get other answers, or none."""

Batching = Literal["packed", "padded", "one at a time"]


@dataclass(frozen=True, slots=True)
class BatchKind:
    """How rows are batched, and why so."""

    kind: Batching
    why: str


def runs_alone(model: Any) -> bool:
    """Whether rows of this `mlx.nn.Module` run one at a time."""
    return _name(model) in ALONE


def batch_kind_of(config: Mapping[str, Any]) -> BatchKind:
    """How rows of a model with this config.json are batched.

    Raises:
        ModelError: mlx-lm doesn't have the architecture, or can't read the config.
    """
    preload_openblas()
    from mlx_lm.models.cache import make_prompt_cache

    try:
        full = {**config, **config_overrides(config)}
        model = build(full)
        check_scaling(model, full, build)
        caches = make_prompt_cache(model)
    except ModelError:
        raise
    except Exception as error:  # a wrong config fails anywhere inside the model's own code
        raise ModelError(f"mlx-lm can't build the {config.get('model_type')} model: {error}") from error
    name = _name(model)
    if name in ALONE:
        return BatchKind("one at a time", ALONE[name])
    if name in PADDED:
        return BatchKind("padded", PADDED[name])
    layers = Counter(_kind(cache) for cache in caches)
    return BatchKind("packed", ", ".join(f"{number} {kind}" for kind, number in layers.items()) + " layers")


def _name(model: Any) -> str:
    return type(model).__module__.rpartition(".")[2]


def _kind(cache: Any) -> str:
    """What a layer keeps, in the words of docs/architectures.md."""
    from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

    if isinstance(cache, CacheList):
        return " + ".join(map(_kind, cache.caches))
    kinds: Mapping[type, str] = {KVCache: "full", RotatingKVCache: "sliding", ArraysCache: "state"}
    return kinds.get(type(cache), type(cache).__name__)
