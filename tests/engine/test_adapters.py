"""A LoRA adapter over a model: loaded as mlx-lm does it, batched on the fast path, and refused where it doesn't fit."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers
from tests.support.engine_runs import run
from tests.support.fake_device import GIB, FakeDevice
from tests.support.row_specs import row_spec

from mlxq.cli import main
from mlxq.errors import ModelError
from mlxq_worker.backend import load_backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners.trial import find_packing
from mlxq_worker.model.load import load_model

PARAMETERS = {"rank": 4, "scale": 20.0, "dropout": 0.0}
PROMPTS = [(5, 6, 7, 8), (40, 41, 42), (300, 12, 9, 77, 1000)]
NUM_TOKENS = 12


def write_adapter(folder: Path, **changes: Any) -> Path:
    """A random adapter for the demo model; `changes` are laid over what its file says."""
    model = load_model("demo").model
    model.freeze()
    linear_to_lora_layers(model, 2, PARAMETERS)
    mx.random.seed(0)
    weights = {
        name: 0.3 * mx.random.normal(weight.shape) for name, weight in tree_flatten(model.trainable_parameters())
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": PARAMETERS, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def alone(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """mlx-lm's own greedy tokens."""
    return tuple(int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=NUM_TOKENS))


def test_a_batch_with_an_adapter_says_what_mlx_lm_says_with_it_and_not_what_the_base_says(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    base, adapted = load_model("demo").model, load_model("demo", adapter_path=adapter).model

    specs = [
        row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=NUM_TOKENS, end_tokens={}, eos_ids=frozenset())
        for index, prompt in enumerate(PROMPTS)
    ]
    results = run(BatchEngine(adapted, lambda ids: "", max_num_seqs=4), specs).results

    expected = [alone(adapted, prompt) for prompt in PROMPTS]
    assert find_packing(adapted).way is not None
    assert [results[str(index)].token_ids for index in range(len(PROMPTS))] == expected
    assert expected != [alone(base, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapters.safetensors"])
def test_a_folder_that_is_no_adapter_is_named_with_what_it_lacks(missing: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / missing).unlink()

    with pytest.raises(ModelError, match=f"has no {missing}: a LoRA adapter is a directory that mlx_lm.lora"):
        load_model("demo", adapter_path=adapter)


def test_bench_measures_a_model_with_its_adapter(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "--model", "demo", "--no-save", "--adapter-path", str(tmp_path)])

    assert result.exit_code == ModelError.exit_code
    assert "has no adapter_config.json" in result.output


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_parameters={**PARAMETERS, "rank": 8})

    with pytest.raises(ModelError, match=r"the adapter in .* doesn't go with mlxq-demo: "):
        load_model("demo", adapter_path=adapter)


def test_a_worker_wires_an_adapter_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    adapter_bytes = sum(array.nbytes for array in mx.load(str(adapter / "adapters.safetensors")).values())
    gc.collect()
    base_bytes = mx.get_active_memory()
    mac = FakeDevice()
    monkeypatch.setattr(mac, "active_bytes", lambda: 12 * GIB + mx.get_active_memory() - base_bytes)
    monkeypatch.setattr(device, "Device", lambda: mac)
    wired = []

    for path in (None, str(adapter)):
        backend = load_backend(WorkerConfig(model="demo", adapter_path=path, memory_limit_bytes=40 * GIB))
        wired.append(mac.limits["wired"])
        backend.close()
        del backend
        gc.collect()

    assert adapter_bytes <= wired[1] - wired[0] < 2 * adapter_bytes
