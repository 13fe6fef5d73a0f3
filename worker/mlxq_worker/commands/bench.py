"""`mlxq bench`: how fast a model is here at one width after another, and what its workers should take.

Draws what `bench_widths` measures, and keeps the proposal where workers look for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console
from rich.table import Table

from mlxq.cli import options
from mlxq.cli.terminal import say, tell
from mlxq_worker.commands.worker_options import worker_option

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlxq_worker.commands.bench_widths import WidthFigures

BAR = 18
"""Characters of the longest one."""
NO_MATPLOTLIB = "--png needs matplotlib: pip install matplotlib, or mlxq's extra plots"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSetting:
    """What is measured: these options of the command, by their names."""

    model: str
    adapter_path: str | None
    memory_limit_bytes: int | None
    wired_limit: int | Literal["auto", "off"] | None
    max_width: int
    prompt_tokens: int
    steps: int
    seconds: float


@click.command(context_settings=options.SETTINGS)
@worker_option("model", default="demo")
@worker_option("adapter_path")
@worker_option("memory_limit_bytes")
@worker_option("wired_limit")
@click.option("--max-width", type=click.IntRange(1), default=256, help="The widest batch that is tried.")
@click.option("--prompt-tokens", type=click.IntRange(8), default=128, help="Tokens of each prompt.")
@click.option("--steps", type=click.IntRange(1), default=32, help="Decode steps that are timed at each width.")
@click.option("--seconds", type=click.FloatRange(0), default=120.0, help="No further width is begun after so long.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file, too.")
@click.option("--no-save", is_flag=True, help="Don't keep the proposal for workers of this model on this machine.")
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object instead of a table.")
def bench(png: Path | None, no_save: bool, as_json: bool, **given: Any) -> None:
    """Measure a model at widths 1, 2, 4 and so on, and propose what its workers should take.

    The width is how many rows are decoded at once (--max-num-seqs). Widths end where memory does, or where a wider
    batch is clearly slower. `mlxq worker` takes the proposal when it is given no width, and says so.

    Example: mlxq bench --model mlx-community/Qwen3-4B-4bit
    """
    from mlxq_worker.commands import tuning
    from mlxq_worker.commands.bench_widths import proposed

    if png is not None:
        _check_png(png)
    setting = BenchSetting(**given)
    figures = _measure(setting)
    best = proposed(figures)
    proposal = tuning.Tuning(
        model=setting.model,
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
    if not no_save:
        with _written("the proposal", tuning.tuning_file(setting.model)):
            tell(f"Kept for workers of {setting.model} in {tuning.save(setting.model, proposal)}")
    if png is not None:
        with _written("the picture", png):
            draw(figures, best.width, setting.model, png)


def _measure(setting: BenchSetting) -> list[WidthFigures]:
    from mlxq_worker.backend import load_backend
    from mlxq_worker.commands.bench_widths import Built, measure_all
    from mlxq_worker.config import WorkerConfig

    backend = load_backend(
        WorkerConfig.from_env(
            os.environ,
            model=setting.model,
            adapter_path=setting.adapter_path,
            memory_limit_bytes=setting.memory_limit_bytes,
            wired_limit=setting.wired_limit,
            allow_no_eos=True,
            generation_config="off",
        )
    )
    figures = []
    try:
        for each in measure_all(
            lambda width: Built(*backend.engine_at(width)),
            backend.preparer,
            backend.used_bytes,
            [1 << power for power in range(setting.max_width.bit_length())],
            prompt_tokens=setting.prompt_tokens,
            num_steps=setting.steps,
            seconds=setting.seconds,
        ):
            tell(f"width {each.width}: {each.tokens_per_s:,.0f} tokens/s")
            figures.append(each)
    finally:
        backend.close()
    return figures


@contextmanager
def _written(what: str, path: Path) -> Iterator[None]:
    """
    Raises:
        ClickException: the file can't be written inside the block.
    """
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{what} can't be written to {path}: {error.strerror or error}") from error


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


def _check_png(path: Path) -> None:
    """Say before minutes are spent on measuring what would keep them from being drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.UsageError(NO_MATPLOTLIB) from None
    if not path.parent.is_dir():
        raise click.UsageError(f"--png: there is no directory {path.parent}")


def draw(figures: Sequence[WidthFigures], chosen: int, model: str, path: Path) -> None:
    """A picture of tokens per second and of memory, by width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot(left, figures, [each.tokens_per_s for each in figures], "tokens/s", model)
    left.axvline(chosen, linestyle=":", label=f"proposed: {chosen}")
    left.legend(frameon=False)
    _plot(right, figures, [each.memory_bytes / 2**20 for each in figures], "MiB", "memory")
    figure.savefig(path, format="png")


def _plot(axes: Axes, figures: Sequence[WidthFigures], values: Sequence[float], unit: str, title: str) -> None:
    widths = [each.width for each in figures]
    axes.plot(widths, values, marker="o")
    axes.set(xlabel="rows at once", ylabel=unit, ylim=(0, None), xscale="log", xticks=widths, xticklabels=widths)
    axes.minorticks_off()  # between a few widths they would be labelled
    axes.set_title(title, parse_math=False)  # a path may have dollars in it
