"""The file of `mlxq worker --models`: what it may say, and how each mistake in it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxq.errors import ConfigError
from mlxq_worker.commands.models_file import check_folders, read_models_file
from mlxq_worker.commands.worker_options import WORKER_OPTIONS
from mlxq_worker.supervision.model_policy import Policy

WHOLE = """
[policy]
max_wait_s = 120
idle_unload_s = 30.5

[models.small]
model = "demo"
max_num_seqs = 8
memory_limit = "2GB"
wired_limit = "off"
generation_config = "off"
extra_eos_tokens = ["<end>", "7"]
max_num_batched_tokens = "auto"
allow_no_eos = true

[models."org/poet-1.5"]
model = "./base"
adapter_path = "../adapters/poet"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read_in_its_order_with_paths_from_where_it_lies(tmp_path: Path) -> None:
    file = read_models_file(written(tmp_path, WHOLE))

    small, poet = file.entries
    assert file.policy == Policy(max_wait_s=120, idle_unload_s=30.5)
    assert (small.name, poet.name) == ("small", "org/poet-1.5")
    assert small.given["memory_limit_bytes"] == 2_000_000_000
    assert poet.given == {
        "served_model_name": "org/poet-1.5",
        "model": str(tmp_path / "base"),
        "adapter_path": str(tmp_path / "../adapters/poet"),
    }


@pytest.mark.parametrize("missing", ["base", "adapters/poet"])
def test_a_folder_that_is_not_there_is_named_before_anything_starts(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    written(Path(), WHOLE)
    for folder in (tmp_path / "here" / "base", tmp_path / "adapters" / "poet"):
        folder.mkdir(parents=True)
    check_folders(read_models_file(Path("models.toml")))

    (tmp_path / ("here" if missing == "base" else "") / missing).rmdir()

    with pytest.raises(ConfigError, match=rf"org/poet-1.5.*there is no directory {tmp_path}/here/.*{missing}"):
        check_folders(read_models_file(Path("models.toml")))


def test_an_entry_is_the_options_of_one_worker(tmp_path: Path) -> None:
    words = read_models_file(written(tmp_path, WHOLE)).entries[0].words()

    flags = {option.flag for option in WORKER_OPTIONS.values()}
    assert " ".join(words) == (
        "--served-model-name small --model demo --max-num-seqs 8 --memory-limit 2000000000 --wired-limit off"
        " --generation-config off --extra-eos-token <end> --extra-eos-token 7 --max-num-batched-tokens auto"
        " --allow-no-eos"
    )
    assert {word for word in words if word.startswith("--")} <= flags


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models = 3", "there is no model in it; each is a table such as\n[models.small]"),
        ("", "there is no model in it"),
        ("[models]", "there is no model in it"),
        ("[model.small]\nmodel = 'demo'", "[model] is no table of this file; it has [models.NAME], and maybe [policy]"),
        ("[models.a]", "models.a lacks model: a directory, a Hub repository or demo"),
        ("[models.a]\nmodel = 3", "models.a.model must be a string, not 3"),
        ("[models.a]\nmodel = ''", "models.a: model (MLXQ_MODEL) must be a directory"),
        (
            "[models.a]\nmodel = 'demo'\nmax_num_seq = 3",
            "models.a.max_num_seq; did you mean max_num_seqs?",
        ),
        ("[models.a]\nmodel = 'demo'\nqueue = 'x'", "unknown field models.a.queue (there are model, "),
        ("[models.a]\nmodel = 'demo'\nmax_num_seqs = 0", "models.a: max_num_seqs (MLXQ_MAX_NUM_SEQS) must be at least"),
        ("[models.a]\nmodel = 'demo'\nmax_num_seqs = true", "models.a.max_num_seqs must be an integer, not true"),
        ("[models.a]\nmodel = 'demo'\nmemory_limit = 'big'", "models.a.memory_limit must be a size such as 24GB"),
        ("[models.a]\nmodel = 'demo'\nwired_limit = 'on'", "models.a.wired_limit must be auto, off or a size"),
        ("[models.a]\nmodel = 'demo'\ngeneration_config = 'vllm'", "must be auto or off, not 'vllm'"),
        (
            "[models.a]\nmodel = 'demo'\nextra_eos_tokens = [7]",
            "must be a list of strings, not a list",
        ),
        ("[models.qwen-2.5]\nmodel = 'demo'", 'a name with a dot is quoted: [models."qwen-2.5"]'),
        ("[models.'a b']\nmodel = 'demo'", "models.a b: a name has 1 to 100 letters"),
        ("[models]\na = 3", "models.a is a table such as"),
        ("policy = 1\n[models.a]\nmodel = 'demo'", "policy is a table: [policy]"),
        ("[policy]\nmax_wait = 1\n[models.a]\nmodel = 'demo'", "policy.max_wait; did you mean max_wait_s?"),
        ("[policy]\nmax_wait_s = '5m'\n[models.a]\nmodel = 'demo'", "policy.max_wait_s must be a number of seconds"),
        ("[policy]\nmin_turn_s = -1\n[models.a]\nmodel = 'demo'", "policy.min_turn_s must be a number of seconds"),
        ("[models.a", "can't be read as TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as error:
        read_models_file(path)

    assert str(error.value).startswith(f"--models: {path}")
    assert said in str(error.value)
