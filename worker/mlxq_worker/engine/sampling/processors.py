"""What the rows' requests do to their logits before anything is chosen: ids that may not come, biases, penalties.

Rows that ask for none of it are not touched, and a batch of such rows costs nothing. The order is that of vLLM's
`vllm/v1/sample/sampler.py`: allowed_token_ids, bad_words, min_tokens, logit_bias, then repetition, frequency and
presence penalty. Masks of allowed ids and of grammars commute with all of these, so they come last together.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.constraint import Words, fill_masks, num_words
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.sampling.edits import RowEdits, is_edited, joined
from mlxq_worker.engine.sampling.masks import mask_logits, words_of_ids


class Processors:
    """Keeps from step to step what is known of each row. B rows, V ids in the vocabulary, N edited cells."""

    def __init__(self) -> None:
        self._rows: tuple[Row, ...] = ()
        self._masked: list[tuple[int, Row]] = []  # with their indices in the batch
        self._edits: dict[Row, RowEdits] = {}
        self._allowed: dict[Row, Words] = {}
        self._cells: tuple[mx.array, ...] = ()

    def set_rows(self, rows: Sequence[Row]) -> None:
        """The batch has these rows from now on."""
        self._rows = tuple(rows)
        self._masked = [(index, row) for index, row in enumerate(rows) if _has_mask(row)]
        self._edits = {row: self._edits.get(row) or RowEdits(row) for row in rows if is_edited(row)}
        self._allowed = {row: words for row, words in self._allowed.items() if row in rows}
        self._cells = ()

    def apply(self, logits: mx.array) -> mx.array:
        """The logits (B, V) as the rows' requests want them, for the token that each row is due next."""
        # A row that ended on the step before is in the batch once more, and its grammar must not be asked.
        masked = [(index, row) for index, row in self._masked if not row.finished]
        if not (self._edits or masked):
            return logits
        logits = logits.astype(mx.float32)
        if self._edits:
            logits = self._edit(logits)
        if masked:
            words = self._words([row for _, row in masked], logits.shape[1])  # (C, W)
            logits = mask_logits(logits, [index for index, _ in masked], words)
        return logits

    def _edit(self, logits: mx.array) -> mx.array:
        changed = [edits.update() for edits in self._edits.values()]
        if any(changed) or not self._cells:
            self._cells = self._joined()
        if not self._cells:
            return logits
        rows, ids, bias, factor, penalty = self._cells
        values = logits[rows, ids] + bias  # (N,)
        logits[rows, ids] = mx.where(values > 0, values / factor, values * factor) - penalty
        return logits

    def _joined(self) -> tuple[mx.array, ...]:
        """The cells of all rows as arrays; those of rows that are through with them fall away."""
        self._edits = {row: edits for row, edits in self._edits.items() if not edits.is_spent}
        placed = [(index, self._edits[row]) for index, row in enumerate(self._rows) if row in self._edits]
        return tuple(map(mx.array, joined(placed))) if placed else ()

    def _words(self, rows: Sequence[Row], num_ids: int) -> Words:
        """The masks of C rows: (C, W)."""
        held = [(index, each) for index, row in enumerate(rows) if (each := row.spec.constraint) is not None]
        words = np.full((len(rows), num_words(num_ids)), _EVERY_ID, dtype=np.uint32)
        if held:
            words[[index for index, _ in held]] = fill_masks([constraint for _, constraint in held], num_ids)
        for row, its_words in zip(rows, words, strict=True):
            if row.spec.allowed_token_ids is not None:
                its_words &= self._allowed_words(row, row.spec.allowed_token_ids, num_ids)
        return words

    def _allowed_words(self, row: Row, allowed_ids: frozenset[int], num_ids: int) -> Words:
        """The mask of a row's own list: (W,)."""
        if row not in self._allowed:
            self._allowed[row] = words_of_ids(allowed_ids, num_ids)
        return self._allowed[row]


_EVERY_ID = 0xFFFFFFFF


def _has_mask(row: Row) -> bool:
    """Whether only some ids may come next in this row."""
    return row.spec.allowed_token_ids is not None or row.spec.constraint is not None
