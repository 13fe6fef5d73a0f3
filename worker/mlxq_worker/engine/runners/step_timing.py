"""Times the forward pass of a packed model at a number of tokens, for whoever chooses how many a step takes.

A step of some tokens takes what it takes; which are timed, and what follows from it, is `scheduling/step_size`'s.
On a CPU the machine may have other work, which makes steps longer by the clock, though not by what they had of the
processors. That in turn is more than their length where several threads compute. So the lesser of the two counts.
"""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.slot_allocator import SlotAllocator
from mlxq_worker.engine.runners.packed_model import PackedModel, Way
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span

_PROMPT_TOKENS = 64
_LONG_STEP_S = 0.1
"""A step of this length is timed once: what disturbs short ones hardly shows in it."""


def step_seconds(model: Any, way: Way, num_tokens: int, num_rows: int) -> float:
    """Seconds that a step of `model` takes for so many tokens of prompts, `num_rows` of which get a token.

    After a first step, which also allocates and has kernels compiled for its shapes: the fastest of two, if they are
    short, since each may be disturbed.
    """
    packed, slots = PackedModel(model, way), SlotAllocator[int]()
    lengths = {start: min(_PROMPT_TOKENS, num_tokens - start) for start in range(0, num_tokens, _PROMPT_TOKENS)}
    packed.arrange(slots.arrange(lengths))
    layout = Layout([], [Span(slots[start], 0, length, row=row) for row, (start, length) in enumerate(lengths.items())])
    _step_seconds(packed, layout, num_tokens, num_rows)
    seconds = _step_seconds(packed, layout, num_tokens, num_rows)
    if seconds < _LONG_STEP_S:
        seconds = min(seconds, _step_seconds(packed, layout, num_tokens, num_rows))
    return seconds


def _step_seconds(packed: PackedModel, layout: Layout, num_tokens: int, num_rows: int) -> float:
    start, cpu_start = time.perf_counter(), time.process_time()
    hidden = packed.hidden(mx.zeros((num_tokens,), mx.uint32), layout)
    mx.eval(packed.logits(hidden[:num_rows]))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return seconds if device.is_gpu() else min(seconds, cpu_seconds)
