"""What `pip install mlxq` leaves out is asked for once, by its name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.support.processes import MLXQ, run


def without(package: str, folder: Path) -> str:
    """A PYTHONPATH on which the package can't be found."""
    (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError('not here', name={package!r})\n")
    return os.pathsep.join(filter(None, (str(folder), *sys.path)))


@pytest.mark.parametrize("package", ["numpy", "mlx", "mlx_lm", "transformers"])
def test_a_worker_without_a_package_names_it_once_and_is_not_started_again(
    package: str, redis_url: str, tmp_path: Path
) -> None:
    done = run(*MLXQ, "worker", "--model", "demo", MLXQ_URL=redis_url, PYTHONPATH=without(package, tmp_path))

    assert done.returncode == 2
    assert done.stderr.count(f'Error: this command needs {package}: install "mlxq[worker]"') == 1
    assert "started again" not in done.stderr


def test_a_run_without_a_package_says_why_its_worker_can_not_work(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))

    done = run(*MLXQ, "run", *files, PYTHONPATH=without("numpy", tmp_path))

    assert done.returncode == 2
    assert done.stderr == 'Error: the worker can\'t work: this command needs numpy: install "mlxq[worker]"\n'
