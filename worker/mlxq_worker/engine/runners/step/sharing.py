"""Which of a step's tokens attend to which shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import mlx.core as mx

from mlxq_worker.engine.kvcache.places import copied
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.runners.step.spans import Span


class Sharers:
    """Tokens of a step that are behind the same prefix of T tokens.

    Args:
        prefix: which one.
        tokens: (n,) which of the step's tokens.
        columns: how far behind the prefix each of them is.
    """

    def __init__(self, prefix: Prefix, tokens: mx.array, columns: Sequence[int]) -> None:
        self.prefix = prefix
        self.tokens = tokens
        self._columns = columns
        self._masks: dict[int, mx.array | None] = {}

    def next(self) -> Sharers:
        """The same tokens' next ones."""
        return Sharers(self.prefix, self.tokens, [column + 1 for column in self._columns])

    def first_seen(self, sliding: int | None) -> int:
        """The first token of the prefix that any of them sees, each of which sees so many tokens, itself the last; the
        number of the prefix's tokens if none does."""
        return 0 if sliding is None else min(len(self.prefix), max(0, self._first_seen(min(self._columns), sliding)))

    def mask(self, sliding: int | None) -> mx.array | None:
        """(n, T - first seen), true where a token sees one of the prefix; `None` if all see all from there."""
        if sliding is None:
            return None
        if sliding not in self._masks:
            first = self.first_seen(sliding)
            starts = [self._first_seen(column, sliding) for column in self._columns]
            is_ragged = any(start > first for start in starts)
            seen = mx.arange(first, len(self.prefix))[None]
            self._masks[sliding] = seen >= mx.array(starts)[:, None] if is_ragged else None
        return self._masks[sliding]

    def _first_seen(self, column: int, sliding: int) -> int:
        return len(self.prefix) + column + 1 - sliding


class Sharing:
    """Which of n tokens attend to which prefix. `order` (n,) puts the results, group after group and then those of
    tokens that share nothing, into the tokens' order; `None` where they are in it already."""

    def __init__(self, spans: Sequence[Span]) -> None:
        groups: dict[Prefix | None, list[int]] = {}
        for index, prefix in enumerate(chain.from_iterable([span.prefix] * len(span) for span in spans)):
            groups.setdefault(prefix, []).append(index)
        alone = groups.pop(None, [])
        grouped = list(chain.from_iterable(groups.values()))
        columns = list(chain.from_iterable(span.columns for span in spans))
        self.groups = tuple(
            Sharers(prefix, mx.array(tokens), [columns[token] for token in tokens])
            for prefix, tokens in groups.items()
            if prefix
        )
        self.num_tokens = len(grouped) + len(alone)
        self.num_alone = len(alone)
        order = [*grouped, *alone]
        in_order = order == sorted(order)
        self.order = None if in_order else mx.array(sorted(range(len(order)), key=order.__getitem__))

    def next(self) -> Sharing:
        """The same tokens' next ones."""
        later = copied(self)
        later.groups = tuple(group.next() for group in self.groups)
        return later
