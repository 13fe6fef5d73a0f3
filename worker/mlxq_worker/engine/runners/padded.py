"""Runs a `Plan` on mlx-lm's own batch caches: any architecture that has them, recurrent and sliding-window ones too.

Uses their `merge`, `prepare`, `finalize`, `filter` and `extend`, but none of mlx-lm's generators. Prompts are padded on
the right while they are prefilled and rolled into place after that, as those caches ask for. `packed` is faster
where it can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxq_worker.engine.plan import Plan
from mlxq_worker.engine.rows.group import Fork
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.runners.runner import Launched
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.sampling.logprobs import score_chunk

Cache = Any
"""One layer's cache of mlx-lm, for a whole batch."""

_PADDING_ID = 0
_MAX_PADDING_SHARE = 0.25
_STATE_EVAL_INTERVAL = 64


class PaddedBatch:
    """Rows that go through the model together, padded on the left to the longest one, and what they have computed."""

    def __init__(self) -> None:
        self.rows: tuple[Row, ...] = ()
        self.tokens = mx.zeros((0,), dtype=mx.uint32)  # (B,) the newest token of every row, computed or not
        self._caches: list[Cache] = []
        self._num_steps = 0

    def keep(self, kept: frozenset[Row]) -> None:
        """Take every other row out of the batch."""
        indices = [index for index, row in enumerate(self.rows) if row in kept]
        if len(indices) == len(self.rows):
            return
        self.rows = tuple(self.rows[index] for index in indices)
        self.tokens = self.tokens[mx.array(indices)] if indices else self.tokens[:0]
        self._gather(indices)

    def join(self, rows: Sequence[Row], caches: list[Cache]) -> None:
        """Put prefilled rows at the end of the batch."""
        last_ids = mx.array([row.spec.prompt_ids[-1] for row in rows], dtype=mx.uint32)  # (b,)
        self.tokens = mx.concatenate([self.tokens, last_ids])
        if self.rows:
            for cache, other in zip(self._caches, caches, strict=True):
                cache.extend(other)
        else:
            self._caches = caches
        self.rows += tuple(rows)

    def fork(self, forks: Sequence[Fork]) -> None:
        """Have just these rows, each with what its source has computed and with the token to go on with."""
        indices = [self.rows.index(fork.source) for fork in forks]
        if indices != list(range(len(self.rows))):
            self._gather(indices)
        self.rows = tuple(fork.row for fork in forks)
        self.tokens = mx.array([fork.token_id for fork in forks], dtype=mx.uint32)

    def decode(self, model: Any) -> mx.array:
        """Run every row's newest token through the model: logits (B, V)."""
        logits: mx.array = model(self.tokens[:, None], cache=self._caches)[:, -1, :]
        self._num_steps += 1
        if self._num_steps % _STATE_EVAL_INTERVAL == 0:
            # Parts of a cache that no output depends on would otherwise grow an unevaluated graph without end.
            mx.async_eval(logits, [cache.state for cache in self._caches])
        return logits

    def _gather(self, indices: Sequence[int]) -> None:
        """Keep the rows of these indices, in this order; one may come several times."""
        if not indices:
            self._caches = []
        for cache in self._caches:
            cache.filter(mx.array(list(indices)))


class PaddedRunner:
    """A batch of mlx-lm's caches, and one more for each beam search: what all rows of a batch have computed grows by a
    token on every step, and beams sit out every other one.

    Args:
        model: an mlx-lm model; called with token ids (B, L) and a list of caches it returns logits (B, L, V).
        batches: whether the model's caches can be batched, and rows in a batch get what they get alone.
        max_num_seqs: how many rows decode together at most; 1 where nothing is batched.
        prefill_chunk: at most this many positions of a prompt go through the model at once.
        new_sampler: makes what picks the tokens of an empty batch.
    """

    def __init__(
        self,
        model: Any,
        *,
        batches: bool,
        max_num_seqs: int,
        prefill_chunk: int,
        new_sampler: Callable[[], BatchSampler],
    ) -> None:
        self._model = model
        self._new_sampler = new_sampler
        self._prefill_chunk = prefill_chunk
        self._batches = batches
        self.max_num_seqs = max_num_seqs if batches else 1
        self.max_prefix_tokens = 0
        self.num_slab_tokens = 0
        self.clear()

    def clear(self) -> None:
        """Drop the batch and free its memory."""
        self._batch = PaddedBatch()
        self._searches: list[PaddedBatch] = []
        self._sampler = self._new_sampler()
        mx.clear_cache()

    def launch(self, plan: Plan) -> Launched | None:
        """Bring the batch to `plan`, whose prompts come in one chunk, and start computing a token for every row."""
        self._batch.keep(frozenset(plan.decoding))
        for group in prefill_groups(
            [chunk.row for chunk in plan.prefill if not chunk.row.spec.beam], self._prefill_chunk
        ):
            self._batch.join(group, self._prefill(group))
        batches = [self._batch, *self._search(plan)] if self._batch.rows else self._search(plan)
        if not batches:
            return None
        logits = [batch.decode(self._model) for batch in batches]
        rows = tuple(chain.from_iterable(batch.rows for batch in batches))
        return Launched(
            rows, logits[0] if len(logits) == 1 else mx.concatenate(logits), self._sampler, self._keep_newest
        )

    def _search(self, plan: Plan) -> list[PaddedBatch]:
        """Bring the batches of beam searches to `plan`; returns those that take part in it."""
        batch_of = {row: batch for batch in self._searches for row in batch.rows}
        forks: dict[PaddedBatch, list[Fork]] = {}
        for fork in plan.forks:
            forks.setdefault(batch_of[fork.source], []).append(fork)
        resting = dict.fromkeys(batch_of[row] for row in plan.resting)
        for batch, own in forks.items():
            batch.fork(own)
        begun = [self._begun(chunk.row) for chunk in plan.prefill if chunk.row.spec.beam]
        self._searches = [*resting, *forks, *begun]
        return [*forks, *begun]

    def _begun(self, row: Row) -> PaddedBatch:
        """A batch of its own for a search whose first row is this."""
        batch = PaddedBatch()
        batch.join([row], self._prefill([row]))
        return batch

    def _prefill(self, rows: Sequence[Row]) -> list[Cache]:
        """Run all but the last token of the rows' prompts through the model, equal ones once; the last one is decoded
        from."""
        each = [row.spec.prompt_ids[:-1] for row in rows]
        prompts = list(dict.fromkeys(each))
        index_of = {prompt: index for index, prompt in enumerate(prompts)}
        scored = [(index_of[prompt], row) for prompt, row in zip(each, rows, strict=True) if row.wants_prompt_scores]
        caches = self._prefill_prompts(prompts, scored)
        if len(prompts) < len(each):
            for cache in caches:
                cache.filter(mx.array([index_of[prompt] for prompt in each]))  # an index may come several times
        return caches

    def _prefill_prompts(self, prompts: Sequence[Sequence[int]], scored: Sequence[tuple[int, Row]]) -> list[Cache]:
        """Run prompts through the model; those of the `scored` rows, each given with its prompt's index, are scored."""

        def score(start: int, logits: mx.array) -> None:
            for index, row in scored:
                score_chunk(row, start, logits[index], _as_they_are)

        return prefilled(self._model, prompts, batches=self._batches, chunk=self._prefill_chunk, look=score)

    def _keep_newest(self, tokens: mx.array) -> None:
        """Beams are given their tokens by the plan; the others go on with what was sampled, and come first."""
        self._batch.tokens = tokens[: len(self._batch.rows)]


def can_batch(model: Any) -> bool:
    """Whether mlx-lm has a batch cache for each cache of this model."""
    return all(hasattr(cache, "merge") for cache in make_prompt_cache(model))


def prefilled(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batches: bool,
    chunk: int,
    look: Callable[[int, mx.array], None] = lambda start, logits: None,
) -> list[Cache]:
    """mlx-lm's caches, one a layer, with what the model computes for these prompts, so many positions at a time.

    Args:
        batches: whether they are to be batch caches; without that there may be one prompt.
        chunk: prompts of several chunks, or of one token, have to be of one length (`prefill_groups`).
        look: is given where each chunk begins, and its logits (B, L, V).
    """
    caches = _new_caches(model, len(prompts), batches)
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    if longest == 0:
        return caches
    padding = [longest - length for length in lengths]
    if any(padding):
        for cache in caches:
            cache.prepare(lengths=lengths, right_padding=padding)
    tokens = mx.array([[*prompt, *[_PADDING_ID] * pad] for prompt, pad in zip(prompts, padding, strict=True)])
    for start in range(0, longest, chunk):  # tokens: (B, longest)
        look(start, model(tokens[:, start : start + chunk], cache=caches))
        mx.eval([cache.state for cache in caches])
    if batches:
        # Also without padding: recurrent caches otherwise go on counting it down, one graph node a token.
        for cache in caches:
            cache.finalize()
    return caches


def _new_caches(model: Any, num_rows: int, batches: bool) -> list[Cache]:
    """Empty caches, one a layer, for a batch of `num_rows`."""
    single = [make_prompt_cache(model) for _ in range(num_rows)]
    if not batches:
        return list(single[0])
    return [layer[0].merge(list(layer)) for layer in zip(*single, strict=True)]


def _as_they_are(logits: mx.array) -> mx.array:
    return logits


def prefill_groups(rows: Sequence[Row], prefill_chunk: int) -> Iterator[tuple[Row, ...]]:
    """Split rows into groups that are prefilled together, by rising prompt length.

    A group is padded to its longest prompt where little of the work is padding and where mlx-lm's caches allow it:
    the prefilled part has to be one chunk, of two positions at least. Otherwise it holds prompts of one length.
    (In padded prompts of several chunks recurrent caches take the state of rows that go on from the wrong position, and
    sliding-window caches refuse a chunk of one position.)
    """
    group: list[Row] = []
    num_tokens = 0
    for row in sorted(rows, key=lambda row: len(row.spec.prompt_ids)):
        length = len(row.spec.prompt_ids)
        num_positions = length * (len(group) + 1)
        padding = num_positions - num_tokens - length
        may_pad = padding <= _MAX_PADDING_SHARE * num_positions and 2 <= length - 1 <= prefill_chunk
        if group and padding and not may_pad:
            yield tuple(group)
            group, num_tokens = [], 0
        group.append(row)
        num_tokens += length
    if group:
        yield tuple(group)
