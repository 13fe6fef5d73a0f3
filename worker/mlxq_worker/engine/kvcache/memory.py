"""Measures what a model's caches cost, and what this machine has for them.

The numbers for Metal follow MLX's documentation and have not been run there.
"""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost

_SHARE = 0.8
"""Of what is left beside the weights; the rest is for activations, which no cache holds."""
_CPU_SHARE = 0.5
"""Of the machine's memory: a CPU worker is not alone on it."""
BUFFER_CACHE_BYTES = 1 << 30
RELEASE_STEPS = 512
"""Between two releases of what MLX keeps for reuse. It keeps buffers by their sizes, and the sizes of steps vary for
ever: without this a long-lived worker grows up to the limit above. mlx-lm's own generators do the same as often."""


def measure_budget(
    model: Any, limit_bytes: int | None = None, *, in_slabs: bool = False, copies_prefixes: bool = False
) -> KvBudget:
    """The budget for rows of `model`, in slabs or padded, each with its prefix in its own room or not; by default what
    the machine has left beside what is allocated now.

    Also bounds the memory that MLX keeps for reuse, which is otherwise nearly all there is.
    """
    mx.set_cache_limit(BUFFER_CACHE_BYTES)
    if limit_bytes is None:
        limit_bytes = room_for_rows(usable_bytes(), active_bytes())
    return KvBudget(measure_cost(model, in_slabs=in_slabs), limit_bytes, in_slabs, copies_prefixes)


def room_for_rows(limit_bytes: int, used_bytes: int) -> int:
    """What the rows' keys and values may take of a limit for all that the process uses."""
    return max(0, round(_SHARE * (limit_bytes - used_bytes)))


def active_bytes() -> int:
    """What MLX has allocated and uses; without what it keeps for reuse."""
    return mx.get_active_memory()


def usable_bytes() -> int:
    """What a process may take of this machine where nobody says anything else."""
    if mx.metal.is_available():  # not run on Metal
        return int(mx.device_info()["max_recommended_working_set_size"])
    return round(_CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def release_unused() -> None:
    """Give back what MLX keeps for reuse."""
    mx.clear_cache()


def measure_cost(model: Any, *, in_slabs: bool = False) -> KvCost:
    """What one row costs, read off the model's own caches after one token. In slabs a window is a mask, and all tokens
    are kept; a step's new states stand beside those before it."""
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    per_token, windows, fixed = 0, [], 0
    for cache in _flat(caches):
        if isinstance(cache, RotatingKVCache) and not in_slabs:
            windows.append((_bytes_per_token(cache), cache.max_size))
        elif isinstance(cache, KVCache) or hasattr(cache, "keys"):
            per_token += _bytes_per_token(cache)
        else:
            fixed += (2 if in_slabs else 1) * cache.nbytes
    return KvCost(per_token, tuple(windows), fixed)


def _flat(caches: list[Any]) -> list[Any]:
    return [leaf for cache in caches for leaf in (_flat(cache.caches) if isinstance(cache, CacheList) else [cache])]


def _bytes_per_token(cache: Any) -> int:
    """Keys and values are (1, heads, tokens with room to grow, size)."""
    return sum(array.nbytes // array.shape[2] for array in (cache.keys, cache.values))
