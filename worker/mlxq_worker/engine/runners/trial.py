"""Tries out whether a model computes on slots what it computes on mlx-lm's own caches, and how; and if it does not,
whether it does so in a batch of those.

The measure is mlx-lm's own noise: how far its answers lie apart when it is given the same tokens at once or a few at a
time, and when every module's result is rounded otherwise (`body.rounded_otherwise`). That grows with a model's depth
and shrinks with its dtype's precision; what attends wrongly is off by a good part of the logits' own size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import SlotAllocator
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.body import rounded_otherwise
from mlxq_worker.engine.runners.packed_model import PackedModel, Way
from mlxq_worker.engine.runners.padded import can_batch, prefilled
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span

log = logging.getLogger(__name__)

NUM_TRIAL_STEPS = 3
_PROMPTS = tuple(tuple(range(first, first + length)) for first, length in ((1, 7), (9, 6), (2, 3), (5, 4), (9, 5)))
"""Five of them: no model has as many heads in each layer, so that arrays that don't fit don't fit by chance."""
_BEGUN, _SHARED = 4, 3
"""So many tokens of the first prompt are a chunk; so many are the prefix of the second and the last one."""
_MOST_NOISE = 4.0
"""So many times mlx-lm's own noise is still noise. Wrong attention is beyond it by a factor of ten in a deep bfloat16
model, and by a million in a float32 one."""
_SHORT = ((4,), (6, 3))
"""Prompts that join the others in a padded batch: one that has nothing to prefill, and one that has a token."""
_SPARSE: Mapping[str, int] = {"index_topk": 2, "index_topk_blocks": 2, "index_block_size": 2}
"""Attributes of modules by which attention takes no notice of most keys, once there are thousands; and what they are in
a trial, so that there are enough."""
_LEAST_NOISE = 1e-6
"""Of the logits' size: what float32 leaves of any model."""


_MISFITS = (NotImplementedError, TypeError, ValueError, AttributeError, IndexError, KeyError)
"""What a model raises on caches that are not as it wants them."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a model is to be run: packed, in some `way`, or if that is `None` padded, or one row at a time unless it
    `pads`, for these `reasons`."""

    way: Way | None
    reasons: tuple[str, ...] = ()
    pads: bool = True


def packs(model: Any) -> bool:
    """Whether `model` can be packed."""
    return find_packing(model).way is not None


def find_packing(model: Any) -> Packing:
    """Try a model out; the log says why it can't be packed, if it can't."""
    if isinstance(model, nn.Module):
        with _sparse_early(model):
            packing = _tried(model)
    else:
        packing = Packing(None, ("it is no module of MLX, so nobody can look into it",), can_batch(model))
    if packing.way is None:
        how = "padded" if packing.pads else "one row at a time, as it can't be padded either"
        log.warning("%s can't be packed, decoding %s: %s", type(model).__module__, how, "; ".join(packing.reasons))
    return packing


def _tried(model: nn.Module) -> Packing:
    reasons = []
    expected = _in_pieces(model, None)  # (5, V)
    noise = _Noise(model, expected)
    for way in Way:
        with ExitStack() as failed:
            try:
                packed = PackedModel(model, way)
                failed.callback(packed.let_go)
                off = _size(_packed_logits(packed) - expected)
            except _MISFITS as error:
                reasons.append(f"{way}: {error!r}")
                continue
            if noise.explains(off):
                failed.pop_all()
                return Packing(way)
        reasons.append(
            f"{way}: computes something else: off by {off:.2g}, where mlx-lm itself is off by {noise.measured:.2g}"
        )
    return Packing(None, tuple(reasons), _pads(model, expected, noise))


def _pads(model: nn.Module, of_prompts: mx.array, noise: _Noise) -> bool:
    """Whether rows get in a batch of mlx-lm's own caches what they get alone: (5, V) `of_prompts` are given."""
    if not can_batch(model):
        return False
    expected = mx.concatenate([of_prompts, mx.stack([_logits_of(model, ids, [len(ids)]) for ids in _SHORT])])
    try:
        return noise.explains(_size(_padded_logits(model, _PROMPTS, _SHORT) - expected))
    except _MISFITS:
        return False


@contextmanager
def _sparse_early(model: nn.Module) -> Iterator[None]:
    """Inside the block attention that is sparse in long rows is so in those of a trial."""
    before = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in _SPARSE
        if isinstance(getattr(module, name, None), int)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, _SPARSE[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class _Noise:
    """How far mlx-lm's own answers lie apart. Measured only where what is left of any model doesn't explain enough,
    since that takes twice as long as all else of a trial."""

    def __init__(self, model: Any, expected: mx.array) -> None:
        self._model = model
        self._expected = expected
        self._least = _LEAST_NOISE * _size(expected)

    def explains(self, off: float) -> bool:
        """Whether that far off is noise still."""
        return off <= _MOST_NOISE * self._least or off <= _MOST_NOISE * self.measured

    @cached_property
    def measured(self) -> float:
        with rounded_otherwise(self._model):
            rounded = _in_pieces(self._model, None)
        return max(self._least, _size(rounded - self._expected), _size(_in_pieces(self._model, 3) - self._expected))


def _in_pieces(model: Any, piece: int | None) -> mx.array:
    """(5, V) as mlx-lm computes them from so many tokens at a time, and the last ones one by one; `None`: at once."""
    return mx.stack(
        [_logits_of(model, ids, [piece or len(ids)] * (len(ids) // (piece or len(ids)))) for ids in _PROMPTS]
    )


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
    """(5, V) of the prompts, side by side: in chunks, behind a prefix, decoding beside a chunk, in other slots than
    their numbers say."""
    slots, prefix = SlotAllocator[int](), Prefix(_PROMPTS[1][:_SHARED])
    lengths = [len(ids) for ids in _PROMPTS]
    shares = [ids[:_SHARED] == prefix.token_ids for ids in _PROMPTS]
    before = 0 if packed.copies_prefixes else _SHARED  # of a prefix's tokens, not in a row's slot

    def span(row: int, start: int, stop: int) -> Span:
        slot, number = slots[row], len(_PROMPTS) - 1 - row
        if not shares[row]:
            return Span(slot, start, stop, row=number)
        behind, source = None if packed.copies_prefixes else prefix, prefix if start == _SHARED else None
        return Span(slot, start - before, stop - before, behind, number, source)

    packed.arrange(slots.arrange({0: lengths[0]}))
    packed.hidden(
        mx.array([*_PROMPTS[0][:_BEGUN], *prefix.token_ids]),
        Layout([], [span(0, 0, _BEGUN)], [PrefixChunk(prefix, 0, _SHARED)]),
    )
    packed.arrange(slots.arrange({row: length - before * shares[row] for row, length in enumerate(lengths)}))
    starts = [_BEGUN, *(_SHARED if shared else 0 for shared in shares[1:])]
    chunks = [span(row, start, length - 1) for row, (start, length) in enumerate(zip(starts, lengths, strict=True))]
    ids = [token_id for row, ids in enumerate(_PROMPTS) for token_id in ids[starts[row] : -1]]
    packed.hidden(mx.array(ids), Layout([], chunks))
    last = Layout([span(row, length - 1, length) for row, length in enumerate(lengths)])
    return packed.logits(packed.hidden(mx.array([ids[-1] for ids in _PROMPTS]), last))


def _padded_logits(model: nn.Module, first: Sequence[Sequence[int]], later: Sequence[Sequence[int]]) -> mx.array:
    """(B, V) of prompts of two tokens or more, padded, and of others, each of which joins them when they have decoded
    one."""
    caches = prefilled(model, [ids[:-2] for ids in first], batches=True, chunk=max(map(len, first)))
    model(mx.array([ids[-2:-1] for ids in first]), cache=caches)
    for ids in later:
        for cache, other in zip(caches, prefilled(model, [ids[:-1]], batches=True, chunk=1), strict=True):
            cache.extend(other)
    logits: mx.array = model(mx.array([ids[-1:] for ids in (*first, *later)]), cache=caches)
    return logits[:, -1]
