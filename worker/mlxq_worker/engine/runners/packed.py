"""Runs a `Plan` on slots: the decoding rows' tokens and the chunks of prompts go through the model in one forward
pass, packed side by side.

For models whose layers all attend to everything (`packs` tries it out); the others take `padded`. Prompts are
prefilled inside the decode step, so rows that join don't make the others wait.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, SlotAllocator, num_steady_steps
from mlxq_worker.engine.kvcache.slots import Slots
from mlxq_worker.engine.plan import Plan, PrefillChunk, PrefixChunk
from mlxq_worker.engine.rows.group import Fork
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.runners.activation import quick_swiglu, route_swiglu
from mlxq_worker.engine.runners.attention import is_fused
from mlxq_worker.engine.runners.layout import Layout, Span
from mlxq_worker.engine.runners.runner import Launched
from mlxq_worker.engine.runners.slot_cache import SlotCache, route_attention
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.sampling.logprobs import score_chunk

log = logging.getLogger(__name__)


class PackedModel:
    """An mlx-lm model over slots: `hidden` runs its layers, `logits` its head, apart, since most of a prompt's tokens
    need no logits. N tokens in a step, E numbers in a hidden state, V ids in the vocabulary.
    """

    def __init__(self, model: Any) -> None:
        route_swiglu(model)
        self._body = model.model
        self._head = copy.copy(model)
        self._head.model = _Passed(model.model)
        self._caches = [SlotCache() for _ in make_prompt_cache(model)]

    @property
    def slots(self) -> list[Slots]:
        """What each layer keeps."""
        return [cache.slots for cache in self._caches]

    def arrange(self, changes: Changes) -> None:
        """Bring every layer's slabs to where the rows of the next steps lie."""
        for slots in self.slots:
            slots.arrange(changes)

    def hidden(self, tokens: mx.array, layout: Layout) -> mx.array:
        """Run tokens (N,) through the layers, writing their keys and values where `layout` says: (N, 1, E)."""
        for cache in self._caches:
            cache.begin_step(layout)
        with quick_swiglu():
            hidden: mx.array = self._body(tokens[:, None], cache=self._caches)
        return hidden

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, 1, E) to (N, V)."""
        logits: mx.array = self._head(hidden)
        return logits[:, -1]


class PackedRunner:
    """A batch in slots.

    Args:
        model: an mlx-lm model that `packs`.
        max_num_seqs: the number of slots.
        max_num_batched_tokens: how many tokens go through the model in one step.
        max_prefix_tokens: how many tokens of shared prefixes are kept.
        new_sampler: makes what picks the tokens of an empty batch.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_prefix_tokens: int,
        new_sampler: Callable[[], BatchSampler],
    ) -> None:
        self._model = model
        self._new_sampler = new_sampler
        self.max_prefix_tokens = max_prefix_tokens
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.clear()

    @property
    def num_slab_tokens(self) -> int:
        """How many tokens its slabs have room for now."""
        return sum(size.area for size in self._sizes.values())

    def clear(self) -> None:
        """Drop the batch and free its memory."""
        self._packed = PackedModel(self._model)
        self._slots = SlotAllocator[Row]()
        self._sizes: Mapping[int, SlabSize] = {}
        self._arranged: tuple[Row, ...] = ()  # who had slots given, and for how many more steps those will do
        self._num_passed = self._num_steady = 0
        self._token_index: dict[Row, int] = {}  # where in `_newest` a row's token is: unlike its slot it stays
        self._indices: tuple[tuple[Row, ...], mx.array] = (), mx.array([], dtype=mx.uint32)
        self._newest = mx.zeros((self.max_num_seqs,), dtype=mx.uint32)  # (max_num_seqs,) newest token, computed or not
        self._sampler = self._new_sampler()
        mx.clear_cache()

    def launch(self, plan: Plan) -> Launched | None:
        """Bring the slots to `plan` and start computing it. Nothing is launched if no row is due a token."""
        self._arrange(plan)
        if plan.forks:
            self._fork(plan.forks)
        if not (plan.rows or plan.prefixes):
            return None
        decoding = sorted(plan.decoding, key=self._slots.__getitem__)
        plan = replace(plan, prefill=tuple(sorted(plan.prefill, key=self._packing_size)))
        layout = Layout(
            [self._span(row, row.decode_position, row.decode_position + 1) for row in decoding],
            [self._span(chunk.row, chunk.start, chunk.stop) for chunk in plan.prefill],
            plan.prefixes,
        )
        hidden = self._packed.hidden(self._tokens(decoding, plan), layout)
        self._score_prompts(plan.prefill, hidden, len(decoding))
        rows, indices = _sampled_rows(decoding, plan)
        if not rows:
            mx.async_eval(hidden[-1, -1, -1])  # one number of it is enough to have all keys and values computed
            return None
        sampled = hidden if len(indices) == hidden.shape[0] else hidden[mx.array(indices)]
        return Launched(rows, self._packed.logits(sampled), self._sampler, partial(self._keep_newest, rows))

    def _span(self, row: Row, start: int, stop: int) -> Span:
        """Positions `start` to `stop` of a row's sequence as columns of its slot."""
        before = row.num_elsewhere
        shared = None if row.copies_prefix else row.prefix
        source = row.prefix if row.copies_prefix and row.prefix and start == len(row.prefix) else None
        return Span(self._slots[row], start - before, stop - before, shared, source)

    def _packing_size(self, chunk: PrefillChunk) -> int:
        return self._span(chunk.row, chunk.start, chunk.stop).packing_size

    def _tokens(self, decoding: Sequence[Row], plan: Plan) -> mx.array:
        """The step's tokens (N,): the decoding rows' newest, then the prompts' chunks, then the prefixes'."""
        chunks: tuple[PrefillChunk | PrefixChunk, ...] = (*plan.prefill, *plan.prefixes)
        prompt_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        newest = self._newest[self._indices_of(tuple(decoding))]
        return mx.concatenate([newest, mx.array(prompt_ids, dtype=mx.uint32)]) if prompt_ids else newest

    def _keep_newest(self, rows: tuple[Row, ...], tokens: mx.array) -> None:
        self._newest[self._indices_of(rows)] = tokens

    def _indices_of(self, rows: tuple[Row, ...]) -> mx.array:
        """Where in `_newest` the rows' tokens are: made anew only when asked for other rows than the last time."""
        if self._indices[0] != rows:
            self._indices = rows, mx.array([self._token_index[row] for row in rows], dtype=mx.uint32)
        return self._indices[1]

    def _score_prompts(self, chunks: Sequence[PrefillChunk], hidden: mx.array, start: int) -> None:
        """Score the prompts of the rows that ask for it, as far as these chunks go; they begin at `start` of `hidden`
        (N, 1, E)."""
        for chunk in chunks:
            if chunk.row.wants_prompt_scores:
                score_chunk(chunk.row, chunk.start, hidden[start : start + len(chunk)], self._packed.logits)
            start += len(chunk)

    def _arrange(self, plan: Plan) -> None:
        """Give the plan's rows their slots. A row whose prefix is still being prefilled has none yet."""
        for prefix in plan.evicted:
            for slots in self._packed.slots:
                slots.evict(prefix)
        rows = (*plan.rows, *plan.resting)
        if rows == self._arranged and self._num_passed < self._num_steady:
            self._num_passed += 1
            return
        self._slots.passed(self._num_passed)
        columns = {row: _num_columns(row) for row in rows}
        self._arranged, self._num_passed, self._num_steady = rows, 0, num_steady_steps(columns.values())
        # Where attention is a single kernel it can't be one for a slab with rows that attend to a prefix elsewhere.
        apart = [row for row in columns if row.num_elsewhere] if is_fused() else []
        changes = self._slots.arrange(columns, apart)
        if changes.moves or changes.wiped or changes.sizes != self._sizes:
            self._packed.arrange(changes)
            self._sizes = changes.sizes
        if self._token_index.keys() == columns.keys():
            return
        self._indices = (), mx.array([], dtype=mx.uint32)
        self._token_index = {row: index for row, index in self._token_index.items() if row in columns}
        free = iter(sorted(set(range(self.max_num_seqs)) - set(self._token_index.values())))
        self._token_index |= {row: next(free) for row in columns if row not in self._token_index}

    def _fork(self, forks: Sequence[Fork]) -> None:
        """Give rows what others have computed, and the tokens to go on with."""
        # Both have as many tokens, so they lie in one slab.
        copied = [(self._slots[fork.source], self._slots[fork.row]) for fork in forks if fork.source is not fork.row]
        for slots in self._packed.slots:
            slots.copy(copied)
        indices = mx.array([self._token_index[fork.row] for fork in forks])
        self._newest[indices] = mx.array([fork.token_id for fork in forks], dtype=mx.uint32)


def _num_columns(row: Row) -> int:
    """How many columns of its slot a row needs for now: its prompt's behind the prefix that it shares, and its tokens'
    up to this step."""
    return max(len(row.spec.prompt_ids), row.decode_position + 1) - row.num_elsewhere


def packs(model: Any) -> bool:
    """Whether `model` computes the same on slots as on mlx-lm's own caches; tried out on a few tokens."""
    if any(type(cache) is not KVCache for cache in make_prompt_cache(model)):
        return False
    if not hasattr(model, "model") or not route_attention(model):
        return False
    ids = mx.arange(1, 7)
    expected = model(ids[None], cache=make_prompt_cache(model))[0]  # (6, V)
    try:
        logits = _try_out(PackedModel(model), ids)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s can't be packed, decoding padded: %r", type(model).__module__, error)
        return False
    difference, scale = mx.abs(logits - expected[mx.array([5, 3])]).max(), mx.abs(expected).max()
    is_same = bool((difference < _TOLERANCE * scale).item())
    if not is_same:
        log.warning("%s computes something else on slots, decoding padded", type(model).__module__)
    return is_same


_TOLERANCE = 0.05
"""Of the largest logit. Rounding in bfloat16 stays well below; attention done wrongly comes out far above."""


def _try_out(packed: PackedModel, ids: mx.array) -> mx.array:
    """The logits (2, V) that follow ids[:6] and ids[:4], each prefilled but for its last id, then decoded."""
    slots = SlotAllocator[int]()
    packed.arrange(slots.arrange({6: 6, 4: 4}))
    packed.hidden(mx.concatenate([ids[:5], ids[:3]]), Layout([], [Span(slots[6], 0, 5), Span(slots[4], 0, 3)]))
    return packed.logits(packed.hidden(ids[mx.array([5, 3])], Layout([Span(slots[6], 5, 6), Span(slots[4], 3, 4)])))


def _sampled_rows(decoding: Sequence[Row], plan: Plan) -> tuple[tuple[Row, ...], list[int]]:
    """The rows that get a token from this step, and the index of each one's last token in it."""
    rows, indices = list(decoding), list(range(len(decoding)))
    end = len(decoding)
    for chunk in plan.prefill:
        end += len(chunk)
        if chunk.is_last:
            rows.append(chunk.row)
            indices.append(end - 1)
    return tuple(rows), indices


class _Passed:
    """Stands in for a model's layers where only its head is to run: returns what it is given, and still shows the
    layers' parts, since a head that is tied to the embedding looks there for its weights."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def __call__(self, inputs: mx.array, *_: Any, **__: Any) -> mx.array:
        return inputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)
