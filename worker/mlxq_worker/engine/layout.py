"""Where the tokens of one step go: their positions, the slots and columns that they are written to, and how they
attend to what is there. Made once a step from plain spans, as arrays that every layer uses.

Knows nothing of keys and values: `engine/slots` holds those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import mlx.core as mx

from mlxq_worker.engine.attention import is_fused
from mlxq_worker.engine.places import Place
from mlxq_worker.engine.prefix import Prefix
from mlxq_worker.engine.scheduler import PrefixPiece


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one row that are in this step: columns `start` to `stop` at its place, behind its prefix if any."""

    place: Place
    start: int
    stop: int
    prefix: Prefix | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def columns(self) -> range:
        return range(self.start, self.stop)

    @property
    def positions(self) -> range:
        """The tokens' positions in their sequence."""
        before = len(self.prefix) if self.prefix else 0
        return range(before + self.start, before + self.stop)


class Layout:
    """First one token of each decoding row, then the spans of prompts, then the pieces of prefixes. N tokens in all, M
    of them in slots.

    Args:
        decoding: spans of one token, by rising place.
        spans: the prompt pieces, in the order of their tokens.
        prefixes: the prefix pieces, in the order of their tokens.

    Attributes:
        sharing: how tokens attend to shared prefixes, if any does. The decoding rows' do so together; prompts' join
            them where attention is done in parts anyway.
        joined: the prompt pieces whose tokens are in `sharing`.
        pieces: those that attend each by itself.
    """

    def __init__(
        self, decoding: Sequence[Span], spans: Sequence[Span] = (), prefixes: Sequence[PrefixPiece] = ()
    ) -> None:
        in_slots = (*decoding, *spans)
        self.prefixes = tuple(prefixes)
        sharing = decoding if is_fused() else in_slots
        self.sharing = Sharing(sharing) if any(span.prefix for span in sharing) else None
        self.joined = tuple(spans) if self.sharing and not is_fused() else ()
        self.pieces: tuple[Span | PrefixPiece, ...] = (*(() if self.joined else spans), *prefixes)
        self.num_decoding = len(decoding)
        self.num_in_slots = sum(map(len, in_slots))
        positions = [position for span in in_slots for position in span.positions]
        positions += [position for piece in prefixes for position in range(piece.start, piece.stop)]
        self.positions = mx.array(positions)  # (N,)
        self.writes = _writes(in_slots)
        self.windows = _windows(decoding)


@dataclass(frozen=True, slots=True)
class Write:
    """Which of the step's tokens go to a slab, `None` for all M of them, and to which slots and columns: (m,) each."""

    slab: int
    tokens: mx.array | None
    slots: mx.array
    columns: mx.array


def _writes(in_slots: Sequence[Span]) -> tuple[Write, ...]:
    """One write for each slab."""
    first, starts = 0, []
    for span in in_slots:
        starts.append((span, first))
        first += len(span)
    starts.sort(key=lambda each: each[0].place.slab)
    grouped = {slab: list(group) for slab, group in groupby(starts, key=lambda each: each[0].place.slab)}
    return tuple(
        Write(
            slab,
            None if len(grouped) == 1 else _indices(start + i for span, start in group for i in range(len(span))),
            _indices(span.place.slot for span, _ in group for _ in range(len(span))),
            _indices(chain.from_iterable(span.columns for span, _ in group)),
        )
        for slab, group in grouped.items()
    )


def _indices(values: Iterable[int]) -> mx.array:
    """Unsigned, since mlx takes a quarter longer to scatter where an index might count from the end."""
    return mx.array(list(values), dtype=mx.uint32)


class Window:
    """How the decoding rows of one slab attend to it: all slots up to the last one in use, over one window of columns.

    S slots, B decoding rows, W columns.

    Args:
        slab: which one.
        first: the index of its first row among all decoding rows.
        decoding: spans of one token, by rising slot.
    """

    def __init__(self, slab: int, first: int, decoding: Sequence[Span]) -> None:
        lengths = {span.place.slot: span.stop for span in decoding}
        self.slab = slab
        self.rows = slice(first, first + len(lengths))
        self.num_slots = max(lengths) + 1
        self.width = max(lengths.values())
        in_window = [lengths.get(slot, 1) for slot in range(self.num_slots)]
        is_ragged = any(length != self.width for length in in_window)
        columns = mx.arange(self.width)[None, None, None]  # (1, 1, 1, W)
        self.mask = columns < mx.array(in_window)[:, None, None, None] if is_ragged else None  # (S, 1, 1, W)
        has_holes = len(lengths) < self.num_slots
        places = {slot: index for index, slot in enumerate(lengths)}
        # (S,) which decoding row stands in for each slot: its own, or any for a slot that is empty
        self.query_rows = mx.array([places.get(slot, 0) for slot in range(self.num_slots)]) if has_holes else None
        self.result_rows = mx.array(list(lengths)) if has_holes else None  # (B,) where each row's result stands


def _windows(decoding: Sequence[Span]) -> tuple[Window, ...]:
    first, windows = 0, []
    for slab, group in groupby(decoding, key=lambda span: span.place.slab):
        windows.append(Window(slab, first, list(group)))
        first = windows[-1].rows.stop
    return tuple(windows)


class Sharing:
    """Which of n tokens attend to which prefix. `order` (n,) puts the results, group after group and then those of
    tokens that share nothing, into the tokens' order; `None` where they are in it already."""

    def __init__(self, spans: Sequence[Span]) -> None:
        groups: dict[Prefix | None, list[int]] = {}
        for index, prefix in enumerate(chain.from_iterable([span.prefix] * len(span) for span in spans)):
            groups.setdefault(prefix, []).append(index)
        alone = groups.pop(None, [])
        grouped = list(chain.from_iterable(groups.values()))
        self.groups = {prefix: mx.array(group) for prefix, group in groups.items() if prefix}  # (tokens of the group,)
        self.num_tokens = len(grouped) + len(alone)
        self.num_alone = len(alone)
        order = [*grouped, *alone]
        in_order = order == sorted(order)
        self.order = None if in_order else mx.array(sorted(range(len(order)), key=order.__getitem__))
