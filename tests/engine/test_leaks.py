"""What a long answer leaves behind in the caches of recurrent models: values, not an ever longer graph of how to compute
them, which on Metal ends in "Resource limit (499000)" after some ten thousand tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tests.engine.tiny_models import build
from tests.engine_runs import decode

from mlxq_worker.engine import padded
from mlxq_worker.engine.engine import BatchEngine
from row_specs import row_spec

NUM_STEPS = 3_000
MAX_NODES_PER_STEP = 100
"""Of one step's graph in these models, generously."""


def graph_size(arrays: list[Any], file: Path) -> int:
    """How many lines it takes to draw all that these arrays still have to be computed from."""
    mx.export_to_dot(str(file), *arrays)
    return len(file.read_text().splitlines())


def run_for(engine: BatchEngine, prompt_lengths: list[int], num_steps: int) -> None:
    for index, length in enumerate(prompt_lengths):
        row = row_spec(row_id=f"r{index}", prompt_ids=(index + 1,) * length, max_tokens=num_steps + 10)
        engine.admit(row)
    for step in range(num_steps):
        engine.step(float(step))


def states(engine: BatchEngine) -> list[Any]:
    caches: list[Any] = engine._runner._caches  # type: ignore[attr-defined]
    return [array for cache in caches for array in cache.state if array is not None]


@pytest.mark.slow
@pytest.mark.parametrize("prompt_lengths", [[1], [5, 5]], ids=["one token", "equal lengths"])
@pytest.mark.parametrize("architecture", ["mamba2", "lfm2"])
def test_the_caches_of_a_long_answer_hold_values_and_no_graph(
    architecture: str, prompt_lengths: list[int], tmp_path: Path
) -> None:
    engine = BatchEngine(build(architecture, max_position_embeddings=8192), decode, max_num_seqs=2)

    run_for(engine, prompt_lengths, NUM_STEPS)

    assert graph_size(states(engine), tmp_path / "graph.dot") < padded._STATE_EVAL_INTERVAL * MAX_NODES_PER_STEP


@pytest.mark.slow
def test_active_memory_is_flat_over_a_long_answer_of_a_model_without_attention() -> None:
    engine = BatchEngine(build("mamba2"), decode, max_num_seqs=1)
    run_for(engine, [1], NUM_STEPS // 10)
    early = mx.get_active_memory()

    for step in range(NUM_STEPS - NUM_STEPS // 10):
        engine.step(float(step))

    assert mx.get_active_memory() <= 1.1 * early


def test_a_graph_that_grows_would_be_seen(tmp_path: Path) -> None:
    value = mx.zeros((1,))
    sizes = []
    for _ in range(2):
        for _ in range(100):
            value = value + 1
        sizes.append(graph_size([value], tmp_path / "graph.dot"))
    mx.eval(value)

    assert sizes[1] > 1.9 * sizes[0]
    assert graph_size([value], tmp_path / "graph.dot") < 10
