"""Draws the benchmarks' JSON files as one picture for docs/performance.md.

    python -m tests.bench.plot 6m.json 40m.json --widths widths.json -o throughput.svg

One panel for each run of the suite: each workload's tokens per second as multiples of `mlx_lm.batch_generate`'s. On the
right the decode step by width, with the bare forward pass as the limit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SHOWN = {"mlxq_run": "mlxq run, queue and files included", "mlxq_engine": "mlxq's engine alone"}
INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(help=__doc__)
@click.argument("suites", type=INPUT, nargs=-1, required=True)
@click.option("--widths", type=INPUT, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(suites: tuple[Path, ...], widths: Path, output: Path) -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mlxq"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(5 * len(suites) + 4, 4.2), layout="constrained")
    *left, right = figure.subplots(1, len(suites) + 1)
    for axes, suite in zip(left, suites, strict=True):
        draw_ratios(axes, json.loads(suite.read_text()))
    left[0].legend(frameon=False)
    draw_widths(right, json.loads(widths.read_text()))
    figure.savefig(output, metadata={"Date": None})


def draw_ratios(axes: Axes, report: dict[str, Any]) -> None:
    """Horizontal bars, one group for each workload, with the lowest and highest round as whiskers."""
    names = [name for name, systems in report["workloads"].items() if SHOWN.keys() <= systems.keys()]
    height = 0.8 / len(SHOWN)
    for place, (system, label) in enumerate(SHOWN.items()):
        figures = [report["workloads"][name][system] for name in names]
        ratios = [figure["ratio"] for figure in figures]
        spread = [
            [figure["ratio"] - figure["ratio_low"] for figure in figures],
            [figure["ratio_high"] - figure["ratio"] for figure in figures],
        ]
        bars = [index + place * height for index in range(len(names))]
        axes.barh(bars, ratios, height, xerr=spread, label=label, error_kw={"elinewidth": 0.8})
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([index + height / 2 for index in range(len(names))], [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second, as multiples of mlx_lm.batch_generate's")
    axes.set_title(f"model {report['model']}, {report['width']} rows")


def draw_widths(axes: Axes, report: dict[str, Any]) -> None:
    """Two lines over the width, both axes logarithmic."""
    widths = [figure["width"] for figure in report["widths"]]
    for name, label in (("bare_tokens_per_s", "bare forward pass"), ("engine_tokens_per_s", "mlxq's decode step")):
        axes.plot(widths, [figure[name] for figure in report["widths"]], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set_xlabel("rows decoded together")
    axes.set_ylabel("tokens per second")
    axes.set_title(f"decode step, model {report['model']}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
