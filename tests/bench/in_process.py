"""The systems that run in the benchmark's own process, on one model: our engine, and mlx-lm's batching in three ways.

Each is a function from (bench model, workload, width) to an `Outcome`. Everything is handed over at the start, as token
ids, and no end token is in force.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from tests.bench.outcome import Outcome
from tests.bench.workloads import GREEDY, Item, Workload
from tests.support.row_specs import name_of

from mlxq_worker.engine.api import RowId, RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import MAX_CACHE_BYTES

mx.set_cache_limit(MAX_CACHE_BYTES)  # as workers do: MLX's own is 32 MiB on a CPU

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model on disk, loaded once for all systems in this process."""

    path: Path
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, path: Path) -> BenchModel:
        model, tokenizer = mlx_lm.load(str(path))[:2]
        tokenizer.eos_token_ids = None
        return cls(path, model, tokenizer)

    def text(self, token_ids: Sequence[int]) -> str:
        """What a worker makes of these tokens."""
        decoded: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of every item in order, and how many rows the decode steps computed for them."""

    tokens: list[TokenIds]
    rows_computed: int


def run_engine(bench: BenchModel, workload: Workload, width: int) -> Outcome:
    """Our engine, without a queue, on a model of its own: nobody else gains by how it lays weights out."""
    others_bytes = mx.get_active_memory()
    own = BenchModel.load(bench.path)
    outcome = _outcome(own, workload, lambda: generate_with_engine(own.model, workload.items, width))
    assert outcome.peak_bytes is not None
    return replace(outcome, peak_bytes=outcome.peak_bytes - others_bytes)


def run_batch_generate(bench: BenchModel, workload: Workload, width: int) -> Outcome:
    """What `mlx_lm.batch_generate` does: its `BatchGenerator` fed with everything."""
    return _outcome(bench, workload, lambda: generate_with_batch_generator(bench.model, workload.items, width))


def run_with_caches(bench: BenchModel, workload: Workload, width: int) -> Outcome:
    """A `BatchGenerator` whose user found what all prompts begin with, and hands each a prompt cache that holds it."""
    return _outcome(bench, workload, lambda: _with_caches(bench.model, workload, width))


def run_static(bench: BenchModel, workload: Workload, width: int) -> Outcome:
    """Static batches: the next one starts when the longest row of the last has ended, and every row is computed
    to that length."""
    return _outcome(bench, workload, lambda: _static(bench.model, workload.items, width))


IN_PROCESS: dict[str, Callable[[BenchModel, Workload, int], Outcome]] = {
    "mlxq_engine": run_engine,
    "batch_generate": run_batch_generate,
    "batch_generator_with_caches": run_with_caches,
    "static_batches": run_static,
}


def row_spec(index: int, item: Item) -> RowSpec:
    """The item as a row that no token ends."""
    return RowSpec(
        row_id=RowId(str(index)),
        prompt_ids=item.prompt,
        max_tokens=item.num_tokens,
        context_length=1 << 20,
        end_tokens={},
        eos_ids=frozenset(),
        **asdict(item.sampling),
    )


def play(engine: BatchEngine, specs: Sequence[RowSpec]) -> Generated:
    """Run all rows through an engine, and close it."""
    for spec in specs:
        engine.admit(spec)
    tokens: dict[str, TokenIds] = {}
    rows_computed = 0
    while len(tokens) < len(specs):
        report = engine.step(time.perf_counter())
        rows_computed += report.rows_computed
        tokens |= {name_of(result.row_id): result.token_ids for result in report.finished}
    engine.close()
    return Generated([tokens[name_of(spec.row_id)] for spec in specs], rows_computed)


def _outcome(bench: BenchModel, workload: Workload, generate: Callable[[], Generated]) -> Outcome:
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    generated = generate()
    seconds = time.perf_counter() - start
    answers = tuple(map(bench.text, generated.tokens))
    return Outcome(answers, workload.num_tokens, seconds, generated.rows_computed, mx.get_peak_memory())


def generate_with_engine(model: Any, items: Sequence[Item], width: int) -> Generated:
    engine = BatchEngine(model, lambda ids: "", max_num_seqs=width)
    return play(engine, [row_spec(index, item) for index, item in enumerate(items)])


def generate_with_batch_generator(
    model: Any, items: Iterable[Item], width: int, caches: Sequence[list[Any]] | None = None
) -> Generated:
    items = list(items)
    generator = BatchGenerator(model, completion_batch_size=width, prefill_batch_size=min(8, width))
    uids = generator.insert(
        [list(item.prompt) for item in items],
        [item.num_tokens for item in items],
        caches=caches,
        samplers=None if all(item.sampling == GREEDY for item in items) else [_sampler(item) for item in items],
    )
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    rows_computed = 0
    while responses := generator.next_generated():
        rows_computed += len(responses)
        for response in responses:
            tokens[response.uid].append(response.token)
    generator.close()
    return Generated([tuple(tokens[uid]) for uid in uids], rows_computed)


def _sampler(item: Item) -> Callable[[mx.array], mx.array]:
    sampling = item.sampling
    sampler: Callable[[mx.array], mx.array] = make_sampler(
        sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p
    )
    return sampler


def _with_caches(model: Any, workload: Workload, width: int) -> Generated:
    shared = workload.shared_length
    prefix_cache = make_prompt_cache(model)
    if shared:
        model(mx.array([workload.items[0].prompt[:shared]]), cache=prefix_cache)
        mx.eval([cache.state for cache in prefix_cache])
    # The generator doesn't write to the caches that it is given, so all rows can hold the same one.
    rest = [replace(item, prompt=item.prompt[shared:]) for item in workload.items]
    return generate_with_batch_generator(model, rest, width, [prefix_cache] * len(rest) if shared else None)


def _static(model: Any, items: Sequence[Item], width: int) -> Generated:
    tokens: list[TokenIds] = []
    rows_computed = 0
    for start in range(0, len(items), width):
        group = items[start : start + width]
        longest = max(item.num_tokens for item in group)
        generated = generate_with_batch_generator(model, [replace(item, num_tokens=longest) for item in group], width)
        tokens += [ids[: item.num_tokens] for ids, item in zip(generated.tokens, group, strict=True)]
        rows_computed += generated.rows_computed
    return Generated(tokens, rows_computed)
