"""Runs a `Plan` on slots: the decoding rows' tokens and the chunks of prompts go through the model in one forward
pass, packed side by side.

For every model that computes on slots what it computes on mlx-lm's caches (`trial` tries it out); the others take
`padded`. Prompts are prefilled inside the decode step, so rows that join don't make the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx

from mlxq_worker.engine.kvcache.row_numbers import RowNumbers
from mlxq_worker.engine.kvcache.slot_allocator import SlabSize, SlotAllocator, area, largest_sizes, num_steady_steps
from mlxq_worker.engine.plan import Plan, PrefillChunk, PrefixChunk
from mlxq_worker.engine.rows.group import Fork
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.runners.attention import is_fused
from mlxq_worker.engine.runners.on_cpu.weights import lay_out_weights
from mlxq_worker.engine.runners.packed_model import PackedModel, Way
from mlxq_worker.engine.runners.runner import Launched
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.sampling.logprobs import score_chunk

_EVAL_INTERVAL = 64
"""Steps between two evaluations of what no token may depend on: its graph would otherwise grow without end."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A plan with its `decoding` rows by their slots and its prompts by how they are packed, and where their tokens
    go."""

    plan: Plan
    decoding: tuple[Row, ...]
    layout: Layout


class PackedRunner:
    """A batch in slots, whose slabs have room for `num_slab_tokens` now.

    Args:
        model: an mlx-lm model that can be packed.
        way: how it attends.
        max_num_seqs: the number of slots.
        max_prefix_tokens: how many tokens of shared prefixes are kept.
        new_sampler: makes what picks the tokens of an empty batch.
    """

    def __init__(
        self,
        model: Any,
        way: Way,
        *,
        max_num_seqs: int,
        max_prefix_tokens: int,
        new_sampler: Callable[[], BatchSampler],
    ) -> None:
        self._model, self._way = model, way
        self._new_sampler = new_sampler
        self.max_prefix_tokens = max_prefix_tokens
        self.max_num_seqs = max_num_seqs
        lay_out_weights(model)
        self.clear()

    def clear(self) -> None:
        """Drop the batch and free its memory."""
        self._packed = PackedModel(self._model, self._way)
        self._slots = SlotAllocator[Row]()
        self._sizes: Mapping[int, SlabSize] = {}
        self.num_slab_tokens = 0
        self._arranged: tuple[Row, ...] = ()  # who had slots given, and for how many more steps those will do
        self._num_passed = self._num_steady = 0
        self._numbers = RowNumbers[Row]()
        self._last: _Step | None = None
        self._indices: tuple[tuple[Row, ...], mx.array] = (), mx.array([], dtype=mx.uint32)
        self._newest = mx.zeros((self.max_num_seqs,), dtype=mx.uint32)  # (max_num_seqs,) newest token, computed or not
        self._sampler = self._new_sampler()
        self._num_steps = 0
        mx.clear_cache()

    def launch(self, plan: Plan) -> Launched | None:
        """Bring the slots to `plan` and start computing it. Nothing is launched if no row is due a token."""
        is_steady = self._arrange(plan)
        if plan.forks:
            self._fork(plan.forks)
        if not (plan.rows or plan.prefixes):
            return None
        step = self._last = self._next_step(plan) if is_steady else self._new_step(plan)
        decoding, plan, layout = step.decoding, step.plan, step.layout
        hidden = self._packed.hidden(self._tokens(decoding, plan), layout)
        self._num_steps += 1
        if self._num_steps % _EVAL_INTERVAL == 0:
            mx.async_eval(hidden, self._packed.arrays)
        self._score_prompts(plan.prefill, hidden, len(decoding))
        rows, sampled = _sampled(decoding, plan, hidden)
        if not rows:
            # One number of it is enough to have all keys and values computed.
            mx.async_eval(hidden[-1, -1, -1], self._packed.arrays)
            return None
        return Launched(rows, self._packed.logits(sampled), self._sampler, partial(self._keep_newest, rows))

    def _next_step(self, plan: Plan) -> _Step:
        """A step whose rows lie where they did on the last one: as a rule that one again, a token further."""
        last = self._last
        if last is None or not (plan.is_decoding_alone and last.plan.is_decoding_alone and plan.goes_on(last.plan)):
            return self._new_step(plan)
        return _Step(plan, last.decoding, last.layout.next())

    def _new_step(self, plan: Plan) -> _Step:
        decoding = tuple(sorted(plan.decoding, key=self._slots.__getitem__))
        plan = replace(plan, prefill=tuple(sorted(plan.prefill, key=self._packing_size)))
        in_step = set(plan.rows)
        layout = Layout(
            [self._span(row, row.decode_position, row.decode_position + 1) for row in decoding],
            [self._span(chunk.row, chunk.start, chunk.stop) for chunk in plan.prefill],
            plan.prefixes,
            [number for row, number in self._numbers.of_rows.items() if row not in in_step],
        )
        return _Step(plan, decoding, layout)

    def _span(self, row: Row, start: int, stop: int) -> Span:
        """Positions `start` to `stop` of a row's sequence as columns of its slot."""
        before = self._num_before(row)
        source = row.prefix if row.prefix and start == len(row.prefix) else None
        return Span(
            self._slots[row], start - before, stop - before, row.prefix if before else None, self._numbers[row], source
        )

    def _num_before(self, row: Row) -> int:
        """How many of a row's tokens are not in its slot."""
        return 0 if self._packed.copies_prefixes else row.num_elsewhere

    def _packing_size(self, chunk: PrefillChunk) -> int:
        return self._span(chunk.row, chunk.start, chunk.stop).packing_size

    def _tokens(self, decoding: tuple[Row, ...], plan: Plan) -> mx.array:
        """The step's tokens (N,): the decoding rows' newest, then the prompts' chunks, then the prefixes'."""
        chunks: tuple[PrefillChunk | PrefixChunk, ...] = (*plan.prefill, *plan.prefixes)
        prompt_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        newest = self._newest[self._indices_of(decoding)]
        return mx.concatenate([newest, mx.array(prompt_ids, dtype=mx.uint32)]) if prompt_ids else newest

    def _keep_newest(self, rows: tuple[Row, ...], tokens: mx.array) -> None:
        self._newest[self._indices_of(rows)] = tokens

    def _indices_of(self, rows: tuple[Row, ...]) -> mx.array:
        """Where in `_newest` the rows' tokens are: made anew only when asked for other rows than the last time."""
        if self._indices[0] != rows:
            self._indices = rows, mx.array([self._numbers[row] for row in rows], dtype=mx.uint32)
        return self._indices[1]

    def _score_prompts(self, chunks: Sequence[PrefillChunk], hidden: mx.array, start: int) -> None:
        """Score the prompts of the rows that ask for it, as far as these chunks go; they begin at `start` of `hidden`
        (N, 1, E)."""
        for chunk in chunks:
            if chunk.row.wants_prompt_scores:
                score_chunk(chunk.row, chunk.start, hidden[start : start + len(chunk)], self._packed.logits)
            start += len(chunk)

    def _arrange(self, plan: Plan) -> bool:
        """Give the plan's rows their slots. A row whose prefix is still being prefilled has none yet.

        Returns:
            Whether they are the rows of the step before, where they were.
        """
        for prefix in plan.evicted:
            self._packed.evict(prefix)
        rows = (*plan.rows, *plan.resting)
        if rows == self._arranged and self._num_passed < self._num_steady and not plan.prefixes:
            self._num_passed += 1
            return True
        self._slots.passed(self._num_passed)
        columns = {row: _num_columns(row) - self._num_before(row) for row in rows}
        self._arranged, self._num_passed, self._num_steady = rows, 0, num_steady_steps(columns.values())
        # Where attention is a single kernel it can't be one for a slab with rows that attend to a prefix elsewhere.
        apart = [row for row in columns if self._num_before(row)] if is_fused() else []
        room = area(largest_sizes(row.spec.num_tokens - self._num_before(row) for row in rows))
        changes = self._slots.arrange(columns, apart, room, makes_room=bool(plan.prefixes))
        if changes.moves or changes.wiped or changes.sizes != self._sizes:
            self._packed.arrange(changes)
            self._sizes, self.num_slab_tokens = changes.sizes, area(changes.sizes)
        if self._numbers.of_rows.keys() != columns.keys():
            self._indices = (), mx.array([], dtype=mx.uint32)
            if moves := self._numbers.arrange(columns.keys()):
                self._packed.copy((), moves)
                before, after = (mx.array(numbers, dtype=mx.uint32) for numbers in zip(*moves, strict=True))
                self._newest[after] = self._newest[before]
        return False

    def _fork(self, forks: Sequence[Fork]) -> None:
        """Give rows what others have computed, and the tokens to go on with."""
        # Both have as many tokens, so they lie in one slab.
        copied = [(fork.source, fork.row) for fork in forks if fork.source is not fork.row]
        if copied:
            self._packed.copy(
                [(self._slots[source], self._slots[row]) for source, row in copied],
                [(self._numbers[source], self._numbers[row]) for source, row in copied],
            )
        indices = mx.array([self._numbers[fork.row] for fork in forks])
        self._newest[indices] = mx.array([fork.token_id for fork in forks], dtype=mx.uint32)


def _num_columns(row: Row) -> int:
    """How many columns a row needs for now: its prompt's, and its tokens' up to this step."""
    return max(len(row.spec.prompt_ids), row.decode_position + 1)


def _sampled(decoding: tuple[Row, ...], plan: Plan, hidden: mx.array) -> tuple[tuple[Row, ...], mx.array]:
    """The rows that get a token from this step, and what is left in it of each one's last token: (B, 1, E)."""
    if not any(chunk.is_last for chunk in plan.prefill):
        return decoding, hidden[: len(decoding)]
    rows, indices = list(decoding), list(range(len(decoding)))
    end = len(decoding)
    for chunk in plan.prefill:
        end += len(chunk)
        if chunk.is_last:
            rows.append(chunk.row)
            indices.append(end - 1)
    return tuple(rows), hidden if len(indices) == hidden.shape[0] else hidden[mx.array(indices)]
