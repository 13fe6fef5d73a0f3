"""Attention of the decoding rows of one slab to their slots, and, where attention is a single kernel, of rows in
several slabs by one function that MLX traces.

To replay what was traced takes Python half as long as to build the graph of two attentions anew in every layer. A trace
takes as long as some layers, and serves every layer and step for as long as the same columns of the slabs are seen:
`windows` aligns them. Traces were not run on Metal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from mlxq_worker.engine.kvcache.places import Cut, Form, Made
from mlxq_worker.engine.kvcache.pool import Pool
from mlxq_worker.engine.runners.step.windows import SlabRows, Window


def attend_in_slab(
    rows: SlabRows,
    pool: Pool,
    seen: tuple[Cut, Cut],
    queries: mx.array,
    scale: float,
    mask: mx.array | None,
    sinks: mx.array | None,
) -> mx.array:
    """Attention of a slab's decoding rows (B, heads, 1, D) to what they see of its first S slots; the mask is that of a
    window for so many heads."""
    keys, values = pool.view(seen)
    if rows.query_rows is not None:
        queries = queries[rows.query_rows]  # (S, heads, 1, D)
    result = rows.attend(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
    return result if rows.result_rows is None else result[rows.result_rows]


class LayerKind(NamedTuple):
    """Layers for which the same function is traced, but for dtypes and sinks, which MLX tells apart by itself.

    Args:
        form: of their pools.
        scale: of the products of queries and keys.
        sliding: how many tokens a token sees; `None` for all up to itself.
        num_heads: of the queries.
    """

    form: Form
    scale: float
    sliding: int | None
    num_heads: int


Traced = Callable[..., mx.array]
"""Attention of queries (N, heads, 1, D) to a pool's keys and values, given a mask for each slab, and sinks."""

Trace = tuple[Sequence[tuple[Cut, Cut]], Traced]
"""What is seen of each slab, and the function that holds for it."""


class TracedAttention:
    """The attention of one step's decoding rows.

    Args:
        windows: those of all of them, slab after slab.
        traces: of the steps before.

    Attributes:
        of: by the kind of a layer, what to call there, and the masks to give it, one for each slab.
    """

    def __init__(self, windows: Sequence[Window], traces: dict[LayerKind, Trace] | None = None) -> None:
        self._traces: dict[LayerKind, Trace] = {} if traces is None else traces
        self.of: Made[LayerKind, tuple[Traced, Sequence[mx.array | None]]] = Made(
            partial(_traced, windows, self._traces)
        )

    def next(self, windows: Sequence[Window]) -> TracedAttention:
        """That of the same rows one column further."""
        return TracedAttention(windows, self._traces)


def _traced(
    windows: Sequence[Window], traces: dict[LayerKind, Trace], kind: LayerKind
) -> tuple[Traced, Sequence[mx.array | None]]:
    views = [window.views[kind.sliding] for window in windows]
    seen = [view.cuts[kind.form] for view in views]
    if kind not in traces or traces[kind][0] != seen:
        # Not the windows themselves, which hold masks.
        slabs = [(window.rows, window.slab_rows, cuts) for window, cuts in zip(windows, seen, strict=True)]
        traces[kind] = seen, mx.compile(partial(_attention, slabs, kind))
    return traces[kind][1], [view.masks[kind.num_heads] for view in views]


def _attention(
    slabs: Sequence[tuple[slice, SlabRows, tuple[Cut, Cut]]],
    kind: LayerKind,
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    masks: Sequence[mx.array | None],
    sinks: mx.array | None,
) -> mx.array:
    pool = Pool(kind.form[0], keys, values)
    parts = [
        attend_in_slab(slab_rows, pool, seen, queries[rows], kind.scale, mask, sinks)
        for (rows, slab_rows, seen), mask in zip(slabs, masks, strict=True)
    ]
    return mx.concatenate(parts)
