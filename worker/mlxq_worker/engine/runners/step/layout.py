"""Where the tokens of one step go: their positions, the slots and columns that they are written to, and how they
attend to what is there. Made once a step from plain spans, as arrays that every layer uses.

Holds no keys and values: those are in `kvcache/slots`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import mlx.core as mx
import numpy as np

from mlxq_worker.engine.kvcache.places import Ahead, Places, copied
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.kvcache.slot_allocator import Slot
from mlxq_worker.engine.plan import PrefixChunk
from mlxq_worker.engine.runners.attention import is_fused
from mlxq_worker.engine.runners.step.sharing import Sharing
from mlxq_worker.engine.runners.step.slab_attention import TracedAttention
from mlxq_worker.engine.runners.step.spans import Segment, Span, grouped
from mlxq_worker.engine.runners.step.windows import ALIGNMENT, Window, windows_of

D = TypeVar("D", bound="Derived")


class Derived(Protocol):
    """What is made of a step for every layer."""

    def next(self, layout: Layout) -> Self | None:
        """What would be made of the layout that comes next, where that is quicker than to make it anew."""


class Layout:
    """First one token of each decoding row, then the spans of prompts, then the chunks of prefixes. N tokens in all, M
    of them in slots.

    Args:
        decoding: spans of one token, by rising slot; where attention is a single kernel rows behind prefixes come
            last, in slabs of their own.
        spans: the prompt chunks, in the order of their tokens; best by `packing_size`.
        prefixes: the prefix chunks, in the order of their tokens.
        resting: the numbers of the rows that are in the batch and not in this step.

    Attributes:
        windows: those of all decoding rows; `whole_windows` of rows that attend to their slots and nothing else,
            `shared_windows` of those in `sharing`; `lone_windows` all of them, where there are no other tokens in the
            step than the rows' that attend to these.
        traced: how those attend, where attention is a single kernel and they are several.
        num_rows: one more than the highest number of a row in the batch.
        sharing: how tokens attend to shared prefixes, if any does. The decoding rows' do so together; where attention
            is done in parts anyway, those without a prefix and prompts' join them.
        joined: the prompt chunks whose tokens are in `sharing`, packed prompts of about the same length put together.
        segments: those that attend each by itself, packed prompts put together, too.
    """

    def __init__(
        self,
        decoding: Sequence[Span],
        spans: Sequence[Span] = (),
        prefixes: Sequence[PrefixChunk] = (),
        resting: Sequence[int] = (),
    ) -> None:
        in_slots = (*decoding, *spans)
        self._first_decoding, self._num_later = tuple(decoding), 0
        self.spans, self.prefixes = tuple(spans), tuple(prefixes)
        self.resting = tuple(resting)
        self.num_rows = 1 + max((*resting, *(span.row for span in in_slots)), default=-1)
        self._derived: dict[Callable[[Layout], Derived], Any] = {}
        self.copied_prefixes: dict[Prefix, list[Slot]] = {}  # and where to
        for span in spans:
            if span.source is not None and span.prefix is None:
                self.copied_prefixes.setdefault(span.source, []).append(span.slot)
        # What lies beside the rows, or is shared by some, leaves nothing to trace.
        may_trace = is_fused() and not (spans or prefixes or any(span.prefix for span in decoding))
        windows = windows_of(decoding, ALIGNMENT if may_trace else 1)
        shared = (window.rows.start for window in windows if any(span.prefix for span in decoding[window.rows]))
        first_shared = next(shared, len(decoding)) if is_fused() else 0
        sharing = decoding[first_shared:] if is_fused() else in_slots
        self.sharing = Sharing(sharing) if any(span.prefix for span in sharing) else None
        self.num_whole = first_shared if self.sharing else len(decoding)
        groups = grouped(spans)
        self.joined = groups if self.sharing and not is_fused() else ()
        self.segments: tuple[Segment, ...] = (*(() if self.joined else groups), *prefixes)
        self.num_decoding = len(decoding)
        self.num_in_slots = sum(map(len, in_slots))
        positions = [position for span in in_slots for position in span.positions]
        positions += [position for chunk in prefixes for position in range(chunk.start, chunk.stop)]
        self.num_tokens = len(positions)
        at_first = np.array(positions, dtype=np.int32)
        self._positions = Ahead(lambda step: mx.array(at_first + np.int32(step)))
        self.positions = self._positions.at(0)  # (N,)
        self.places = Places.of((span.slot, span.columns) for span in in_slots)
        self._set_windows(windows)
        self.traced = TracedAttention(windows) if may_trace and len(windows) > 1 else None

    @cached_property
    def decoding(self) -> tuple[Span, ...]:
        """The decoding rows' tokens."""
        return tuple(span.later(self._num_later) for span in self._first_decoding)

    def next(self) -> Layout:
        """The same decoding rows one token further, in the same slots: made of this one, not anew, as most steps are.

        There must be no other tokens in this step.
        """
        later = copied(self)
        later.__dict__.pop("decoding", None)
        later._num_later += 1
        later.positions = self._positions.at(later._num_later)
        later.places = self.places.next()
        later.sharing = self.sharing.next() if self.sharing else None
        later._set_windows(tuple(window.next() for window in self.windows))
        later.traced = self.traced.next(later.windows) if self.traced else None
        later._derived = {make: moved for make, made in self._derived.items() if (moved := made.next(later))}
        return later

    def _set_windows(self, windows: tuple[Window, ...]) -> None:
        self.windows = windows
        self.whole_windows = [window for window in windows if window.rows.start < self.num_whole]
        self.shared_windows = windows[len(self.whole_windows) :]
        self.lone_windows = self.whole_windows if self.num_whole == self.num_tokens else ()

    def derived(self, make: Callable[[Layout], D]) -> D:
        """What `make` makes of this step: the same for every layer, made when it is first asked for."""
        if make not in self._derived:
            self._derived[make] = make(self)
        made: D = self._derived[make]
        return made
