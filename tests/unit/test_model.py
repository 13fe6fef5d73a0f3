"""Finding and reading a model: what its files say, what is wrong with them, and one tiny model loaded for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.small_tokenizers import LLAMA_CONFIG, FakeTokenizer, write_model_files
from tests.support.waiting import DEADLINE_S

from mlxq.errors import EosError, ModelError
from mlxq_worker import blas
from mlxq_worker.blas import core_name, preload_openblas
from mlxq_worker.model.load import (
    UNSTATED_CONTEXT_LENGTH,
    context_length_of,
    load_model,
    load_tokenizer_only,
    vocab_size_of,
)

TOKENIZER = FakeTokenizer(added={"</s>": 0, "<s>": 1, "a": 2})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 100}, 100),
        ({"text_config": {"vocab_size": 100}}, 100),
        ({"vocab_size": 100, "text_config": {"vocab_size": 90}}, 90),
        ({"vocab_size": 90, "text_config": {"vocab_size": 100}}, 90),
        ({"vocab_size": None, "text_config": {}}, 3),
        ({}, 3),
    ],
)
def test_the_vocabulary_is_the_smallest_stated_size_else_the_tokenizers(config: dict[str, Any], expected: int) -> None:
    assert vocab_size_of(config, TOKENIZER) == expected


@pytest.mark.parametrize("size", [0, -1, 2.5, "100", True])
def test_an_impossible_vocabulary_is_an_error(size: object) -> None:
    with pytest.raises(ModelError, match="vocab_size"):
        vocab_size_of({"vocab_size": size}, TOKENIZER)


@pytest.mark.parametrize(
    ("config", "tokenizer_says", "expected"),
    [
        ({"max_position_embeddings": 4096}, 10**30, 4096),
        ({"max_position_embeddings": 4096}, 512, 4096),
        ({"text_config": {"max_position_embeddings": 2048}, "max_position_embeddings": 4096}, 10**30, 2048),
        ({"n_positions": 1024}, 10**30, 1024),
        ({"max_position_embeddings": None}, 512, 512),
        ({}, 10**30, UNSTATED_CONTEXT_LENGTH),
    ],
)
def test_the_context_length_is_the_configs_else_the_tokenizers(
    config: dict[str, Any], tokenizer_says: int, expected: int
) -> None:
    assert context_length_of(config, FakeTokenizer(model_max_length=tokenizer_says)) == expected


def test_a_directory_is_described_without_its_weights(tmp_path: Path) -> None:
    write_model_files(tmp_path, generation_config={"eos_token_id": [257]})

    described = load_tokenizer_only(str(tmp_path), extra_eos_tokens=["<|end_header_id|>"])

    assert described.name == tmp_path.name
    assert described.path == tmp_path
    assert (described.vocab_size, described.context_length) == (264, 128)
    assert described.generation_config == {"eos_token_id": [257]}
    assert described.eos.ids(chat=True) == {257, 259, 260}
    assert described.eos.ids(chat=False) == {257, 259}


def test_describing_a_model_imports_no_mlx(tmp_path: Path) -> None:
    write_model_files(tmp_path)
    check = (
        "import sys\nfrom mlxq_worker.model.load import load_tokenizer_only\n"
        f"load_tokenizer_only({str(tmp_path)!r})\nprint({{'mlx', 'mlx_lm'}} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=DEADLINE_S)

    assert done.stdout.strip() == "set()"
    assert done.stderr == ""


@pytest.mark.parametrize("value", ["<|eot_id|>", [[260]], [["<|eot_id|>"], 260]])
def test_end_tokens_that_transformers_would_refuse_are_read(tmp_path: Path, value: object) -> None:
    write_model_files(tmp_path, config={**LLAMA_CONFIG, "eos_token_id": value})

    assert load_tokenizer_only(str(tmp_path)).eos.ids(chat=False) == {257, 260}


@pytest.mark.parametrize("choice", [None, "demo"])
def test_the_packaged_demo_is_what_runs_without_another_choice(
    choice: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxq_worker.demo.MODEL_PATH", write_model_files(tmp_path))

    described = load_tokenizer_only(choice)

    assert (described.name, described.path) == ("mlxq-demo", tmp_path)


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no directory"):
        load_tokenizer_only(str(tmp_path / "nothing"))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()

    with pytest.raises(ModelError, match="is a file"):
        load_tokenizer_only(str(tmp_path / "model.gguf"))


def test_a_directory_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_tokenizer_only(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{oops", r"config\.json can't be read as JSON"),
        ("config.json", b"\xff\xfe\x00", r"config\.json can't be read as JSON"),
        ("config.json", b"[1]", r"config\.json must hold a JSON object"),
        ("config.json", b"{}", "model_type"),
        ("config.json", b'{"model_type": "x", "model_file": "x.py"}', "brings its own model code"),
        ("generation_config.json", b"{oops", r"generation_config\.json can't be read as JSON"),
        ("tokenizer.json", b"{oops", "the tokenizer in .* can't be loaded"),
        ("tokenizer.json", b"{}", "the tokenizer in .* can't be loaded"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    write_model_files(tmp_path)
    (tmp_path / file).write_bytes(content)

    with pytest.raises(ModelError, match=message):
        load_tokenizer_only(str(tmp_path))


def test_a_model_without_a_tokenizer_is_told_what_it_lacks(tmp_path: Path) -> None:
    write_model_files(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()

    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_tokenizer_only(str(tmp_path))


def test_a_repository_that_can_not_be_downloaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)

    with pytest.raises(ModelError, match=r"org/name is neither a directory here nor .*no network"):
        load_tokenizer_only("org/name")


def test_a_repository_is_called_by_its_id_and_read_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.extend([repository, *allow_patterns])
        return str(write_model_files(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    assert load_tokenizer_only("org/name").name == "org/name"
    assert asked[0] == "org/name"
    assert "*.json" in asked
    assert not any("safetensors" in pattern for pattern in asked)


def test_wrong_end_tokens_are_found_before_the_weights_are_missed(tmp_path: Path) -> None:
    write_model_files(tmp_path, config={**LLAMA_CONFIG, "eos_token_id": 2.0})

    with pytest.raises(EosError, match="is a float"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA_CONFIG, "No safetensors found"),
        ({**LLAMA_CONFIG, "model_type": "abacus"}, "can't load the abacus model"),
    ],
    ids=["no weights", "an architecture that mlx-lm does not have"],
)
def test_a_model_that_mlx_lm_can_not_load_is_an_error(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_model_files(tmp_path, config=config)

    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))


def test_a_model_is_loaded_with_its_weights(tmp_path: Path) -> None:
    write_model_files(tmp_path, generation_config={"eos_token_id": [260]})
    write_llama_weights(tmp_path)

    loaded = load_model(str(tmp_path))

    assert loaded.model(one_token()).shape == (1, 1, loaded.vocab_size)
    assert loaded.tokenizer.eos_token == "<|end_of_text|>"
    assert loaded.config["eos_token_id"] == 257, "as in the file, though generation_config says otherwise"
    assert loaded.eos.ids(chat=False) == {257, 260}


def one_token() -> Any:
    import mlx.core as mx

    return mx.array([[5]])


def write_llama_weights(path: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    network = llama.Model(llama.ModelArgs.from_dict(LLAMA_CONFIG))
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(network.parameters())))


# --- BLAS -----------------------------------------------------------------------------------------------------


def test_a_missing_openblas_is_only_a_note_for_debugging(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blas, "LIBRARY", "libnothing-of-this-name.so.0")
    monkeypatch.setattr(sys, "platform", "linux")
    caplog.set_level("DEBUG", logger=blas.__name__)

    preload_openblas()

    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert "libnothing-of-this-name.so.0" in record.getMessage()


def test_openblas_is_left_alone_outside_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded a library")

    monkeypatch.setattr(blas.ctypes, "CDLL", fail)
    monkeypatch.setattr(sys, "platform", "darwin")

    preload_openblas()


def test_openblas_says_which_processor_it_has_kernels_for() -> None:
    assert preload_openblas()

    assert (core_name.__wrapped__() or "").isalnum() == (sys.platform == "linux")


@pytest.mark.parametrize(("name", "platform"), [("LIBRARY", "linux"), ("", "darwin")])
def test_without_openblas_there_are_kernels_for_no_processor(
    name: str, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name:
        monkeypatch.setattr(blas, name, "libnothing-of-this-name.so.0")
    monkeypatch.setattr(sys, "platform", platform)

    assert core_name.__wrapped__() is None
