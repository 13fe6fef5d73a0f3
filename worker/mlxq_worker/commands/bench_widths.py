"""Measures an engine at one width after another: decode steps, prefill speed and memory; and says which to take.

Times what it is given and proposes by plain arithmetic. Saves nothing and prints nothing.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlxq.errors import RequestError
from mlxq.requests.openai import parse_object
from mlxq_worker.engine.api import Engine, RowSpec
from mlxq_worker.messages import Preparer

GOOD_ENOUGH = 0.95
"""Of the best rate: a wider batch makes each row slower, and takes more memory."""
WORSE = 0.9
"""Below so much of the best rate, a width is clearly worse."""
FIRST_ID, LAST_ID = 3, 60
"""Token ids that every vocabulary has."""


@dataclass(frozen=True, slots=True)
class Built:
    """An engine of some width, and what is known of its step size: `None` where nothing had to be measured."""

    engine: Engine
    step_tokens: Callable[[], int | None]


@dataclass(frozen=True, slots=True)
class WidthFigures:
    """One width. Rates are tokens per second; `step_s` is a decode step's median, in seconds; `memory_bytes` what the
    process took with all its rows."""

    width: int
    tokens_per_s: float
    prefill_tokens_per_s: float
    step_s: float
    memory_bytes: int
    step_tokens: int | None


def measure_all(
    build: Callable[[int], Built],
    preparer: Preparer,
    used_bytes: Callable[[], int],
    widths: Sequence[int],
    *,
    prompt_tokens: int,
    num_steps: int,
    seconds: float,
) -> Iterator[WidthFigures]:
    """Each width, until rows don't fit any more, two in a row are clearly worse, or the time is up; one in any case.

    Raises:
        RequestError: not even one row fits.
    """
    began, best, num_worse = time.monotonic(), 0.0, 0
    for width in widths:
        measured = _measure(build(width), preparer, used_bytes, width, prompt_tokens, num_steps)
        if measured is None:
            return
        yield measured
        best = max(best, measured.tokens_per_s)
        num_worse = num_worse + 1 if measured.tokens_per_s < WORSE * best else 0
        if num_worse == 2 or time.monotonic() - began > seconds:
            return


def proposed(figures: Sequence[WidthFigures]) -> WidthFigures:
    """The narrowest width that is about as fast as the fastest."""
    best = max(each.tokens_per_s for each in figures)
    return min((each for each in figures if each.tokens_per_s >= GOOD_ENOUGH * best), key=lambda each: each.width)


def _measure(
    built: Built, preparer: Preparer, used_bytes: Callable[[], int], width: int, prompt_tokens: int, num_steps: int
) -> WidthFigures | None:
    """`None` if so many rows don't fit."""
    engine = built.engine
    try:
        warm = _admit(engine, preparer, width, prompt_tokens, 2, "warm")
        while warm:  # the first steps load kernels, and measure which size of a step is best
            warm -= len(engine.step(time.monotonic()).finished)
        try:
            _admit(engine, preparer, width, prompt_tokens, 4 * num_steps + 2 * width, "row")
        except RequestError:
            if width == 1:
                raise
            return None
        prefilled, began = 0, time.perf_counter()
        while True:
            report = engine.step(time.monotonic())
            prefilled += report.num_prefilled
            if not report.num_prefilled:
                break
        prefill_s = time.perf_counter() - began
        if report.num_waiting or report.num_running < width:
            return None
        seconds = [_timed(engine) for _ in range(num_steps)]
        return WidthFigures(
            width=width,
            tokens_per_s=width / statistics.median(seconds),
            prefill_tokens_per_s=prefilled / prefill_s,
            step_s=statistics.median(seconds),
            memory_bytes=used_bytes(),
            step_tokens=built.step_tokens(),
        )
    finally:
        engine.close()


def _timed(engine: Engine) -> float:
    began = time.perf_counter()
    engine.step(time.monotonic())
    return time.perf_counter() - began


def _admit(engine: Engine, preparer: Preparer, width: int, prompt_tokens: int, max_tokens: int, name: str) -> int:
    """Rows with prompts that have nothing in common, which no end token ends; returns how many."""
    draw = random.Random(f"{name}-{width}")
    for index in range(width):
        ids = [draw.randint(FIRST_ID, LAST_ID) for _ in range(prompt_tokens)]
        for spec in _rows(preparer, f"{name}-{index}", ids, max_tokens):
            engine.admit(spec)
    return width


def _rows(preparer: Preparer, name: str, ids: list[int], max_tokens: int) -> tuple[RowSpec, ...]:
    body = {"prompt": ids, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return preparer.prepare(parse_object({"body": body}, default_custom_id=name).request, name)
