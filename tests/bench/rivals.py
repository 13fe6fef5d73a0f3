"""The systems that are compared, each a function from (model, workload, width) to what it generated and computed.

All run in this process on the same weights. `row_efficiency` is useful rows over rows computed, counted by the
rival's own steps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mlx_lm.generate import BatchGenerator
from tests.bench.workloads import Item, Workload

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.row import RowSpec

MAX_NUM_BATCHED_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: the tokens of every request in order, seconds, and rows as the decode steps counted them."""

    tokens: tuple[tuple[int, ...], ...]
    seconds: float
    rows_computed: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def row_efficiency(self) -> float:
        return self.num_tokens / self.rows_computed


def run_mlxq(model: Any, workload: Workload, width: int) -> Outcome:
    """Our engine in this process, everything admitted at the start."""
    start = time.perf_counter()
    engine = BatchEngine(model, lambda ids: "", max_num_seqs=width, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS)
    for index, item in enumerate(workload.items):
        engine.admit(row_spec(index, item))
    tokens: dict[str, tuple[int, ...]] = {}
    rows_computed = 0
    while len(tokens) < len(workload.items):
        report = engine.step(time.perf_counter())
        rows_computed += report.rows_computed
        tokens |= {result.row_id: result.token_ids for result in report.finished}
    engine.close()
    ordered = tuple(tokens[str(index)] for index in range(len(workload.items)))
    return Outcome(ordered, time.perf_counter() - start, rows_computed)


def run_batch_generate(model: Any, workload: Workload, width: int) -> Outcome:
    """What `mlx_lm.batch_generate` does, token ids in and out: its `BatchGenerator` fed with everything."""
    start = time.perf_counter()
    tokens, rows_computed = _batch_generator(model, workload.items, width)
    return Outcome(tuple(tokens), time.perf_counter() - start, rows_computed)


def run_static(model: Any, workload: Workload, width: int) -> Outcome:
    """Static batches: the next one starts when the longest row of the last has ended, and every row is computed
    to that length."""
    start = time.perf_counter()
    tokens: list[tuple[int, ...]] = []
    rows_computed = 0
    for group in _groups(workload.items, width):
        longest = max(item.num_tokens for item in group)
        generated, computed = _batch_generator(model, [Item(item.prompt, longest) for item in group], width)
        tokens += [ids[: item.num_tokens] for ids, item in zip(generated, group, strict=True)]
        rows_computed += computed
    return Outcome(tuple(tokens), time.perf_counter() - start, rows_computed)


RIVALS: dict[str, Callable[[Any, Workload, int], Outcome]] = {
    "mlxq_engine": run_mlxq,
    "batch_generate": run_batch_generate,
    "static": run_static,
}


def row_spec(index: int, item: Item) -> RowSpec:
    """The item as a greedy row that no token ends."""
    return RowSpec(
        row_id=str(index),
        prompt_ids=item.prompt,
        max_tokens=item.num_tokens,
        context_length=1 << 20,
        end_tokens={},
        eos_ids=frozenset(),
        seed=0,
    )


def _batch_generator(model: Any, items: Iterable[Item], width: int) -> tuple[list[tuple[int, ...]], int]:
    items = list(items)
    generator = BatchGenerator(model, completion_batch_size=width, prefill_batch_size=min(8, width))
    uids = generator.insert([list(item.prompt) for item in items], [item.num_tokens for item in items])
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    rows_computed = 0
    while responses := generator.next_generated():
        rows_computed += len(responses)
        for response in responses:
            tokens[response.uid].append(response.token)
    generator.close()
    return [tuple(tokens[uid]) for uid in uids], rows_computed


def _groups(items: Iterable[Item], size: int) -> Iterable[list[Item]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
