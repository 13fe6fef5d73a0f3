"""What is said to fit before a model's weights are read, from the headers of real and of broken files."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tests.support import architectures
from tests.support.small_tokenizers import LLAMA_CONFIG, write_model_files

from mlxq.errors import ModelError
from mlxq_worker import backend
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.decoding.memory_watch import resident_bytes
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost
from mlxq_worker.engine.kvcache.fit import ALONE, ON_A_CPU, ON_CUDA, ON_METAL, Fit, MostRows, most_rows
from mlxq_worker.engine.kvcache.memory import measure_cost
from mlxq_worker.model.config_json.build import build
from mlxq_worker.model.load import LoadedModel, load_without_weights, read_weights
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


def fit(room_mib: int, given: int | None = None, most: MostRows = ON_A_CPU) -> Fit:
    """Rows of 1,024 tokens of 1 KiB each: a MiB; and of four times as many."""
    return Fit(100 * MIB, 500 * MIB, KvBudget(KvCost(1024), room_mib * MIB), 1024, 4096, most, given)


@pytest.mark.parametrize(
    ("room_mib", "given", "num_rows", "fitting"),
    [(0, 32, 0, 1), (7, 32, 7, 7), (31, 32, 31, 31), (80, 32, 32, 32), (80, 128, 80, 64), (200, 128, 128, 128)],
)
def test_as_many_rows_fit_as_there_is_room_for_and_a_width_that_is_given_stays(
    room_mib: int, given: int, num_rows: int, fitting: int
) -> None:
    found = fit(room_mib, given)

    assert (found.num_rows, found.fitting, found.max_num_seqs) == (num_rows, fitting, given)
    assert found.num_longest == min(given, room_mib // 4)


def test_it_is_said_in_a_sentence_with_a_width_that_would_do() -> None:
    assert str(fit(80, 128)) == (
        "weights of 100 MiB, rows of 1 MiB for 1,024 tokens and steps of 0 MiB, in 500 MiB: 80 of 128 rows of that "
        "length fit; --max-num-seqs 64 would do"
    )
    assert str(fit(200, 128)).endswith("128 of 128 rows of that length fit")
    assert str(fit(8)).endswith("8 of 32 rows of that length fit")


@pytest.mark.parametrize(
    ("room_mib", "most", "reason"),
    [
        (500, ON_A_CPU, "32 rows at once, the most that pays on a CPU; so many of 1,024 tokens fit into memory"),
        (500, ON_METAL, "64 rows at once, the most that pays on this GPU; so many of 1,024 tokens fit into memory"),
        (500, ON_CUDA, "256 rows at once, the most that pays on this GPU; so many of 1,024 tokens fit into memory"),
        (60, ON_METAL, "32 rows at once, in whole tiles; 60 of 1,024 tokens fit into memory"),
        (200, ON_CUDA, "192 rows at once, in whole tiles; 200 of 1,024 tokens fit into memory"),
        (32, ON_METAL, "32 rows at once, as many of 1,024 tokens as fit into memory"),
        (9, ON_A_CPU, "9 rows at once, as many of 1,024 tokens as fit into memory"),
        (1, ON_METAL, "1 row at once, as many of 1,024 tokens as fit into memory"),
        (9, ALONE, "1 row at once, the most that pays with this model, whose rows run one at a time"),
        (0, ON_METAL, "1 row at once, though none of 1,024 tokens fits"),
    ],
)
def test_without_a_width_it_is_what_fits_and_pays(room_mib: int, most: MostRows, reason: str) -> None:
    found = fit(room_mib, most=most)

    assert found.reason == reason
    assert found.max_num_seqs == int(reason.split()[0])


@pytest.mark.parametrize(
    ("is_gpu", "has_metal", "most"), [(False, False, ON_A_CPU), (False, True, ON_A_CPU), (True, True, ON_METAL)]
)
def test_how_many_rows_pay_depends_on_what_computes(is_gpu: bool, has_metal: bool, most: MostRows) -> None:
    assert most_rows(is_gpu=is_gpu, has_metal=has_metal) is most
    assert most_rows(is_gpu=True, has_metal=False) is ON_CUDA
    assert most_rows(is_gpu=is_gpu, has_metal=has_metal, runs_alone=True) is ALONE


# --- In a worker --------------------------------------------------------------------------------------------------


def test_what_a_row_costs_is_the_same_before_and_after_the_weights_are_read() -> None:
    loaded = load_without_weights("demo")
    before = measure_cost(loaded.model)

    read_weights(loaded)

    assert measure_cost(loaded.model) == before


@pytest.mark.parametrize(("architecture", "width"), [("llama4", 1), ("llama", 32)])
def test_a_model_whose_rows_run_one_at_a_time_claims_no_more_than_that(architecture: str, width: int) -> None:
    model = LoadedModel(**{**vars(load_without_weights("demo")), "model": architectures.build(architecture)})

    assert backend.what_fits(model, WorkerConfig(model="demo"), 8 << 30).max_num_seqs == width


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    # given a folder of a model of 6 GiB, all header and hole
    sizes = {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 12, "max_position_embeddings": 4096}
    config = LLAMA_CONFIG | sizes
    folder = write_model_files(tmp_path / "big", config)
    header, end = {}, 0
    for name, weight in tree_flatten(build(config).parameters()):
        start, end = end, end + 2 * weight.size
        header[name] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": [start, end]}
    file = folder / "model.safetensors"
    write_header(file, header)
    with file.open("ab") as stream:
        stream.truncate(file.stat().st_size + end)
    before_bytes = resident_bytes()

    # when
    fitting = backend.fit_of(WorkerConfig(model=str(folder), memory_limit_bytes=8 << 30))

    # then
    assert fitting.weights_bytes == weights_bytes(folder) == end > 5 << 30
    assert fitting.budget.cost.bytes_per_token == 12 * 2 * 1 * 2048 * 2
    assert 0 < fitting.num_rows < fitting.wanted
    with pytest.raises(ModelError, match=r"weights of big take 5,\d+ MiB, and the worker may take no more than 4,0"):
        backend.load_backend(WorkerConfig(model=str(folder), memory_limit_bytes=4 << 30))
    assert resident_bytes() - before_bytes < 1 << 30


def test_a_worker_says_what_fits_and_refuses_what_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rq.worker")

    backend.load_backend(WorkerConfig(model="demo", engine=EngineConfig(max_num_seqs=4))).close()
    with pytest.raises(ModelError, match=r"weights of mlxq-demo take .* raise --memory-limit \(MLXQ_MEMORY_LIMIT\)"):
        backend.load_backend(WorkerConfig(model="demo", memory_limit_bytes=1000))

    said = [record.message for record in caplog.records]
    assert said[0].startswith("mlxq-demo: weights of ")
    assert "4 of 4 rows of that length fit" in said[0]
    assert not any("No width was given" in message for message in said)


def test_a_worker_without_a_width_has_room_for_its_rows_and_says_why_so_many(caplog: pytest.LogCaptureFixture) -> None:
    # given a limit under which a few rows of the demo model have room beside it
    caplog.set_level(logging.INFO, logger="rq.worker")
    loaded = load_without_weights("demo")
    none_bytes = resident_bytes() + weights_bytes(MODEL_PATH)
    cost = KvBudget(measure_cost(loaded.model, in_slabs=True), 0, in_slabs=True)
    config = WorkerConfig(model="demo", memory_limit_bytes=none_bytes + 20 * cost.taken([loaded.context_length]))

    # when
    loaded_backend = backend.load_backend(config)
    loaded_backend.close()

    # then
    width = loaded_backend.max_num_seqs
    [said] = [record.message for record in caplog.records if "No width was given" in record.message]
    assert 1 <= width < 32
    assert said == f"No width was given: {width} rows at once, as many of 1,024 tokens as fit into memory"
    assert backend.fit_of(WorkerConfig(model="demo")).max_num_seqs == 32
