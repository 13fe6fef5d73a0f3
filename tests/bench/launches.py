"""What a decode step asks of a GPU: our engine beside mlx-lm's BatchGenerator, counted without a GPU.

    python -m tests.bench.launches

For each case the kernels that a step launches for a layer and outside of the layers, the graph primitives behind them,
and the calls of Python functions (`graph_count` says how they are counted); with `--host` also the processor's time
that Python takes for a step at 32 layers, where both sides take turns in one process. Figures of one machine are always
the same, but for the times. The last line is JSON.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import click
import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.sample_utils import make_sampler
from rich.console import Console
from rich.table import Table
from tests.bench import report
from tests.bench.graph_count import Counts, calls_counted, counted, on_a_gpu, timed
from tests.support.tiny_models import build

from mlxq_worker.engine.api import RowId, RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.places import cuts
from mlxq_worker.engine.runners import packed_model

WIDTH = 32
HOST_LAYERS = 32
_MAX_TOKENS = 10_000
_STEADY_STEPS = 3
"""After so many steps of decoding alone those that follow are alike."""
_HOST_STEPS = 60
"""As many as the longest row of a case goes on for in its slab: with two slabs it would be another case."""
_SIZE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
}
"""As small as can be: what is counted doesn't depend on it, but that a token of a long prefix must be worth sharing."""

ModelBuilder = Callable[[int], Any]


def llama(num_layers: int, **changes: Any) -> Any:
    """Every layer attends to everything."""
    return build("llama", num_hidden_layers=num_layers, **{**_SIZE, **changes})


def gemma3(num_layers: int) -> Any:
    """Every other layer attends to a window."""
    window = {"sliding_window": 32, "sliding_window_pattern": 2}
    text = {**_SIZE, **window, "model_type": "gemma3_text", "num_hidden_layers": num_layers, "rms_norm_eps": 1e-5}
    return build("gemma3", text_config=text, vocab_size=_SIZE["vocab_size"])


def lfm2(num_layers: int) -> Any:
    """Every other layer has a convolution in attention's place."""
    changes = {key: value for key, value in _SIZE.items() if key != "head_dim"}
    size = {"block_dim": _SIZE["hidden_size"], "block_ff_dim": _SIZE["intermediate_size"]}
    blocks = {**size, "full_attn_idxs": list(range(1, num_layers, 2))}
    return build("lfm2", num_hidden_layers=num_layers, **changes, **blocks)


@dataclass(frozen=True, slots=True)
class Case:
    """Rows that decode, and with `num_joining` on the step that is counted prompts that join them. Every
    `every`th row begins with `num_shared` tokens that all those share."""

    what: str
    own_tokens: Callable[[int], int]  # of each row's prompt, by its index
    num_shared: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    num_joining: int = 0
    every: int = 1
    build: ModelBuilder = llama
    num_layers: int = 1  # so many layers, and twice as many, are compared: all kinds are among them

    def prompts(self, first: int, num_rows: int) -> list[list[int]]:
        """Prompts of rows `first` and on: what all share, and each row's own tokens."""
        shared = [(7 * i) % 1000 + 1 for i in range(self.num_shared)]
        return [
            (shared if row % self.every == 0 else []) + [(31 * row + i) % 1000 + 1 for i in range(self.own_tokens(row))]
            for row in range(first, first + num_rows)
        ]


def _ragged(row: int) -> int:
    return 20 + 5 * row


CASES: Mapping[str, Case] = {
    "a": Case("equal lengths", lambda row: 16),
    "b": Case("ragged lengths", _ragged),
    "c": Case("two slabs", lambda row: (300 if row % 2 == 0 else 40) + row),
    "d": Case("all share 128 tokens", lambda row: 20 + row, num_shared=128),
    "d long": Case("every other shares 8,192 tokens", lambda row: 20 + row, num_shared=8192, every=2),
    "e": Case("temperature 0.7, top_p 0.9", _ragged, temperature=0.7, top_p=0.9),
    "f": Case("8 prompts join 16 rows", _ragged, num_joining=8, num_layers=2),
    "sliding": Case("gemma3, ragged lengths", _ragged, build=gemma3, num_layers=2),
    "hybrid": Case("lfm2, ragged lengths", _ragged, build=lfm2, num_layers=2),
}


class Side(Protocol):
    """One of the two that are compared, with rows in its batch."""

    def add(self, first: int, num_rows: int) -> None:
        """Give it this many rows of its case."""

    def step(self) -> bool:
        """Have it make a step; says whether all that it did was to give rows their next tokens."""


class Ours:
    """The engine."""

    def __init__(self, new_model: Callable[[], Any], case: Case, width: int) -> None:
        self._case = case
        model = new_model()
        with mock.patch.object(packed_model, "route_quick", return_value=[]):  # as on a GPU
            self._engine = BatchEngine(
                model, lambda ids: "", max_num_seqs=width, max_num_batched_tokens=512, kv_bytes=1 << 33, pipelined=True
            )

    def add(self, first: int, num_rows: int) -> None:
        for index, prompt in enumerate(self._case.prompts(first, num_rows), start=first):
            self._engine.admit(
                RowSpec(
                    row_id=RowId(str(index)),
                    prompt_ids=tuple(prompt),
                    max_tokens=_MAX_TOKENS,
                    context_length=1 << 20,
                    end_tokens={},
                    eos_ids=frozenset(),
                    seed=index,
                    temperature=self._case.temperature,
                    top_p=self._case.top_p,
                )
            )

    def step(self) -> bool:
        return not self._engine.step(0.0).num_prefilled


class Theirs:
    """mlx-lm's BatchGenerator, over a model whose modules are imported for it alone: what ours routes through itself is
    no part of it."""

    def __init__(self, new_model: Callable[[], Any], case: Case, width: int) -> None:
        self._case = case
        shared = {"mlx_lm.models.base", "mlx_lm.models.cache"}  # what is asked for its type must have one
        with mock.patch.dict(sys.modules), mock.patch.object(mlx_lm, "models", mlx_lm.models):
            for name in [name for name in sys.modules if name.startswith("mlx_lm.models") and name not in shared]:
                del sys.modules[name]
            model = new_model()
        self._generator = BatchGenerator(
            model,
            max_tokens=_MAX_TOKENS,
            sampler=make_sampler(case.temperature, case.top_p) if case.temperature else None,
            completion_batch_size=width,
            prefill_batch_size=min(8, width),
        )

    def add(self, first: int, num_rows: int) -> None:
        self._generator.insert(self._case.prompts(first, num_rows))

    def step(self) -> bool:
        prompts, _ = self._generator.next()
        return not prompts


SIDES: Mapping[str, Callable[[Callable[[], Any], Case, int], Side]] = {"mlxq": Ours, "batch_generator": Theirs}


@dataclass(frozen=True, slots=True)
class Figures:
    """Kernels, primitives and Python's calls of a step: for a layer, the mean of all kinds, and outside of the
    layers."""

    launches: float
    launches_outside: float
    primitives: float
    primitives_outside: float
    calls: float
    calls_outside: float

    @classmethod
    def of(cls, small: Counts, large: Counts, num_layers: int) -> Figures:
        """From the counts of a model of so many layers and of one of twice as many."""
        figures = []
        for few, many in (
            (small.launches, large.launches),
            (small.num_primitives, large.num_primitives),
            (small.num_calls, large.num_calls),
        ):
            figures += [(many - few) / num_layers, 2 * few - many]
        return cls(*figures)

    def __str__(self) -> str:
        return f"{self.launches:g}+{self.launches_outside:g}"


def figures_of(side: str, case: Case, width: int = WIDTH) -> Figures:
    """Count a step of one side in steady state; of rows that join, the step that takes them in."""
    few, many = (_counts(side, case, times * case.num_layers, width) for times in (1, 2))
    return Figures.of(few, many, case.num_layers)


def _counts(side_name: str, case: Case, num_layers: int, width: int) -> Counts:
    counts, side = Counts(), SIDES[side_name](lambda: _faint(case.build(num_layers)), case, width)
    with on_a_gpu():
        _settle(side, case, width)
        if not case.num_joining:
            cuts.cache_clear()  # or what another model has left there would save a call
            with calls_counted(counts):
                side.step()
        else:
            side.add(width, case.num_joining)
        with counted(counts):
            side.step()
    return counts


def _faint(model: Any) -> Any:
    """The model with weights so small that nothing overflows, now that nothing is normalised."""
    model.update(tree_map(lambda weight: weight / 100, model.parameters()))
    return model


def _settle(side: Side, case: Case, width: int) -> None:
    side.add(0, width // 2 if case.num_joining else width)
    num_steady = 0
    while num_steady < _STEADY_STEPS:
        num_steady = num_steady + 1 if side.step() else 0


def _wait() -> None:
    """Until nothing computes any more: what the other side has begun would take a share of this one's processor."""
    mx.synchronize()
    mx.synchronize(generation_stream)


@dataclass(frozen=True, slots=True)
class Host:
    """What Python takes on each side for a step of a deep and narrow model.

    Attributes:
        ms: the median of many steps, in ms of the thread's time on a processor.
        ratio: ours to theirs, the median of the ratios of steps one after the other: a processor's speed changes.
    """

    ms: Mapping[str, float]
    ratio: float

    def __str__(self) -> str:
        return f"{' : '.join(f'{own:.2f}' for own in self.ms.values())} = {self.ratio:.2f}"


def host(case: Case, width: int = WIDTH) -> Host:
    """Time Python, the sides taking turns."""
    steps: dict[str, list[float]] = defaultdict(list)
    sides = {name: new_side(partial(_deep, case), case, width) for name, new_side in SIDES.items()}
    with on_a_gpu():
        for side in sides.values():
            _settle(side, case, width)
        for _ in range(_HOST_STEPS):
            for name, side in sides.items():
                _wait()
                counts = Counts()
                with timed(counts):
                    start = time.thread_time()
                    side.step()
                    steps[name].append(time.thread_time() - start - counts.waiting_s)
    ratios = (own / their for own, their in zip(steps["mlxq"], steps["batch_generator"], strict=True))
    ms = {name: round(1000 * statistics.median(own), 3) for name, own in steps.items()}
    return Host(ms, round(statistics.median(ratios), 3))


def _deep(case: Case) -> Any:
    """A model as deep as those that users have, and so narrow that computing it takes no time."""
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    return _faint(case.build(HOST_LAYERS) if case.build is not llama else llama(HOST_LAYERS, **narrow, head_dim=16))


@click.command(help=__doc__)
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="[default: all of them]")
@click.option("--width", type=click.IntRange(1), default=WIDTH, show_default=True)
@click.option("--host", "times_host", is_flag=True, help="Time Python, too.")
@report.json_option
def main(names: tuple[str, ...], width: int, times_host: bool, json_path: Path | None) -> None:
    mx.random.seed(0)
    results: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("case", *SIDES, "primitives", "calls", *(["Python, ms"] if times_host else []))
    table.title = f"launches, width {width}"
    for name in names or CASES:
        case = CASES[name]
        figures = {side: figures_of(side, case, width) for side in SIDES}
        results[name] = {
            side: {slot: round(getattr(own, slot), 2) for slot in Figures.__slots__} for side, own in figures.items()
        }
        primitives = " : ".join(f"{own.primitives:g}+{own.primitives_outside:g}" for own in figures.values())
        calls = " : ".join(f"{own.calls:g}+{own.calls_outside:g}" for own in figures.values())
        cells = [f"{name} {case.what}", *map(str, figures.values()), primitives, calls]
        if times_host and not case.num_joining:
            python = host(case, width)
            for side, own_ms in python.ms.items():
                results[name][side]["host_ms"] = own_ms
            results[name]["mlxq"]["host_ratio"] = python.ratio
            cells.append(str(python))
        table.add_row(*cells)
        print(*cells, file=sys.stderr)
    Console(width=120).print(table)
    report.publish({"width": width, "cases": results}, json_path)


if __name__ == "__main__":
    main()
