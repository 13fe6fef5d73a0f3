"""What the engine asks of a grammar that holds a row's answer: which ids may come next, and to be told which did.

Knows no grammar library: compiled grammars are made outside the engine, one constraint for each row that has one.
Constraints that share a `MaskBatch` have their masks made together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""(W,) or (C, W): ids as bits, of one row or of C; id `i` is bit `i % 32` of word `i // 32`."""


def num_words(num_ids: int) -> int:
    """How many words W a vocabulary needs."""
    return -(-num_ids // 32)


class Constraint(Protocol):
    """The state of one row's grammar. It belongs to one row and moves with that row's tokens."""

    def allowed_ids(self) -> bytes:
        """The ids that may come next, as bits in little-endian 32-bit words: id `i` is bit `i % 32` of word `i // 32`.

        Every id of the row's EOS set is among them exactly when the answer is complete as it stands. No id at all is
        allowed once the grammar has become too complex to go on with.
        """

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete as it stands, so that a stop token would end it."""

    def advance(self, token_id: int) -> None:
        """Take the row's next token; the end token is never given."""


class MaskBatch(Protocol):
    """Makes the masks of many constraints at once: of those that have it as their attribute `batch`."""

    def fill(self, constraints: Sequence[Any], masks: Words) -> None:
        """Write each constraint's mask into its row of `masks` (C, W)."""


def fill_masks(constraints: Sequence[Constraint], vocab_size: int) -> Words:
    """The masks of many rows, (C, W), in their order. Ids beyond a constraint's own vocabulary are not allowed."""
    masks = np.zeros((len(constraints), num_words(vocab_size)), dtype=np.uint32)
    together: defaultdict[MaskBatch, list[int]] = defaultdict(list)
    for index, constraint in enumerate(constraints):
        batch: MaskBatch | None = getattr(constraint, "batch", None)
        if batch:
            together[batch].append(index)
        else:
            words = np.frombuffer(constraint.allowed_ids(), dtype="<u4")[: masks.shape[1]]
            masks[index, : len(words)] = words
    for batch, indices in together.items():
        part = np.zeros((len(indices), masks.shape[1]), dtype=np.uint32)
        batch.fill([constraints[index] for index in indices], part)
        masks[indices] = part
    return masks
