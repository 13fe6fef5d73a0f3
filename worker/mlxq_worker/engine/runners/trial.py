"""Tries out whether a model computes on slots what it computes on mlx-lm's own caches, and how.

The measure is mlx-lm's own noise: how far its answers lie apart when it is given the same tokens at once, a few at a
time or one by one. That grows with a model's depth and shrinks with its dtype's precision; what attends wrongly is off
by a good part of the logits' own size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import SlotAllocator
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.layout import Layout, Span
from mlxq_worker.engine.runners.packed_model import PackedModel, Way

log = logging.getLogger(__name__)

NUM_TRIAL_STEPS = 3
_LONG, _SHORT, _SHARED = (1, 2, 3, 4, 5, 6, 7), (3, 4, 5, 6, 7, 8), 3
"""Two prompts, the second of which begins with a prefix of so many tokens."""
_MOST_NOISE = 4.0
"""So many times mlx-lm's own noise is still noise. Wrong attention is beyond it by a factor of ten in a deep bfloat16
model, and by a million in a float32 one."""
_LEAST_NOISE = 1e-5
"""Of the logits' size: what mlx-lm's ways of computing differ by in float32, if they happen to agree on these ids."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a model is to be run: packed, in some `way`, or if that is `None` padded, for these `reasons`."""

    way: Way | None
    reasons: tuple[str, ...] = ()


def packs(model: Any) -> bool:
    """Whether `model` can be packed."""
    return find_packing(model).way is not None


def find_packing(model: Any) -> Packing:
    """Try a model out; the log says why it can't be packed, if it can't."""
    reasons = []
    expected = mx.stack([_logits_of(model, ids, [len(ids)]) for ids in (_LONG, _SHORT)])  # (2, V)
    size = _size(expected)
    noise = max(
        _LEAST_NOISE * size, *(_size(other - expected) for other in (_in_pieces(model, 3), _in_pieces(model, 1)))
    )
    for way in Way:
        try:
            off = _size(_packed_logits(PackedModel(model, way)) - expected)
        except (NotImplementedError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            reasons.append(f"{way}: {error!r}")
            continue
        if off <= _MOST_NOISE * noise:
            return Packing(way)
        reasons.append(f"{way}: computes something else: off by {off:.2g}, where mlx-lm itself is off by {noise:.2g}")
    log.warning("%s can't be packed, decoding padded: %s", type(model).__module__, "; ".join(reasons))
    return Packing(None, tuple(reasons))


def _in_pieces(model: Any, piece: int) -> mx.array:
    """(2, V) as mlx-lm computes them from so many tokens at a time, and the last one by itself."""
    return mx.stack([_logits_of(model, ids, [piece] * ((len(ids) - 1) // piece)) for ids in (_LONG, _SHORT)])


def _logits_of(model: Any, ids: Sequence[int], pieces: Sequence[int]) -> mx.array:
    """(V,) what follows these ids, which are given to mlx-lm in pieces of these lengths, and then one by one."""
    caches, start = make_prompt_cache(model), 0
    for length in (*pieces, *[1] * (len(ids) - sum(pieces))):
        logits: mx.array = model(mx.array([ids[start : start + length]]), cache=caches)
        start += length
    return logits[0, -1]


def _size(logits: mx.array) -> float:
    """The root of the mean square."""
    return float(mx.sqrt(mx.square(logits.astype(mx.float32)).mean()))


def _packed_logits(packed: PackedModel) -> mx.array:
    """(2, V) of the two prompts, side by side: in chunks, behind a prefix, decoding beside a chunk, in another slot
    than their number says."""
    slots, prefix = SlotAllocator[str](), Prefix(_SHORT[:_SHARED])
    before = _SHARED if not packed.copies_prefixes else 0  # of its tokens, not in its slot
    packed.arrange(slots.arrange({"long": len(_LONG)}))
    packed.hidden(
        mx.array([*_LONG[:4], *_SHORT[:_SHARED]]),
        Layout([], [Span(slots["long"], 0, 4, row=1)], [PrefixChunk(prefix, 0, _SHARED)]),
    )
    packed.arrange(slots.arrange({"long": len(_LONG), "short": len(_SHORT) - before}))
    behind = None if packed.copies_prefixes else prefix
    chunks = [
        Span(slots["long"], 4, 6, row=1),
        Span(slots["short"], _SHARED - before, 5 - before, behind, row=0, source=prefix),
    ]
    packed.hidden(mx.array([*_LONG[4:6], *_SHORT[_SHARED:5]]), Layout([], chunks))
    last = [Span(slots["long"], 6, 7, row=1), Span(slots["short"], 5 - before, 6 - before, behind, row=0)]
    return packed.logits(packed.hidden(mx.array([_LONG[6], _SHORT[5]]), Layout(last)))
