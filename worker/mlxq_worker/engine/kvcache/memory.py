"""Measures what a model's caches cost, and says what of this machine's memory is for them.

The numbers for Metal follow MLX's documentation and have not been run there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlxq_worker.engine.kvcache.budget import KvCost
from mlxq_worker.engine.kvcache.device import Device
from mlxq_worker.engine.kvcache.gpu_costs import InFlightCopies

_SHARE = 0.8
"""Of what is left beside the weights; the rest is for what the reckoning misses, a fifth at most in the tests of it."""
_CPU_SHARE = 0.5
"""Of the machine's memory: a CPU worker is not alone on it."""
_METAL_SHARE = 0.9
"""Of what Metal recommends: macOS and its programs want some of that, too."""
CACHE_SHARE = 16
MAX_CACHE_BYTES = 2 << 30
"""What MLX keeps for reuse, at most: one part of so many of the limit, since all of it counts as the process's, and not
more than what buffers of a step come and go in."""
RELEASE_STEPS = 512
"""Between two releases of what MLX keeps for reuse. It keeps buffers by their sizes, and the sizes of steps vary for
ever: without this a long-lived worker grows up to the limit above. mlx-lm's own generators do the same as often."""


def room_for_rows(limit_bytes: int, used_bytes: int) -> int:
    """What the rows' keys and values may take of a limit for all that the process uses."""
    return max(0, round(_SHARE * (limit_bytes - used_bytes)))


def usable_bytes(device: Device, machine_bytes: int) -> int:
    """What a process may take of a machine with so much memory where nobody says anything else."""
    if (recommended := device.recommended_bytes) is not None:
        return round(_METAL_SHARE * recommended)
    return round(_CPU_SHARE * machine_bytes)


@contextmanager
def mlx_limited(limit_bytes: int, device: Device) -> Iterator[None]:
    """Hold MLX for the block to what the process may take, which is otherwise more than the machine has: near the limit
    it gives back what it keeps for reuse, of which there is never more than a share."""
    before_bytes = device.set_memory_limit(limit_bytes)
    cached_bytes = device.set_cache_limit(min(limit_bytes // CACHE_SHARE, MAX_CACHE_BYTES))
    try:
        yield
    finally:
        device.set_cache_limit(cached_bytes)
        device.set_memory_limit(before_bytes)


def measure_cost(model: Any, *, in_slabs: bool = False) -> KvCost:
    """What one row costs, read off the shapes of the model's own caches after one token; nothing is computed, so the
    weights may still be on the disk. In slabs a window is a mask, and all tokens are kept; a step's new states stand
    beside those before it, and a layer's slabs beside what they grow from."""
    caches = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    per_token, largest, windows, fixed = 0, 0, [], 0
    for cache in _flat(caches):
        if isinstance(cache, RotatingKVCache) and not in_slabs:
            windows.append((_bytes_per_token(cache), cache.max_size))
        elif isinstance(cache, KVCache) or hasattr(cache, "keys"):
            per_token += _bytes_per_token(cache)
            largest = max(largest, _bytes_per_token(cache))
        else:
            fixed += (2 if in_slabs else 1) * cache.nbytes
    return KvCost(per_token, tuple(windows), fixed, largest if in_slabs else 0)


def weights_bytes(model: Any) -> int:
    """What a model's weights take once they are read, by their shapes: less than its files where it leaves out what is
    for images, and more where mlx-lm unpacks them."""
    return sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))


def in_flight_copies(model: Any) -> InFlightCopies:
    """What steps of this model copy where one starts while another is being computed."""
    num_bytes = weights_bytes(model) if hasattr(model, "parameters") else 0
    return InFlightCopies(num_bytes, max(1, len(make_prompt_cache(model))))


def _flat(caches: list[Any]) -> list[Any]:
    return [leaf for cache in caches for leaf in (_flat(cache.caches) if isinstance(cache, CacheList) else [cache])]


def _bytes_per_token(cache: Any) -> int:
    """Keys and values are (1, heads, tokens with room to grow, size)."""
    return sum(array.nbytes // array.shape[2] for array in (cache.keys, cache.values))
