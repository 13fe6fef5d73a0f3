"""How many rows fit in memory: the KV budget that admission spends.

Rows in slabs take the slabs' room (`slot_allocator`), padded rows as much as the longest of them; prefixes that rows
share take theirs once, and a step what its activations are. A row counts with its prompt and all that it may generate,
so a row that was admitted never runs out of room. Plain Python; `memory` and `runners/step_cost` measure a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlxq_worker.engine.kvcache.prefix import MIN_TOKENS
from mlxq_worker.engine.kvcache.slot_allocator import largest_sizes

PREFIX_SHARE = 8
"""Prefixes that nobody uses may stay in one part of this many of the budget, while no row needs it."""


@dataclass(frozen=True, slots=True)
class KvCost:
    """What one row keeps, by kind of layer: some bytes for every token, some for every token up to a window's length
    (`windows`: pairs of bytes a token and tokens), and some once (recurrent states). In slabs the layer that takes the
    most, `layer_bytes_per_token`, is there twice while they grow."""

    bytes_per_token: int = 0
    windows: tuple[tuple[int, int], ...] = ()
    fixed_bytes: int = 0
    layer_bytes_per_token: int = 0

    def of_row(self, num_tokens: int) -> int:
        """Bytes that a row of this many tokens takes."""
        in_windows = sum(size * min(num_tokens, length) for size, length in self.windows)
        return self.bytes_per_token * num_tokens + in_windows + self.fixed_bytes

    @property
    def bytes_per_prefix_token(self) -> int:
        """What a token of a shared prefix takes. Where only states are kept, which belong to no token, they are laid on
        as many tokens as a prefix has at least."""
        return self.bytes_per_token or max(1, -(-self.fixed_bytes // MIN_TOKENS))

    @property
    def tokens_beside_prefix(self) -> int:
        """As many tokens as take what is kept of a prefix once."""
        return -(-self.fixed_bytes // self.bytes_per_token) if self.bytes_per_token else 0


@dataclass(frozen=True, slots=True)
class StepCost:
    """What is there of a step while it is computed, beside what is kept of rows: some bytes once, some for each of its
    tokens, some for each token that these may attend to, some for each pair of those, and some for each pair of a token
    with one of so many near it."""

    bytes_once: int = 0
    bytes_per_token: int = 0
    bytes_per_context_token: int = 0
    bytes_per_pair: int = 0
    bytes_per_near_pair: int = 0
    near_tokens: int = 0

    def of_step(self, num_tokens: int, num_context: int) -> int:
        """Bytes that a step of so many tokens takes in rows of so many."""
        if not num_tokens:
            return 0
        per_token = self.bytes_per_token + self.bytes_per_near_pair * min(num_tokens, self.near_tokens)
        per_token += self.bytes_per_pair * num_context
        return self.bytes_once + num_tokens * per_token + self.bytes_per_context_token * num_context


@dataclass(frozen=True, slots=True)
class KvBudget:
    """What rows cost and what there is, in bytes. Rows lie `in_slabs`, or are padded to the longest of them; with
    `copies_prefixes` a row has the prefix that it begins with in its own room, too. A `step` takes up to `step_tokens`
    tokens."""

    cost: KvCost
    limit_bytes: int
    in_slabs: bool = False
    copies_prefixes: bool = False
    step: StepCost = StepCost()
    step_tokens: int = 0

    def own_length(self, num_tokens: int, num_prefix_tokens: int) -> int:
        """How many tokens a row of so many takes room for, so many of which are those of a prefix."""
        return num_tokens if self.copies_prefixes else num_tokens - num_prefix_tokens

    def taken(self, row_lengths: Iterable[int]) -> int:
        """Bytes that rows of these lengths, in tokens, take together while their steps are computed."""
        lengths = list(row_lengths)
        return self.kept(lengths) + self.of_step(lengths)

    def kept(self, row_lengths: Sequence[int]) -> int:
        """Bytes of what is kept of rows of these lengths."""
        if self.in_slabs:
            sizes = largest_sizes(row_lengths).values()
            growing = self.cost.layer_bytes_per_token * sum(size.area for size in sizes)
            return growing + sum(size.num_slots * self.cost.of_row(size.num_columns) for size in sizes)
        return len(row_lengths) * self.cost.of_row(max(row_lengths, default=0))

    def of_step(self, row_lengths: Sequence[int]) -> int:
        """Bytes that the largest step of rows of these lengths takes beside that."""
        return self.step.of_step(min(self.step_tokens, sum(row_lengths)), max(row_lengths, default=0))

    def fits(self, row_lengths: Iterable[int], num_prefix_tokens: int = 0) -> bool:
        """Whether rows of these lengths fit together, beside prefixes of so many tokens."""
        return self.taken(row_lengths) + self.cost.bytes_per_prefix_token * num_prefix_tokens <= self.limit_bytes

    def prefix_tokens(self, max_prefix_bytes: int | None) -> int:
        """How many tokens of prefixes so many bytes hold; `None` for the usual share of the budget."""
        num_bytes = self.limit_bytes // PREFIX_SHARE if max_prefix_bytes is None else max_prefix_bytes
        return num_bytes // self.cost.bytes_per_prefix_token

    def spare_tokens(self, row_lengths: Iterable[int]) -> int:
        """How many tokens of prefixes there is room for beside rows of these lengths."""
        return max(0, self.limit_bytes - self.taken(row_lengths)) // self.cost.bytes_per_prefix_token
