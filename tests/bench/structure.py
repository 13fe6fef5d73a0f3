"""What a step costs with rows that are held to a JSON schema: 32 of them, 32 free ones, and 16 of each.

    python -m tests.bench.structure --steps 100

A random Llama over the demo model's tokenizer. With --num-ids its logits and masks are as wide as real models', but the
further ids are no tokens, so the grammar's own work stays that of the demo's. The mixes take turns; figures are medians
over the steps, in milliseconds. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import statistics
import sys
import time
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

import mlx.core as mx
from mlx_lm.models import llama
from rich.console import Console
from rich.table import Table

from mlxq.contract import Request, Sampling, Structure
from mlxq_worker.engine.api import RowId, RowSpec
from mlxq_worker.engine.constraint import Constraint, fill_masks
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.model.load import load_tokenizer_only
from mlxq_worker.text.structure import StructureCompiler

WIDTH = 32
MIXES = {"32 free": 0, "16 + 16": 16, "32 held": 32}
"""How many of the rows are held."""
WARM_UP_STEPS = 10
PROMPT_TOKENS = 64
SCHEMA = {
    "type": "object",
    "properties": {"notes": {"type": "array", "minItems": 100_000, "items": {"type": ["string", "integer"]}}},
    "required": ["notes"],
    "additionalProperties": False,
}
"""An answer that does not come to an end, so that every step has all rows."""


class Bench:
    """One random model and what its rows are held by."""

    def __init__(self, num_ids: int, hidden_size: int, steps: int, seed: int) -> None:
        self._max_tokens = steps + 2 * WARM_UP_STEPS
        described = load_tokenizer_only()
        self.num_ids = max(num_ids, described.vocab_size)
        self._rng = random.Random(seed)
        self._eos_ids = described.eos.ids(chat=True)
        self._compiler = StructureCompiler(described.tokenizer, self._eos_ids, self.num_ids)
        mx.random.seed(seed)
        self._model = llama.Model(_model_args(self.num_ids, hidden_size))
        mx.eval(self._model.parameters())

    def engine(self, num_held: int) -> BatchEngine:
        """An engine whose rows are all in the batch, `num_held` of them held to the schema."""
        engine = BatchEngine(self._model, lambda token_ids: "", max_num_seqs=WIDTH)
        for index in range(WIDTH):
            engine.admit(self._row(index, self._constraint() if index < num_held else None))
        for _ in range(WARM_UP_STEPS):
            report = engine.step(0.0)
        if report.rows_useful != WIDTH:
            raise click.ClickException(f"{report.rows_useful} rows are in the batch, not {WIDTH}: too little memory")
        return engine

    def mask_ms(self, steps: int) -> float:
        """What the masks of `WIDTH` rows take on their own."""
        constraints = [self._constraint() for _ in range(WIDTH)]
        return statistics.median(_ms(lambda: fill_masks(constraints, self.num_ids)) for _ in range(steps))

    def _constraint(self) -> Constraint | None:
        request = Request(
            custom_id="",
            endpoint="/v1/completions",
            sampling=Sampling(),
            content_hash="",
            structure=Structure(kind="json_schema", value=SCHEMA, param="response_format"),
        )
        return self._compiler.constraint(request, self._eos_ids)

    def _row(self, index: int, constraint: Constraint | None) -> RowSpec:
        return RowSpec(
            row_id=RowId(str(index)),
            prompt_ids=tuple(self._rng.choices(range(1000), k=PROMPT_TOKENS)),
            max_tokens=self._max_tokens,
            context_length=PROMPT_TOKENS + self._max_tokens,
            end_tokens={},
            eos_ids=frozenset(),
            seed=self._rng.randrange(1 << 53),
            temperature=0.8,
            constraint=constraint,
        )


def _model_args(num_ids: int, hidden_size: int) -> Any:
    return llama.ModelArgs(
        model_type="llama",
        hidden_size=hidden_size,
        num_hidden_layers=4,
        intermediate_size=2 * hidden_size,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        vocab_size=num_ids,
        tie_word_embeddings=True,
    )


def _ms(action: Any) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def measure(bench: Bench, steps: int) -> dict[str, float]:
    """Median milliseconds of a step, by mix."""
    engines = {name: bench.engine(num_held) for name, num_held in MIXES.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(steps):
        for name, engine in engines.items():
            times[name].append(_ms(lambda engine=engine: engine.step(0.0)))
    return {name: round(statistics.median(each), 3) for name, each in times.items()}


def show(figures: dict[str, float]) -> None:
    table = Table("rows", "ms")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console(stderr=True).print(table)


@click.command()
@click.option("--steps", default=100, show_default=True, help="Steps of each mix.")
@click.option("--num-ids", default=0, show_default=True, help="Ids in the model's vocabulary; at least the demo's.")
@click.option("--hidden-size", default=256, show_default=True, help="Width of the model.")
@click.option("--seed", default=0, show_default=True)
def main(steps: int, num_ids: int, hidden_size: int, seed: int) -> None:
    """Time steps with held and free rows."""
    bench = Bench(num_ids, hidden_size, steps, seed)
    figures = {**measure(bench, steps), "masks of 32 rows": round(bench.mask_ms(steps), 3)}
    show(figures)
    print(json.dumps({"bench": "structure", "num_ids": bench.num_ids, "steps": steps, "seed": seed, "ms": figures}))


if __name__ == "__main__":
    main()
