"""What a decode step asks of a GPU: our engine beside mlx-lm's BatchGenerator, counted without a GPU.

    python -m tests.bench.launches

For each case the kernels that a step launches for a layer and outside of the layers, and the graph primitives behind
them (`graph_count` says how they are counted); with `--host` also what Python takes a step at 32 layers. Figures of one
machine and seed are always the same, but for the times. The last line is JSON.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler
from rich.console import Console
from rich.table import Table
from tests.bench import report
from tests.bench.graph_count import Counts, counted, on_a_gpu, timed
from tests.support.tiny_models import build

from mlxq_worker.engine.api import RowId, RowSpec
from mlxq_worker.engine.engine import BatchEngine

WIDTH = 32
LAYERS = 4
HOST_LAYERS = 32
_MAX_TOKENS = 10_000
_SETTLING_STEPS = 24
_HOST_STEPS = 60
_SIZE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 16384,
}

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
    blocks = {"block_dim": 256, "block_ff_dim": 512, "full_attn_idxs": list(range(1, num_layers, 2))}
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
    "f": Case("8 prompts join 16 rows", _ragged, num_joining=8),
    "sliding": Case("gemma3, ragged lengths", _ragged, build=gemma3),
    "hybrid": Case("lfm2, ragged lengths", _ragged, build=lfm2),
}


class Side(Protocol):
    """One of the two that are compared, with rows in its batch."""

    def add(self, first: int, num_rows: int) -> None:
        """Give it this many rows of its case."""

    def step(self) -> object:
        """Have it make a step."""


class Ours:
    """The engine."""

    def __init__(self, model: Any, case: Case, width: int) -> None:
        self._case = case
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

    def step(self) -> object:
        return self._engine.step(0.0)


class Theirs:
    """mlx-lm's BatchGenerator."""

    def __init__(self, model: Any, case: Case, width: int) -> None:
        self._case = case
        self._generator = BatchGenerator(
            model,
            max_tokens=_MAX_TOKENS,
            sampler=make_sampler(case.temperature, case.top_p) if case.temperature else None,
            completion_batch_size=width,
            prefill_batch_size=min(8, width),
        )

    def add(self, first: int, num_rows: int) -> None:
        self._generator.insert(self._case.prompts(first, num_rows))

    def step(self) -> object:
        return self._generator.next()


SIDES: Mapping[str, Callable[[Any, Case, int], Side]] = {"mlxq": Ours, "batch_generator": Theirs}


@dataclass(frozen=True, slots=True)
class Figures:
    """Kernels and primitives of a step: for a layer, the mean of all kinds, and outside of the layers."""

    launches: float
    launches_outside: float
    primitives: float
    primitives_outside: float

    @classmethod
    def of(cls, small: Counts, large: Counts) -> Figures:
        """From the counts of a model of `LAYERS` layers and of one of twice as many."""
        launches = (large.launches - small.launches) / LAYERS
        primitives = (large.num_primitives - small.num_primitives) / LAYERS
        return cls(
            launches,
            small.launches - LAYERS * launches,
            primitives,
            small.num_primitives - LAYERS * primitives,
        )

    def __str__(self) -> str:
        return f"{self.launches:g}+{self.launches_outside:g}"


def figures_of(side: str, case: Case, width: int = WIDTH) -> Figures:
    """Count a step of one side in steady state; of rows that join, the step that takes them in."""
    small, large = (_counts(SIDES[side], case, num_layers, width) for num_layers in (LAYERS, 2 * LAYERS))
    return Figures.of(small, large)


def _counts(new_side: Callable[[Any, Case, int], Side], case: Case, num_layers: int, width: int) -> Counts:
    counts, side = Counts(), new_side(_faint(case.build(num_layers)), case, width)
    with on_a_gpu(counts):
        _settle(side, case, width)
        if case.num_joining:
            side.add(width, case.num_joining)
        counts.launches = 0
        with counted(counts):
            side.step()
    return counts


def _faint(model: Any) -> Any:
    """The model with weights so small that nothing overflows, now that nothing is normalised."""
    model.update(tree_map(lambda weight: weight / 100, model.parameters()))
    return model


def _settle(side: Side, case: Case, width: int) -> None:
    side.add(0, width // 2 if case.num_joining else width)
    for _ in range(_SETTLING_STEPS):
        side.step()


def host_ms(side: str, case: Case, width: int = WIDTH) -> float:
    """What Python takes for a step of a deep and narrow model, in ms: the median of many steps."""
    narrow = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}
    settled, steps = SIDES[side](_faint(llama(HOST_LAYERS, **narrow, vocab_size=1024)), case, width), []
    with on_a_gpu(Counts()):
        _settle(settled, case, width)
        for _ in range(_HOST_STEPS):
            counts = Counts()
            with timed(counts):
                start = time.perf_counter()
                settled.step()
                steps.append(time.perf_counter() - start - counts.waiting_s)
    return round(1000 * statistics.median(steps), 3)


@click.command(help=__doc__)
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="[default: all of them]")
@click.option("--width", type=click.IntRange(1), default=WIDTH, show_default=True)
@click.option("--host", is_flag=True, help="Time Python, too.")
@report.json_option
def main(names: tuple[str, ...], width: int, host: bool, json_path: Path | None) -> None:
    mx.random.seed(0)
    results: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("case", *SIDES, "primitives", *(["Python, ms"] if host else []), title=f"launches, width {width}")
    for name in names or CASES:
        case = CASES[name]
        figures = {side: figures_of(side, case, width) for side in SIDES}
        results[name] = {
            side: {slot: round(getattr(own, slot), 2) for slot in Figures.__slots__} for side, own in figures.items()
        }
        primitives = " : ".join(f"{own.primitives:g}+{own.primitives_outside:g}" for own in figures.values())
        cells = [f"{name} {case.what}", *map(str, figures.values()), primitives]
        if host and case.build is llama and not case.num_joining:
            for side in SIDES:
                results[name][side]["host_ms"] = host_ms(side, case, width)
            cells.append(" : ".join(f"{results[name][side]['host_ms']:.2f}" for side in SIDES))
        table.add_row(*cells)
        print(*cells, file=sys.stderr)
    Console(width=120).print(table)
    report.publish({"width": width, "layers": LAYERS, "cases": results}, json_path)


if __name__ == "__main__":
    main()
