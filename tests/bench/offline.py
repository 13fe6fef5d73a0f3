"""What `LLM.generate` costs beside the engine alone: tokens per second of both, in turns, on one model in one process.

    python -m tests.bench.offline --workload uniform --requests 256

The engine gets rows that are ready and gives tokens back. `LLM.generate` gets the same prompts as token ids with a
`SamplingParams` each, reads and prepares them, and gives texts and outputs back. Both have run before the clock starts,
and an engine of its own is built for each round outside it. The ratio is that of `LLM.generate` to the engine, within a
round. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from tests.bench import report
from tests.bench.in_process import BenchModel, play, row_spec
from tests.bench.models import SIZES, write_model
from tests.bench.workloads import WORKLOADS, Item

from mlxq import LLM, SamplingParams
from mlxq_worker.engine.engine import BatchEngine


@click.command(help=__doc__)
@click.option("--workload", "name", type=click.Choice(list(WORKLOADS)), default="uniform", show_default=True)
@click.option("--model", "size", type=click.Choice(list(SIZES)), default="6m", show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--requests", type=click.IntRange(1), help="Cut the workload to so many requests.")
@click.option("--seed", type=int, default=7, show_default=True)
@report.json_option
def main(name: str, size: str, width: int, runs: int, requests: int | None, seed: int, json_path: Path | None) -> None:
    workload = WORKLOADS[name](random.Random(seed)).first(requests)
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(size, Path(folder))
        bench = BenchModel.load(path)
        llm = LLM(str(path), max_num_seqs=width)
    rates: dict[str, list[float]] = {"engine": [], "llm": []}
    for number in range(runs + 1):
        items = workload.items if number else workload.first(2 * width).items
        seconds, tokens = _engine(bench, items, width)
        llm_seconds, llm_tokens = _llm(llm, items)
        assert llm_tokens == tokens, "the answers differ"
        if number:
            num_tokens = sum(map(len, tokens))
            rates["engine"].append(num_tokens / seconds)
            rates["llm"].append(num_tokens / llm_seconds)
    ratios = [ours / alone for ours, alone in zip(rates["llm"], rates["engine"], strict=True)]
    figures = {
        "model": size,
        "width": width,
        "workload": name,
        "requests": len(workload.items),
        "tokens_per_s": {system: round(median(values), 1) for system, values in rates.items()},
        **report.spread(ratios),
    }
    report.publish(figures, json_path)


def _engine(bench: BenchModel, items: tuple[Item, ...], width: int) -> tuple[float, list[tuple[int, ...]]]:
    engine = BatchEngine(bench.model, bench.text, max_num_seqs=width)
    specs = [row_spec(index, item) for index, item in enumerate(items)]
    start = time.perf_counter()
    generated = play(engine, specs)
    return time.perf_counter() - start, generated.tokens


def _llm(llm: LLM, items: tuple[Item, ...]) -> tuple[float, list[tuple[int, ...]]]:
    prompts = [{"prompt_token_ids": item.prompt} for item in items]
    params = [
        SamplingParams(
            temperature=item.sampling.temperature,
            top_p=item.sampling.top_p,
            top_k=item.sampling.top_k,
            min_p=item.sampling.min_p,
            seed=item.sampling.seed,
            max_tokens=item.num_tokens,
            ignore_eos=True,
        )
        for item in items
    ]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return seconds, [tuple(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main()
