"""What the engine asks of a grammar that holds a row's answer: which ids may come next, and to be told which did.

Plain Python. The compiled grammars are made outside the engine, one constraint for each row that has one.
"""

from __future__ import annotations

from typing import Protocol


class Constraint(Protocol):
    """The state of one row's grammar. It belongs to one row and moves with that row's tokens."""

    def allowed_ids(self) -> bytes:
        """The ids that may come next, as bits in little-endian 32-bit words: id `i` is bit `i % 32` of word `i // 32`.

        Every id of the row's EOS set is among them exactly when the answer is complete as it stands.
        """

    def advance(self, token_id: int) -> None:
        """Take the row's next token; the end token is never given."""
