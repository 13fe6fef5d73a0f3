"""Takes the tokens of a step apart for modules that need them side by side in time: rows of equally many tokens go
through the module together, one such group after another.

Everything else of a model sees every token as a row of length one. Made once a step, for every layer; refuses to know
what a module computes and what its cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Self

import mlx.core as mx

from mlxq_worker.engine.kvcache.places import Places, copied
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span, indices_of
from mlxq_worker.engine.runners.step.windows import Window


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the tokens of a span or of a prefix's chunk: `start` counts from its first one, `first` from the step's
    first one."""

    source: Span | PrefixChunk
    start: int
    first: int

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was computed of its sequence before, not even a prefix."""
        source = self.source
        if self.start or source.start:
            return False
        return source.prefix.base is None if isinstance(source, PrefixChunk) else source.source is None


@dataclass(frozen=True)
class Group:
    """B rows of T tokens that go through a module together.

    Args:
        parts: one for each row.
        length: T.
        kept: which of the rows count; the others stand in for empty slots. `None` if all do.
        window: for decoding rows that lie in one slab, as there: how they attend.
        num_rows: for decoding rows by the numbers of their states: how many states there are; else 0.
    """

    parts: tuple[Part, ...]
    length: int = 1
    kept: tuple[int, ...] | None = None
    window: Window | None = None
    num_rows: int = 0

    @property
    def is_fresh(self) -> bool:
        return self.parts[0].is_fresh

    @property
    def reads_slots(self) -> bool:
        """Whether its rows attend to what lies in their slots, and not just to tokens of their own."""
        return not self.is_fresh and isinstance(self.parts[0].source, Span)

    @cached_property
    def tokens(self) -> mx.array:
        """(B * T,) where the tokens stand in the step."""
        return indices_of(token for part in self.parts for token in range(part.first, part.first + self.length))

    @cached_property
    def results(self) -> mx.array | None:
        """(B,) as `kept`."""
        return None if self.kept is None else indices_of(self.kept)

    @property
    def real(self) -> tuple[Part, ...]:
        """The rows that count."""
        return self.parts if self.kept is None else tuple(self.parts[index] for index in self.kept)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """What the rows are of, where that is not a prefix."""
        return tuple(part.source for part in self.parts if isinstance(part.source, Span))

    @cached_property
    def places(self) -> Places:
        """Where the tokens of the rows that count are written."""
        spans = (part.source for part in self.real if isinstance(part.source, Span))
        return Places.of((span.slot, span.columns) for span in spans)

    @cached_property
    def rows(self) -> mx.array:
        """(B,) the numbers of their states."""
        return indices_of(span.row for span in self.spans)

    @cached_property
    def positions(self) -> mx.array:
        """(B,) the positions of their first tokens."""
        return mx.array([_position(part) for part in self.parts])


class Grouping:
    """All groups of a step, in the order in which they are to be computed.

    Args:
        goes_on: whether the next step of the same rows has the same groups.

    Attributes:
        is_whole: whether there is one group, of all tokens as they stand in the step.
    """

    def __init__(self, groups: Sequence[Group], layout: Layout, *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self.groups = tuple(groups)
        self.num_reading = sum(group.reads_slots for group in self.groups)
        self.num_tokens = layout.num_tokens
        self._positions, self._num_later = layout.positions, 0
        order = [
            token
            for group in self.groups
            for part in group.real
            for token in range(part.first, part.first + group.length)
        ]
        where = sorted(range(len(order)), key=order.__getitem__)
        self._order = None if order == sorted(order) else indices_of(where)  # (N,) where each token's result is
        first = self.groups[0] if len(self.groups) == 1 else None
        self.is_whole = first is not None and self._order is None and first.kept is None and first.length == 1

    def next(self, layout: Layout) -> Self | None:
        """The same rows' next tokens: only their positions are others."""
        if not self._goes_on:
            return None
        later = copied(self)
        later._positions = layout.positions
        later._num_later += 1
        return later

    def split(self, group: Group, argument: Any) -> Any:
        """A group's share of what a module is called with: of arrays (N, 1, ...) its tokens, (B, T, ...); of arrays
        (N, heads, 1, D) (B, heads, T, D); of the tokens' positions (N,) the rows' first ones (B,)."""
        if argument is self._positions:
            return group.positions + self._num_later if self._num_later else group.positions
        if isinstance(argument, tuple):
            return tuple(self.split(group, each) for each in argument)
        if not isinstance(argument, mx.array) or argument.ndim < 2 or argument.shape[0] != self.num_tokens:
            return argument
        shape = argument.shape
        if argument.ndim == 4 and shape[2] == 1:
            rows = argument[group.tokens].reshape(len(group.parts), group.length, shape[1], shape[3])
            return rows.swapaxes(1, 2)
        if shape[1] != 1:
            return argument
        if self.is_whole:
            return argument
        return argument[group.tokens].reshape(len(group.parts), group.length, *shape[2:])

    def joined(self, results: Sequence[Any]) -> Any:
        """What the groups gave, (B, T, ...) each, as the module would have given it: (N, 1, ...)."""
        if isinstance(results[0], tuple):
            return tuple(self.joined(each) for each in zip(*results, strict=True))
        if not isinstance(results[0], mx.array):
            raise TypeError(f"a module returns {type(results[0]).__name__} for each group of tokens")
        flat = [self._kept(group, result) for group, result in zip(self.groups, results, strict=True)]
        tokens = flat[0] if len(flat) == 1 else mx.concatenate(flat)
        return tokens if self._order is None else tokens[self._order]

    def _kept(self, group: Group, result: mx.array) -> mx.array:
        if result.shape[:2] != (len(group.parts), group.length):
            raise ValueError(f"a module returns {result.shape} for {len(group.parts)} rows of {group.length} tokens")
        kept = result if group.results is None else result[group.results]
        return kept.reshape(-1, 1, *kept.shape[2:])


def by_state(layout: Layout) -> Grouping:
    """For modules that keep one state a row: all decoding rows at once; then the prefixes' chunks, each behind its
    base's; then the chunks of prompts in steps, the first tokens of all of them, then those of the longer ones."""
    groups = [*_decoding_by_number(layout), *_prefixes(layout), *_in_steps(layout)]
    return Grouping(groups, layout, goes_on=True)


def by_slab(layout: Layout) -> Grouping:
    """For modules that attend by themselves: the decoding rows of each slab; prefixes' chunks; whole prompts of equal
    length together, and what goes on each by itself."""
    groups = [_decoding_in(window, layout.decoding[window.rows], window.rows.start) for window in layout.windows]
    return Grouping([*groups, *_prefixes(layout), *_by_length(layout)], layout)


def by_row(layout: Layout) -> Grouping:
    """For modules that can only attend for one row at a time."""
    groups = [Group((Part(span, 0, index),)) for index, span in enumerate(layout.decoding)]
    chunks = [Group((part,), len(part.source)) for part in _prompt_parts(layout)]
    return Grouping([*groups, *_prefixes(layout), *chunks], layout)


def _decoding_by_number(layout: Layout) -> Iterator[Group]:
    """By the numbers of their states, with stand-ins where there is no row, unless a state must not be touched."""
    if not layout.decoding:
        return
    parts = {span.row: Part(span, 0, index) for index, span in enumerate(layout.decoding)}
    goes_on = {span.row for span in layout.spans if span.start > 0}
    if goes_on or layout.resting:
        yield Group(tuple(parts.values()))
        return
    num_rows = 1 + max(parts)
    any_part = next(iter(parts.values()))
    rows = tuple(parts.get(row, any_part) for row in range(num_rows))
    kept = None if len(parts) == num_rows else tuple(sorted(parts))
    yield Group(rows, kept=kept, num_rows=num_rows)


def _decoding_in(window: Window, spans: Sequence[Span], first: int) -> Group:
    parts = {span.slot.index: Part(span, 0, first + index) for index, span in enumerate(spans)}
    any_part = next(iter(parts.values()))
    kept = None if len(parts) == window.num_slots else tuple(parts)
    return Group(tuple(parts.get(slot, any_part) for slot in range(window.num_slots)), kept=kept, window=window)


def _prefixes(layout: Layout) -> Iterator[Group]:
    first = layout.num_in_slots
    for chunk in layout.prefixes:
        yield Group((Part(chunk, 0, first),), len(chunk))
        first += len(chunk)


def _in_steps(layout: Layout) -> Iterator[Group]:
    """|#####|    |  |      Rows of 5, 9 and 11 tokens: three rows of 5 tokens, two of 4, one of 2. Nothing is padded,
    |#####|####|  |         and what a module does token by token it does for all rows at once.
    |#####|####|##|
    """
    parts = _prompt_parts(layout)
    for is_fresh in (True, False):
        own = [part for part in parts if part.is_fresh == is_fresh]
        start = 0
        for length in sorted({len(part.source) for part in own}):
            rows = tuple(Part(p.source, start, p.first + start) for p in own if len(p.source) >= length)
            yield Group(rows, length - start)
            start = length


def _by_length(layout: Layout) -> Iterator[Group]:
    parts = _prompt_parts(layout)
    whole = sorted((part for part in parts if part.is_fresh), key=lambda part: len(part.source))
    for length, group in groupby(whole, key=lambda part: len(part.source)):
        yield Group(tuple(group), length)
    for part in parts:
        if not part.is_fresh:
            yield Group((part,), len(part.source))


def _prompt_parts(layout: Layout) -> list[Part]:
    first, parts = len(layout.decoding), []
    for span in layout.spans:
        parts.append(Part(span, 0, first))
        first += len(span)
    return parts


def _position(part: Part) -> int:
    source = part.source
    return (source.start if isinstance(source, PrefixChunk) else source.positions.start) + part.start
