"""What requests do to single logits: biases, penalties, and ids that may not come now, as sparse cells of the batch.

Per row everything comes down to one formula with three numbers for each id that the row touches, so that rows of all
kinds are one array operation, whose size is the number of touched ids. A row's cells are kept from step to step: a step
costs what its new token changes. numpy on the host; knows no logits and no device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.rows.row import Row

_FIRST_ROOM = 16


class Cells(NamedTuple):
    """N cells of the logits (B, V), no two of them the same. The new logit, in vLLM's order (`vllm/v1/sample`:
    bad words, min_tokens, logit_bias, then `ops/penalties.py`; the formulas are those of
    `vllm/model_executor/layers/utils.py`, `apply_penalties`):

        x = logit + bias                                      bias is -inf for an id that may not come
        x = x / factor if x > 0 else x * factor               repetition_penalty, of prompt and generated ids
        x = x - penalty                                       frequency_penalty * count + presence_penalty, generated
    """

    rows: NDArray[np.int32]  # (N,) index into the batch
    ids: NDArray[np.int32]  # (N,)
    bias: NDArray[np.float32]  # (N,)
    factor: NDArray[np.float32]  # (N,)
    penalty: NDArray[np.float32]  # (N,)


class RowEdits:
    """The cells of one row, for the token that it is due next.

    Penalties and bad words of several tokens follow from the tokens that the row has: those that are not committed
    don't count, so such rows are brought up to date after the step before was committed (`RowSpec.is_sampled_late`).
    """

    def __init__(self, row: Row) -> None:
        spec = row.spec
        self._row = row
        self._words = BadWords(spec.bad_words)
        self._indices: dict[int, int] = {}
        self._ids = np.zeros((_FIRST_ROOM,), np.int32)
        self._bias, self._factor, self._penalty = np.zeros((3, _FIRST_ROOM), np.float32)
        self._counts = Counter[int]()
        self._num_counted = 0
        self._ends_masked = row.masks_end_tokens
        self._for_this_step: list[int] = []
        for token_id in {*spec.logit_bias, *self._words.single, *(spec.end_tokens if self._ends_masked else ())}:
            self._set_bias(token_id, self._base_bias(token_id))
        if spec.repetition_penalty != 1:
            for token_id in set(spec.prompt_ids):
                index = self._index_of(token_id)
                self._factor[index] = spec.repetition_penalty

    @property
    def ids(self) -> NDArray[np.int32]:
        """(n,) the ids that the row touches, each once."""
        return self._ids[: len(self._indices)]

    @property
    def values(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Bias, factor and penalty of these ids, (n,) each."""
        end = len(self._indices)
        return self._bias[:end], self._factor[:end], self._penalty[:end]

    @property
    def is_spent(self) -> bool:
        """Whether the row is through with its cells: it had them only for its `min_tokens`, and it has those."""
        return not self._ends_masked and not _is_edited_to_the_end(self._row.spec)

    def update(self) -> bool:
        """Take what the row has got since the last time; whether any cell changed."""
        released = self._release()
        counted = self._row.spec.has_penalties and self._count()
        self._for_this_step = self._words.completing(self._row.token_ids)
        for token_id in self._for_this_step:
            self._set_bias(token_id, -np.inf)
        return released or counted or bool(self._for_this_step)

    def _release(self) -> bool:
        """Allow again what was forbidden for one step, and end tokens once there are `min_tokens`."""
        allowed = self._for_this_step
        if self._ends_masked and not self._row.masks_end_tokens:
            self._ends_masked = False
            allowed = [*allowed, *self._row.spec.end_tokens]
        for token_id in allowed:
            self._set_bias(token_id, self._base_bias(token_id))
        return bool(allowed)

    def _count(self) -> bool:
        spec, new = self._row.spec, self._row.token_ids[self._num_counted :]
        self._num_counted += len(new)
        for token_id in new:
            self._counts[token_id] += 1
            index = self._index_of(token_id)
            self._factor[index] = spec.repetition_penalty
            self._penalty[index] = spec.frequency_penalty * self._counts[token_id] + spec.presence_penalty
        return bool(new)

    def _base_bias(self, token_id: int) -> float:
        """The bias that an id has for as long as nothing of one step's forbids it."""
        if token_id in self._words.single or (self._ends_masked and token_id in self._row.spec.end_tokens):
            return -np.inf
        return self._row.spec.logit_bias.get(token_id, 0.0)

    def _set_bias(self, token_id: int, bias: float) -> None:
        index = self._index_of(token_id)
        self._bias[index] = bias

    def _index_of(self, token_id: int) -> int:
        """Where an id's numbers stand; a new id gets an index where nothing is changed yet. The arrays may be others
        afterwards."""
        index = self._indices.setdefault(token_id, len(self._indices))
        if index == len(self._ids):
            self._ids, self._bias, self._factor, self._penalty = (
                np.concatenate([column, np.zeros_like(column)])
                for column in (self._ids, self._bias, self._factor, self._penalty)
            )
        if self._factor[index] == 0:
            self._ids[index], self._factor[index] = token_id, 1.0
        return index


class BadWords:
    """Token sequences none of which may be completed. As in vLLM (`vllm/v1/sample/ops/bad_words.py`) the last token of
    a sequence may not come when the generated tokens end with the ones before it.
    """

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self.single = frozenset(word[0] for word in words if len(word) == 1)
        self._by_newest: dict[int, list[tuple[list[int], int]]] = {}
        for *before, last in words:
            if before:
                self._by_newest.setdefault(before[-1], []).append((before, last))

    def completing(self, token_ids: Sequence[int]) -> list[int]:
        """The ids that would complete a sequence of several tokens after `token_ids`."""
        candidates = self._by_newest.get(token_ids[-1], ()) if token_ids else ()
        return [last for before, last in candidates if list(token_ids[-len(before) :]) == before]


def is_edited(row: Row) -> bool:
    """Whether a row has cells now or may get some."""
    return _is_edited_to_the_end(row.spec) or (row.masks_end_tokens and bool(row.spec.end_tokens))


def _is_edited_to_the_end(spec: RowSpec) -> bool:
    return bool(spec.logit_bias or spec.bad_words or spec.has_penalties)


def joined(edits: Sequence[tuple[int, RowEdits]]) -> Cells:
    """The cells of several rows, each given with its index in the batch."""
    sizes = [len(each.ids) for _, each in edits]
    rows = np.repeat(np.array([index for index, _ in edits], np.int32), sizes)
    ids = np.concatenate([each.ids for _, each in edits])
    bias, factor, penalty = (np.concatenate(column) for column in zip(*(each.values for _, each in edits), strict=True))
    return Cells(rows, ids, bias, factor, penalty)
