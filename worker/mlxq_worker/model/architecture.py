"""What mlx-lm makes of a model's config: whether it has the architecture, and how its rows can be batched.

Builds the model without weights, and computes nothing with it. Imports mlx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlxq.errors import ModelError
from mlxq_worker.blas import preload_openblas
from mlxq_worker.model.config_json.build import build, config_overrides
from mlxq_worker.model.config_json.rope_check import check_scaling

Batching = Literal["packed", "padded", "one at a time"]


@dataclass(frozen=True, slots=True)
class BatchKind:
    """How rows are batched, and why so."""

    kind: Batching
    why: str


def batch_kind_of(config: Mapping[str, Any]) -> BatchKind:
    """How rows of a model with this config.json are batched.

    Raises:
        ModelError: mlx-lm doesn't have the architecture, or can't read the config.
    """
    preload_openblas()
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    try:
        full = {**config, **config_overrides(config)}
        model = build(full)
        check_scaling(model, full, build)
        caches = make_prompt_cache(model)
    except ModelError:
        raise
    except Exception as error:  # a wrong config fails anywhere inside the model's own code
        raise ModelError(f"mlx-lm can't build the {config.get('model_type')} model: {error}") from error
    kinds = sorted({type(cache).__name__ for cache in caches if type(cache) is not KVCache})
    if not kinds:
        return BatchKind("packed", "every layer attends to everything; tried out when the engine is built")
    unmergeable = [type(cache).__name__ for cache in caches if not hasattr(type(cache), "merge")]
    if unmergeable:
        return BatchKind("one at a time", f"layers with {unmergeable[0]} can't be batched")
    return BatchKind("padded", f"some layers have a cache of another kind: {', '.join(kinds)}")
