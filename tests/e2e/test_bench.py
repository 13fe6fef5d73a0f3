"""The benchmarks run: every system answers, and what should be the same answer is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.bench import run_ahead, suite
from tests.support.thorough import sample_of

IN_PROCESS = frozenset({"mlxq_engine", "batch_generate", "batch_generator_with_caches", "static_batches"})
SERVICES = sample_of(frozenset({"mlxq_run", "stock_rq", "mlx_lm_server"}), frozenset({"mlxq_run"}))
"""Each starts processes of its own."""
SMALL = ("--model", "1m", "--runs", "1")


def printed_by(command: click.Command, *options: str) -> Any:
    """What a benchmark's last line says."""
    done = CliRunner().invoke(command, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.thorough
def test_every_system_of_the_suite_answers_every_workload_that_it_can(tmp_path: Path) -> None:
    # given
    report = tmp_path / "suite.json"
    systems = [word for system in sorted(IN_PROCESS | SERVICES) for word in ("--system", system)]
    few = (*systems, "--requests", "3", "--width", "2", "--sample", "1", "--json", str(report))

    # when
    printed = printed_by(suite.main, "--workload", "shared_prefix", "--workload", "own_sampling", *SMALL, *few)

    # then
    assert printed == json.loads(report.read_text())
    greedy, sampled = printed["workloads"]["shared_prefix"], printed["workloads"]["own_sampling"]
    assert greedy.keys() == IN_PROCESS | SERVICES
    assert sampled.keys() == IN_PROCESS | {"mlxq_run"}
    assert all(greedy[system]["same_answers"] == 1 for system in greedy.keys() - {"mlx_lm_server"})


@pytest.mark.slow
def test_the_ways_to_run_ahead_are_compared() -> None:
    [answers] = printed_by(run_ahead.main, *SMALL, "--mean", "3", "--requests", "12", "--width", "4")["answers"]

    assert answers["never"]["row_efficiency"] == 1 > answers["always"]["row_efficiency"]
