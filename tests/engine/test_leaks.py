"""What a long answer leaves behind in the caches of recurrent models: values, not an ever longer graph of how to
compute them, which on Metal ends in "Resource limit (499000)" after some ten thousand tokens."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tests.support import architectures
from tests.support.engine_runs import decode
from tests.support.row_specs import row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import build

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.device import Device
from mlxq_worker.engine.kvcache.memory import RELEASE_STEPS, measure_cost, mlx_limited
from mlxq_worker.engine.runners import padded
from mlxq_worker.engine.runners.packed_model import PackedModel

NUM_STEPS = sample_of(3_000, 400)
MAX_GRAPH = 1_000
"""Lines to draw what is left between two evaluations. A graph that grows takes ten more with every step, so that a
hundred steps are enough to tell."""


class Watched:
    """A padded engine over a tiny model, and the caches that the model was called with last."""

    def __init__(self, architecture: str, prompt_lengths: list[int]) -> None:
        model = build(architecture)
        self.caches: list[Any] = []
        self.cost = measure_cost(model)
        forward = type(model).__call__

        def watched(module: Any, inputs: Any, cache: Any = None, **options: Any) -> Any:
            self.caches = cache
            return forward(module, inputs, cache=cache, **options)

        model.__class__ = type("Watched", (type(model),), {"__call__": watched, "__module__": type(model).__module__})
        self.engine = BatchEngine(model, decode, max_num_seqs=2, packed=False)
        for index, length in enumerate(prompt_lengths):
            self.engine.admit(row_spec(row_id=f"r{index}", prompt_ids=(index + 1,) * length, max_tokens=2 * NUM_STEPS))

    def step(self, num_steps: int) -> None:
        for step in range(num_steps):
            report = self.engine.step(float(step))
        assert report.rows_useful, "the rows have ended before the test has"

    def graph_size(self, file: Path) -> int:
        """How many lines it takes to draw all that the caches still have to be computed from."""
        states = [leaf for cache in self.caches for _, leaf in tree_flatten(cache.state)]
        return graph_size([leaf for leaf in states if isinstance(leaf, mx.array)], file)


def graph_size(arrays: list[Any], file: Path) -> int:
    mx.export_to_dot(str(file), *arrays)
    return len(file.read_text().splitlines())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "prompt_lengths"),
    list(product(["mamba2", "lfm2"], [[1], [5, 5]])),
)
def test_the_caches_of_a_long_answer_hold_values_and_no_graph(
    architecture: str, prompt_lengths: list[int], tmp_path: Path
) -> None:
    watched = Watched(architecture, prompt_lengths)

    watched.step(NUM_STEPS // 10)
    early_bytes = mx.get_active_memory()
    watched.step(NUM_STEPS - NUM_STEPS // 10)

    keys_and_values = 2 * len(prompt_lengths) * NUM_STEPS * watched.cost.bytes_per_token
    assert mx.get_active_memory() <= 1.1 * early_bytes + keys_and_values
    assert watched.graph_size(tmp_path / "graph.dot") < MAX_GRAPH


def test_caches_that_are_never_evaluated_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(padded, "_STATE_EVAL_INTERVAL", 10**9)
    watched = Watched("mamba2", [1])

    watched.step(200)

    assert watched.graph_size(tmp_path / "graph.dot") > MAX_GRAPH


@pytest.mark.parametrize("architecture", ["mamba2", "lfm2", "qwen3", "deepseek_v32"])
def test_what_a_packed_model_keeps_of_a_long_answer_is_values_and_no_graph(
    architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # given
    made: list[PackedModel] = []
    original = PackedModel.__init__

    def init(self: PackedModel, *args: Any) -> None:
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(PackedModel, "__init__", init)
    engine = BatchEngine(architectures.build(architecture), decode, max_num_seqs=2)
    for index in range(2):
        engine.admit(row_spec(row_id=f"r{index}", prompt_ids=(index + 1,) * 5, max_tokens=160))

    # when
    sizes = []
    for step in range(160):
        engine.step(float(step))
        sizes.append(graph_size(made[-1].arrays, tmp_path / "graph.dot"))

    # then
    assert max(sizes[80:]) <= 1.1 * max(sizes[:80])


def test_what_mlx_keeps_for_reuse_is_given_back_now_and_then() -> None:
    watched = Watched("llama", [1])
    with mlx_limited(1 << 40, Device()):
        ballast = mx.zeros((16 * 2**20,))
        mx.eval(ballast)
        del ballast
        assert mx.get_cache_memory() >= 2**26

        watched.step(RELEASE_STEPS)

        assert mx.get_cache_memory() < 2**26
