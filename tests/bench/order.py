"""What the order of rows saves: prompt tokens computed where many share a few prefixes, and steps with longest-first.

    python -m tests.bench.order

Rows go through the decode loop of a worker, which is given another request for each that ends, so that it holds
`claim_ahead` times its width of them, as from a queue (0 stands for all at once).

Prefixes: 400 requests over eight prefixes of 512 tokens, interleaved, with memory for two prefixes. The optimum
computes each prefix once. Lengths: 240 requests, every eighth with a long prompt and a long answer, without and with
longest-first. Both are seeded, and the counts are the same on every machine. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from tests.support.row_specs import row_spec
from tests.support.tiny_models import VOCAB_SIZE, build

from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.engine.api import RowSpec, StepReport
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import measure_cost
from mlxq_worker.messages import Admit, Channel
from mlxq_worker.step_watch import StepWatch

WIDTH = 32
NUM_REQUESTS = 400
NUM_PREFIXES = 8
PREFIX_TOKENS = 512
NUM_PREFIXES_KEPT = 2
NUM_LENGTHS = 240
LONG_EVERY = 8


@dataclass(frozen=True, slots=True)
class Counts:
    """What came of a run. `fill` is the share of the batch's rows that decoded, over all steps."""

    prompt_tokens: int
    steps: int
    fill: float
    seconds: float


class CountingEngine(BatchEngine):
    """Keeps the reports of its steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reports: list[StepReport] = []

    def step(self, now: float) -> StepReport:
        self.reports.append(super().step(now))
        return self.reports[-1]


@click.command(help=__doc__)
@click.option("--seed", default=0, show_default=True)
@click.option("--claim-ahead", "multiples", multiple=True, type=int, default=(2, 4, 8, 16, 0), show_default=True)
def main(seed: int, multiples: Sequence[int]) -> None:
    prefixes, lengths = prefix_requests(seed), length_requests(seed)
    optimum = NUM_PREFIXES * PREFIX_TOKENS + sum(len(spec.prompt_ids) - PREFIX_TOKENS for spec in prefixes)
    report: dict[str, Any] = {
        "seed": seed,
        "width": WIDTH,
        "prefix_tokens": {
            "optimum": optimum,
            "unshared": sum(len(spec.prompt_ids) for spec in prefixes),
            **{ahead: through_loop(prefixes, int(ahead)).prompt_tokens for ahead in map(str, multiples)},
        },
        "lengths": {
            ahead: {
                order: counts_of(through_loop(lengths, int(ahead), longest_first=order == "longest_first"))
                for order in ("first_come", "longest_first")
            }
            for ahead in map(str, multiples)
        },
    }
    print(json.dumps(report))


def counts_of(counts: Counts) -> dict[str, float]:
    return {"steps": counts.steps, "fill": round(counts.fill, 3), "s": round(counts.seconds, 2)}


def prefix_requests(seed: int) -> list[RowSpec]:
    """Request i begins with prefix i modulo eight and goes on by itself."""
    chance = random.Random(seed)
    prefixes = [tuple(chance.choices(range(VOCAB_SIZE), k=PREFIX_TOKENS)) for _ in range(NUM_PREFIXES)]
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=(*prefixes[index % NUM_PREFIXES], *chance.choices(range(VOCAB_SIZE), k=chance.randint(8, 40))),
            max_tokens=chance.randint(4, 24),
        )
        for index in range(NUM_REQUESTS)
    ]


def length_requests(seed: int) -> list[RowSpec]:
    """Every eighth request is long, and the last of them comes last."""
    chance = random.Random(seed)
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=tuple(chance.choices(range(VOCAB_SIZE), k=chance.randint(*prompt))),
            max_tokens=chance.randint(*answer),
        )
        for index in range(NUM_LENGTHS)
        for prompt, answer in [((400, 800), (150, 250)) if index % LONG_EVERY == LONG_EVERY - 1 else ((8, 60), (8, 60))]
    ]


def through_loop(specs: Sequence[RowSpec], claim_ahead: int, *, longest_first: bool = False) -> Counts:
    """Answer the requests by a decode loop that holds so many times its width of them."""
    model = build("llama", max_position_embeddings=2048)
    engine = CountingEngine(
        model,
        lambda token_ids: "",
        max_num_seqs=WIDTH,
        max_prefix_bytes=NUM_PREFIXES_KEPT * PREFIX_TOKENS * measure_cost(model).bytes_per_token,
        longest_first=longest_first,
    )
    channel = Channel.open()
    loop = DecodeLoop(lambda: engine, channel, WIDTH, StepWatch(3600.0))
    todo = list(reversed(specs))
    room = claim_ahead * WIDTH or len(specs)
    started = time.perf_counter()
    while todo or not loop.is_idle:
        while todo and room > 0:
            channel.to_decode.put(Admit((todo.pop(),)))
            room -= 1
        loop.receive(0.0)
        loop.turn(time.monotonic())
        room += sum(hasattr(message, "result") for message in messages(channel))
    seconds = time.perf_counter() - started
    steps = [report for report in engine.reports if report.rows_computed or report.num_prefilled]
    return Counts(
        prompt_tokens=sum(report.num_prefilled for report in steps),
        steps=len(steps),
        fill=sum(report.rows_computed for report in steps) / (WIDTH * len(steps)),
        seconds=seconds,
    )


def messages(channel: Channel) -> Iterator[object]:
    try:
        while True:
            yield channel.to_io.get_nowait()
    except Empty:
        return


if __name__ == "__main__":
    main()
