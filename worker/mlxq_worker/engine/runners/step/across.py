"""How decoding rows in several slabs attend to their slots, where attention is a single kernel: by one function that
MLX traces.

To replay what was traced takes Python half as long as to build the graph of two attentions anew in every layer. A trace
takes as long as some layers, and serves every layer and step for as long as the same columns of the slabs are seen:
`windows` aligns them. Not run on Metal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from mlxq_worker.engine.kvcache.places import Cut, Form, Made
from mlxq_worker.engine.kvcache.pool import Pool
from mlxq_worker.engine.runners.step.windows import View, Window


class How(NamedTuple):
    """What decides what is traced for a layer.

    Args:
        form: of its pool.
        scale: of the products of queries and keys.
        sliding: how many tokens a token sees.
        num_heads: of the queries.
    """

    form: Form
    scale: float
    sliding: int | None
    num_heads: int


Attention = Callable[..., mx.array]
"""Of queries (N, heads, 1, D) to a pool's keys and values, with a mask for each window and sinks: (N, heads, 1, D)."""

Trace = tuple[Sequence[tuple[Cut, Cut]], Attention]
"""What it sees of the slabs, and the function."""


class Across:
    """The attention of one step's decoding rows.

    Args:
        windows: those of all of them, slab after slab.

    Attributes:
        parts: for each way to attend what does and each slab's mask.
    """

    def __init__(self, windows: Sequence[Window], traces: dict[How, Trace] | None = None) -> None:
        self._traces: dict[How, Trace] = {} if traces is None else traces
        self.parts: Made[How, tuple[Attention, Sequence[mx.array | None]]] = Made(
            partial(_parts, windows, self._traces)
        )

    def next(self, windows: Sequence[Window]) -> Across:
        """That of the same rows one column further."""
        return Across(windows, self._traces)


def _parts(
    windows: Sequence[Window], traces: dict[How, Trace], how: How
) -> tuple[Attention, Sequence[mx.array | None]]:
    views = [window.views[how.sliding] for window in windows]
    seen = [view.cuts[how.form] for view in views]
    if how not in traces or traces[how][0] != seen:
        traces[how] = seen, mx.compile(partial(_attention, list(zip(windows, views, strict=True)), how))
    return traces[how][1], [view.masks[how.num_heads] for view in views]


def _attention(
    views: Sequence[tuple[Window, View]],
    how: How,
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    masks: Sequence[mx.array | None],
    sinks: mx.array | None,
) -> mx.array:
    pool = Pool(how.form[0], keys, values)
    parts = [
        window.attention(pool, view, mask, queries[window.rows], how.scale, sinks)
        for (window, view), mask in zip(views, masks, strict=True)
    ]
    return mx.concatenate(parts)
