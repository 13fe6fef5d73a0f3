"""`mlxq bench`: how fast a model is here at one width after another, and what its workers should take.

Draws what `bench_widths` measures, and keeps the proposal where workers look for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from mlxq.cli import options
from mlxq.cli.terminal import say, tell
from mlxq.errors import MlxqError
from mlxq_worker.commands.worker_options import worker_option

if TYPE_CHECKING:
    from mlxq_worker.commands.bench_widths import WidthFigures

BAR = 40
"""Characters of the longest one."""
NO_MATPLOTLIB = "--png needs matplotlib: pip install matplotlib, or mlxq's extra plots"


@click.command(context_settings=options.SETTINGS)
@worker_option("model", default="demo")
@worker_option("adapter_path")
@worker_option("memory_limit_bytes")
@click.option("--max-width", type=click.IntRange(1), default=256, help="The widest batch that is tried.")
@click.option("--prompt-tokens", type=click.IntRange(8), default=128, help="Tokens of each prompt.")
@click.option("--steps", type=click.IntRange(1), default=32, help="Decode steps that are timed at each width.")
@click.option("--seconds", type=click.FloatRange(0), default=120.0, help="No further width is begun after so long.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file, too.")
@click.option("--no-save", is_flag=True, help="Don't keep the proposal for workers of this model on this machine.")
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object instead of a table.")
def bench(
    model: str,
    adapter_path: str | None,
    memory_limit_bytes: int | None,
    max_width: int,
    prompt_tokens: int,
    steps: int,
    seconds: float,
    png: Path | None,
    no_save: bool,
    as_json: bool,
) -> None:
    """Measure a model at widths 1, 2, 4 and so on, and propose what its workers should take.

    The width is how many rows are decoded at once (--max-num-seqs). Widths end where memory does, or where a wider
    batch is clearly slower. `mlxq worker` takes the proposal when it is given no width, and says so.

    Example: mlxq bench --model mlx-community/Qwen3-4B-4bit
    """
    from mlxq_worker.commands import tuning
    from mlxq_worker.commands.bench_widths import proposed

    if png is not None:
        _check_matplotlib()
    try:
        figures = _measure(model, adapter_path, memory_limit_bytes, max_width, prompt_tokens, steps, seconds)
    except MlxqError as error:
        raise click.ClickException(str(error)) from error
    best = proposed(figures)
    proposal = tuning.Tuning(
        model=model,
        max_num_seqs=best.width,
        max_num_batched_tokens=best.step_tokens,
        tokens_per_s=round(best.tokens_per_s, 1),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    if as_json:
        say(json.dumps({"widths": [asdict(each) for each in figures], "proposal": _as_object(proposal)}))
    else:
        Console().print(table_of(figures, best.width))
        say(f"Proposed: {proposal}")
    if png is not None:
        draw(figures, best.width, model, png)
    if not no_save:
        tell(f"Kept for workers of {model} in {tuning.save(model, proposal)}")


def _measure(
    model: str,
    adapter_path: str | None,
    memory_limit_bytes: int | None,
    max_width: int,
    prompt_tokens: int,
    steps: int,
    seconds: float,
) -> list[WidthFigures]:
    from mlxq_worker.backend import load_backend
    from mlxq_worker.commands.bench_widths import Built, measure_all
    from mlxq_worker.config import WorkerConfig

    backend = load_backend(
        WorkerConfig(
            model=model,
            adapter_path=adapter_path,
            memory_limit_bytes=memory_limit_bytes,
            allow_no_eos=True,
            generation_config="off",
        )
    )
    widths = [1 << power for power in range(max_width.bit_length()) if 1 << power <= max_width]
    figures = []
    try:
        for each in measure_all(
            lambda width: Built(*backend.engine_at(width)),
            backend.preparer,
            backend.used_bytes,
            widths,
            prompt_tokens=prompt_tokens,
            num_steps=steps,
            seconds=seconds,
        ):
            tell(f"width {each.width}: {each.tokens_per_s:,.0f} tokens/s")
            figures.append(each)
    finally:
        backend.close()
    return figures


def _as_object(proposal: Any) -> dict[str, Any]:
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(proposal)
    return built


def table_of(figures: Sequence[WidthFigures], chosen: int) -> Table:
    """The figures, with a bar for each rate; the proposed width is marked."""
    table = Table("width", "tokens/s", "", "step", "prefill tokens/s", "memory")
    best = max(each.tokens_per_s for each in figures)
    for each in figures:
        table.add_row(
            f"{each.width}{' *' if each.width == chosen else ''}",
            f"{each.tokens_per_s:,.0f}",
            "█" * max(1, round(BAR * each.tokens_per_s / best)),
            f"{1000 * each.step_s:.1f} ms",
            f"{each.prefill_tokens_per_s:,.0f}",
            f"{each.memory_bytes / 2**20:,.0f} MiB",
        )
    return table


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.UsageError(NO_MATPLOTLIB) from None


def draw(figures: Sequence[WidthFigures], chosen: int, model: str, path: Path) -> None:
    """A picture of tokens per second and of memory, by width."""
    from matplotlib.figure import Figure

    widths = [each.width for each in figures]
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(widths, [each.tokens_per_s for each in figures], marker="o")
    left.axvline(chosen, linestyle=":", label=f"proposed: {chosen}")
    left.set(xlabel="rows at once", ylabel="tokens/s", title=model, xscale="log", xticks=widths, xticklabels=widths)
    left.legend(frameon=False)
    right.plot(widths, [each.memory_bytes / 2**20 for each in figures], marker="o")
    right.set(xlabel="rows at once", ylabel="MiB", title="memory", xscale="log", xticks=widths, xticklabels=widths)
    figure.savefig(path, format="png")
