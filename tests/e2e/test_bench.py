"""The benchmarks run: every system answers, and what should be the same answer is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.thorough import sample_of

ROOT = Path(__file__).parents[2]


IN_PROCESS = frozenset({"mlxq_engine", "batch_generate", "batch_generator_with_caches", "static_batches"})
SERVICES = sample_of(frozenset({"mlxq_run", "stock_rq", "mlx_lm_server"}), frozenset({"mlxq_run"}))
"""Each starts processes of its own."""


@pytest.mark.slow
@pytest.mark.thorough
def test_every_system_of_the_suite_answers_every_workload_that_it_can(tmp_path: Path) -> None:
    # given
    report = tmp_path / "suite.json"
    systems = [word for system in sorted(IN_PROCESS | SERVICES) for word in ("--system", system)]
    small = [*systems, "--requests", "6", "--width", "4", "--runs", "1", "--sample", "2", "--json", str(report)]

    # when
    command = [sys.executable, "-m", "tests.bench.suite", "--workload", "shared_prefix", "--workload", "own_sampling"]
    done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=False)

    # then
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(report.read_text())
    workloads = json.loads(report.read_text())["workloads"]
    greedy, sampled = workloads["shared_prefix"], workloads["own_sampling"]
    assert greedy.keys() == IN_PROCESS | SERVICES
    assert sampled.keys() == IN_PROCESS | {"mlxq_run"}
    assert all(greedy[system]["same_answers"] == 1 for system in greedy.keys() - {"mlx_lm_server"})


@pytest.mark.slow
def test_the_ways_to_run_ahead_are_compared() -> None:
    small = ["--mean", "3", "--requests", "12", "--width", "4", "--runs", "1"]

    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.run_ahead", *small], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    [answers] = json.loads(done.stdout.splitlines()[-1])["answers"]
    assert answers["never"]["row_efficiency"] == 1 > answers["always"]["row_efficiency"]
