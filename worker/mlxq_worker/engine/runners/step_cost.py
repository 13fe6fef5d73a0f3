"""Measures what a step's activations take, beside all that is kept of rows: read off the shapes that a model's modules
give for a few tokens. Nothing is computed, so the weights may still be on the disk.

MLX frees an array once it has been used, but runs ahead of what is computed by about as many operations as a layer has.
So what counts is the layer that takes the most: what its modules give, half as much again for what lies between them,
and what grows faster than by the token: scores, keys that are expanded for each head, scans of states.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList, make_prompt_cache

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.budget import StepCost
from mlxq_worker.engine.runners.body import wrapped

_NUM_TOKENS = 64
_BETWEEN = 1.5
"""What a layer's modules give, and what is made of that before the next one: activations, rotations, sums."""
_SCORES = 2
"""Arrays of a score for each head, token and key that are there at once."""
_SQUARES, _SIDES = 5, 12
"""What an SSM's scan has there at once, as was measured: arrays of a number for each head and pair of tokens, and such
for each head, token and row or column of a state."""
_SCAN_TOKENS = 256
"""It takes so many tokens at a time."""
_STATES = 32
"""Of a row: so many are there at once where a CPU goes on from token to token."""
_FULL = 4
"""Bytes of a number in float32, in which scores and states are computed."""
_HEADS = ("n_heads", "num_heads", "num_attention_heads", "n_head")


def measure_step(model: Any) -> StepCost:
    """What one step of `model` takes; nothing, where nobody can look into it."""
    layers = _layers(model) if isinstance(model, nn.Module) else ()
    if not layers:
        return StepCost()
    caches = make_prompt_cache(model)
    first, second = (_run(model, layers, caches) for _ in range(2))
    grown = {layer: second.by_layer[layer] - first.by_layer[layer] for layer in second.by_layer}
    fresh = (first.by_layer[layer] - max(0, grown[layer]) for layer in grown)
    states = list(_state_shapes(caches))
    has_scan = any(hasattr(sys.modules[type(module).__module__], "ssm_update") for module in model.modules())
    num_heads = max((shape[0] for shape in states), default=0) if has_scan else 0
    sides = max((shape[0] * sum(shape[1:]) for shape in states), default=0) if has_scan else 0
    return StepCost(
        bytes_once=0 if device.is_gpu() else _STATES * _FULL * max(map(math.prod, states), default=0),
        bytes_per_token=round(_BETWEEN * max(fresh, default=0) / _NUM_TOKENS) + _SIDES * _FULL * sides,
        bytes_per_context_token=max(0, *grown.values()) // _NUM_TOKENS,
        bytes_per_pair=0 if second.is_fused else _SCORES * _FULL * second.num_heads,
        bytes_per_near_pair=_SQUARES * _FULL * num_heads,
        near_tokens=_SCAN_TOKENS,
    )


@dataclass
class _Given:
    """What the modules of each layer gave, in bytes; how many heads score keys in the layer that has the most of them;
    and whether all of that is done by a kernel that keeps no scores."""

    by_layer: Counter[int] = field(default_factory=Counter)
    num_heads: int = 0
    is_fused: bool = True


def _run(model: nn.Module, layers: Sequence[nn.Module], caches: list[Any]) -> _Given:
    """Give some tokens to the model, behind those that its caches have."""
    seen = _Given(is_fused=device.is_gpu())
    layer_of = {id(module): index for index, layer in enumerate(layers) for module in layer.modules()}
    whole = set(map(id, layers))
    attending: dict[int, tuple[int, int]] = {}  # modules that are handed keys: their layers and heads

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            layer = layer_of.get(id(self))
            if layer is None:
                return result
            if not self.children() and isinstance(result, mx.array):
                seen.by_layer[layer] += result.nbytes
            heads = [num for name in _HEADS if isinstance(num := getattr(self, name, None), int)]
            if heads and id(self) not in whole and any(map(_has_keys, (*args, *kwargs.values()))):
                attending[id(self)] = layer, max(heads)
            return result

        return call

    with wrapped(model.modules(), watched), _kernels_watched() as num_fused:
        model(mx.zeros((1, _NUM_TOKENS), mx.uint32), cache=caches)
    heads_of = Counter[int]()
    for layer, num_heads in attending.values():  # what chooses keys scores them, too
        heads_of[layer] += num_heads
    seen.num_heads = max(heads_of.values(), default=0)
    seen.is_fused &= num_fused[0] >= len(attending)
    return seen


@contextmanager
def _kernels_watched() -> Iterator[list[int]]:
    """While this is open it is counted how often a kernel attends that is handed no scores as its mask."""
    original, num_fused = mx.fast.scaled_dot_product_attention, [0]

    def watched(queries: mx.array, *args: Any, mask: Any = None, **options: Any) -> mx.array:
        has_scores = isinstance(mask, mx.array) and mask.ndim == 4 and mask.shape[1] == queries.shape[1] > 1
        num_fused[0] += not has_scores
        return original(queries, *args, mask=mask, **options)

    mx.fast.scaled_dot_product_attention = watched  # type: ignore[assignment]
    try:
        yield num_fused
    finally:
        mx.fast.scaled_dot_product_attention = original


def _state_shapes(caches: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """Heads, and rows and columns for each of them, of every layer's state that has those."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _state_shapes(cache.caches)
        elif isinstance(cache, ArraysCache):
            yield from (array.shape[1:] for array in cache.cache if array is not None and array.ndim == 4)


def _layers(model: nn.Module) -> Sequence[nn.Module]:
    """The longest list of modules that a module of the model holds."""
    lists = (value for module in model.modules() for value in dict(module).values() if isinstance(value, list))
    return max((each for each in lists if all(isinstance(part, nn.Module) for part in each)), key=len, default=())


def _has_keys(argument: Any) -> bool:
    """Whether this is a layer's cache that keeps keys."""
    if isinstance(argument, CacheList):
        return any(map(_has_keys, argument.caches))
    return hasattr(argument, "update_and_fetch")
