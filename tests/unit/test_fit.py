"""What is said to fit before a model's weights are read, from the headers of real and of broken files."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxq.errors import ModelError
from mlxq_worker import backend
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost
from mlxq_worker.engine.kvcache.fit import Fit
from mlxq_worker.engine.kvcache.memory import measure_cost
from mlxq_worker.model.load import LoadedModel, load_model
from mlxq_worker.model.safetensors import weights_bytes

MIB = 1 << 20


def write_header(file: Path, header: object) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)


def test_the_weights_are_as_large_as_what_mlx_loads_of_them() -> None:
    loaded = mx.load(str(MODEL_PATH / "model.safetensors"))

    assert weights_bytes(MODEL_PATH) == sum(array.nbytes for array in loaded.values())


def test_a_model_in_several_files_is_as_large_as_all_of_them_and_no_weight_is_read(tmp_path: Path) -> None:
    half = {"__metadata__": {"format": "mlx"}, "w": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]}}
    more = {**half, "v": {"dtype": "F32", "shape": [5], "data_offsets": [16, 36]}}
    write_header(tmp_path / "model-00001-of-00002.safetensors", half)
    write_header(tmp_path / "model-00002-of-00002.safetensors", more)

    assert weights_bytes(tmp_path) == 16 + 36  # and there is nothing behind the headers


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", struct.pack("<Q", 9) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 1 << 62), b"x" * 64],
    ids=["empty", "cut in the length", "cut in the header", "no object", "endless header", "something else"],
)
def test_a_file_that_is_no_safetensors_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(ModelError, match=r"model\.safetensors is not a safetensors file"):
        weights_bytes(tmp_path)


def test_an_entry_without_offsets_is_an_error_too(tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", {"w": {"dtype": "F32"}})

    with pytest.raises(ModelError, match="data_offsets"):
        weights_bytes(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        weights_bytes(tmp_path)


# --- Rows ---------------------------------------------------------------------------------------------------------


def fit(room_mib: int, max_num_seqs: int) -> Fit:
    """Rows of 1,024 tokens of 1 KiB each: a MiB."""
    return Fit(100 * MIB, 500 * MIB, KvBudget(KvCost(1024), room_mib * MIB), 1024, max_num_seqs)


@pytest.mark.parametrize(
    ("room_mib", "max_num_seqs", "num_rows", "proposed"),
    [(0, 32, 0, 0), (7, 32, 7, 7), (31, 32, 31, 31), (80, 32, 32, 32), (80, 128, 80, 64), (200, 128, 128, 128)],
)
def test_as_many_rows_fit_as_there_is_room_for_and_whole_tiles_are_proposed(
    room_mib: int, max_num_seqs: int, num_rows: int, proposed: int
) -> None:
    found = fit(room_mib, max_num_seqs)

    assert (found.num_rows, found.proposed_rows) == (num_rows, proposed)


def test_it_is_said_in_a_sentence_with_a_width_that_would_do() -> None:
    assert str(fit(80, 128)) == (
        "weights of 100 MiB and rows of 1 MiB for 1,024 tokens, in 500 MiB: 80 of 128 rows of that length fit; "
        "--max-num-seqs 64 would do"
    )
    assert str(fit(200, 128)).endswith("128 of 128 rows of that length fit")


# --- In a worker --------------------------------------------------------------------------------------------------


def test_what_a_row_costs_is_the_same_before_and_after_the_weights_are_read() -> None:
    costs: list[KvCost] = []

    loaded = load_model("demo", before_weights=lambda model: costs.append(measure_cost(model.model)))

    assert costs == [measure_cost(loaded.model)]


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    # given a folder whose weights' file says that they take a terabyte
    shutil.copytree(MODEL_PATH, tmp_path / "big")
    header: dict[str, Any] = {"w": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}
    loaded = load_model("demo")
    write_header(tmp_path / "big" / "model.safetensors", header)
    big = LoadedModel(**{**vars(loaded), "path": tmp_path / "big", "name": "big"})

    # when, then
    fitting = backend.what_fits(big, WorkerConfig(model="big"), 8 << 30)
    assert fitting.weights_bytes == 1 << 40
    assert fitting.budget.cost == measure_cost(loaded.model, in_slabs=True), "as the engine reckons"
    assert fitting.num_rows == 0


def test_a_worker_says_what_fits_and_refuses_what_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rq.worker")

    backend.load_backend(WorkerConfig(model="demo", engine=EngineConfig(max_num_seqs=4))).close()
    with pytest.raises(ModelError, match=r"weights of mlxq-demo take .* raise --memory-limit \(MLXQ_MEMORY_LIMIT\)"):
        backend.load_backend(WorkerConfig(model="demo", memory_limit_bytes=1000))

    [said] = [record.message for record in caplog.records if "rows of that length fit" in record.message]
    assert said.startswith("mlxq-demo: weights of ")
    assert "4 of 4 rows" in said
