"""One request, whole process: `mlxq run` beside `mlx_lm.generate` with the same model, from the command to its end.

    python -m tests.bench.startup

Each round starts one of each, in turns; medians over the rounds, and the median of the rounds' ratios. A round before
them isn't counted: it writes byte code and warms the disk's cache. Wall time is what a user waits for, processor time
what it costs, children included. The last line is JSON.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from tests.bench import report

from mlxq_worker.demo import MODEL_PATH

PROMPT = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one process and all that it started."""

    wall_s: float
    cpu_s: float


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODEL_PATH, help="[default: the demo]")
@click.option("--max-tokens", type=click.IntRange(1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@report.json_option
def main(model: Path, max_tokens: int, rounds: int, json_path: Path | None) -> None:
    commands = {"mlxq run": _mlxq_run, "mlx_lm.generate": _mlx_lm_generate}
    took: dict[str, list[Took]] = {name: [] for name in commands}
    for index in range(rounds + 1):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                one = _time(command(model, max_tokens, Path(folder)))
            if index:
                took[name].append(one)
                click.echo(f"{index}: {name} {one.wall_s:.2f} s, of the processors {one.cpu_s:.2f} s")
    medians = {
        name: {
            "wall_s": round(statistics.median(each.wall_s for each in all_of_it), 3),
            "cpu_s": round(statistics.median(each.cpu_s for each in all_of_it), 3),
        }
        for name, all_of_it in took.items()
    }
    ratios = [ours.wall_s / theirs.wall_s for ours, theirs in zip(*took.values(), strict=True)]
    report.publish(
        {"model": model.name, "rounds": rounds, **medians, "ratio": round(statistics.median(ratios), 2)}, json_path
    )


def _mlxq_run(model: Path, max_tokens: int, folder: Path) -> Sequence[str]:
    (folder / "prompts.txt").write_text(f"{PROMPT}\n")
    files = ("-i", str(folder / "prompts.txt"), "-o", str(folder / "answers.jsonl"))
    wants = ("--chat", "--max-tokens", str(max_tokens), "--temperature", "0")
    return (sys.executable, "-m", "mlxq", "run", *files, "--model", str(model), *wants)


def _mlx_lm_generate(model: Path, max_tokens: int, _folder: Path) -> Sequence[str]:
    wants = ("--prompt", PROMPT, "--max-tokens", str(max_tokens), "--temp", "0")
    return (sys.executable, "-m", "mlx_lm.generate", "--model", str(model), *wants)


def _time(command: Sequence[str]) -> Took:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, began = _children_s(), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall_s = time.monotonic() - began
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr}")
    return Took(wall_s, _children_s() - before)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
