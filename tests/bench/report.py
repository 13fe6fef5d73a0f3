"""How a benchmark hands over its figures: as the last line of its output, and in a file where it is asked to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

json_option = click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here, too.")


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """What is said of one system's ratios to another: each taken within a round, where both met the same machine."""
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
    }


def write(figures: dict[str, Any], json_path: Path | None) -> None:
    """Write the figures into the file, if there is to be one."""
    if json_path is not None:
        json_path.write_text(json.dumps(figures) + "\n")


def publish(figures: dict[str, Any], json_path: Path | None) -> None:
    """Print the figures as JSON, after writing them."""
    write(figures, json_path)
    print(json.dumps(figures))
