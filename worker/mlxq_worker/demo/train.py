"""Command line of the training: `python -m mlxq_worker.demo.train --out DIR`. Took 16 minutes on two busy cores."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlxq_worker.blas import preload_openblas
from mlxq_worker.demo.evaluate import print_report


def main() -> None:
    """Train into a directory, then print the accuracy on held-out examples."""
    parser = argparse.ArgumentParser(description="Train the demo model and write its files.")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    preload_openblas()
    from mlxq_worker.demo.training import train  # imports mlx, which must find OpenBLAS loaded

    train(options.out, options.steps, options.seed)
    print_report(options.out, n=300, seed=0)


if __name__ == "__main__":
    main()
