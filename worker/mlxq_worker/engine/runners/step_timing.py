"""Times the forward pass of a packed model at several numbers of tokens, to choose how many a step takes.

Takes a handful of steps, once, when the first engine is built: about a second for a model of 40M parameters on a
CPU. The decision is `scheduling/step_size`'s.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import mlx.core as mx

from mlxq_worker.engine.kvcache.slot_allocator import SlotAllocator
from mlxq_worker.engine.runners.layout import Layout, Span
from mlxq_worker.engine.runners.packed import PackedModel
from mlxq_worker.engine.scheduling.step_size import StepTiming, choose_size, first_size, next_size

log = logging.getLogger(__name__)

_PROMPT_TOKENS = 64
_MAX_SECONDS = 1.0
_LONG_STEP_S = 0.1
"""A step of this length is timed once: what disturbs short ones hardly shows in it."""


def measure_step_size(model: Any, num_rows: int) -> int:
    """How many tokens a step of `model` should take beside up to `num_rows` decoding rows."""
    start = time.perf_counter()
    _time(model, num_rows, num_rows)  # the very first step loads weights and kernels, too
    decode = _time(model, num_rows, num_rows)
    timings = [_time(model, first_size(num_rows), num_rows)]
    while (size := next_size(decode, timings)) and time.perf_counter() - start < _MAX_SECONDS:
        timings.append(_time(model, size, num_rows))
    chosen = choose_size(decode, timings)
    log.info("a step takes up to %d tokens: %s", chosen, ", ".join(map(str, (decode, *timings))))
    return chosen


def _time(model: Any, num_tokens: int, num_rows: int) -> StepTiming:
    """The fastest of three steps, if they are short: the first also allocates, and each may be disturbed."""
    packed, slots = PackedModel(model), SlotAllocator[int]()
    lengths = {start: min(_PROMPT_TOKENS, num_tokens - start) for start in range(0, num_tokens, _PROMPT_TOKENS)}
    packed.arrange(slots.arrange(lengths))
    layout = Layout([], [Span(slots[start], 0, length) for start, length in lengths.items()])
    seconds = _step_seconds(packed, layout, num_tokens, num_rows)
    if seconds < _LONG_STEP_S:
        seconds = min(seconds, *(_step_seconds(packed, layout, num_tokens, num_rows) for _ in range(2)))
    return StepTiming(num_tokens, seconds)


def _step_seconds(packed: PackedModel, layout: Layout, num_tokens: int, num_rows: int) -> float:
    start = time.perf_counter()
    hidden = packed.hidden(mx.zeros((num_tokens,), mx.uint32), layout)
    mx.eval(packed.logits(hidden[:num_rows]))
    return time.perf_counter() - start
