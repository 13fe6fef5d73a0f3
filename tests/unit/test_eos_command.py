"""`mlxq eos MODEL`, called as click calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.support.small_tokenizers import LLAMA_CONFIG, write_model_files
from tests.support.waiting import DEADLINE_S

from mlxq.cli import main

NO_EOS_CONFIG = {**LLAMA_CONFIG, "eos_token_id": None}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["eos", *map(str, args)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model_files(tmp_path / "tiny", generation_config={"eos_token_id": [257, 259]})


def test_the_set_is_one_json_object(model: Path) -> None:
    result = run(model, "--json", "--extra-eos-token", "7", "--extra-eos-token", "<|eot_id|>")

    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    tokens = found.pop("tokens")
    assert found == {"model": "tiny", "path": str(model), "vocab_size": 264, "primary_id": 257, "rejected": []}
    assert [(token["id"], token["primary"], token["chat_only"]) for token in tokens] == [
        (257, True, False),
        (259, False, False),
        (260, False, False),
        (7, False, False),
    ]
    assert tokens[2] == {
        "id": 260,
        "token": "<|eot_id|>",
        "sources": ["chat_template", "--extra-eos-token"],
        "chat_only": False,
        "primary": False,
    }


def test_the_variables_of_a_worker_give_the_set_of_that_worker(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_EXTRA_EOS_TOKEN", "7 8")

    found = json.loads(run(model, "--json").stdout)

    assert [token["id"] for token in found["tokens"]][-2:] == [7, 8]


def test_the_table_has_a_line_per_source(model: Path) -> None:
    result = run(model)

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (first,) = (line for line in lines if "<|end_of_text|>" in line)
    assert "257" in first
    assert "config.json:eos_token_id" in first
    assert "all requests, primary" in first
    (turn_end,) = (line for line in lines if "<|eot_id|>" in line)
    assert "chat_template" in turn_end
    assert "chat only" in turn_end
    assert sum("generation_config.json:eos_token_id" in line for line in lines) == 2


def test_a_token_in_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    model = write_model_files(tmp_path / "[bold]", config={**LLAMA_CONFIG, "eos_token_id": ["["]})

    result = run(model)

    assert "[bold]" in result.stdout
    assert "│ [ " in result.stdout


def test_a_model_that_is_not_there_is_an_error_with_exit_code_2(tmp_path: Path) -> None:
    result = run(tmp_path / "nothing")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: there is no directory")


def test_a_wrong_option_value_is_named(model: Path) -> None:
    result = run(model, "--extra-eos-token", "<|eot|>")

    assert result.exit_code == 2
    assert "--extra-eos-token: the tokenizer has no token '<|eot|>'; did you mean '<|eot_id|>'?" in result.stderr


def test_bad_usage_has_exit_code_2(model: Path) -> None:
    assert run().exit_code == 2
    assert run(model, "--jsn").exit_code == 2


def test_no_end_token_at_all_has_to_be_allowed(tmp_path: Path) -> None:
    model = write_model_files(tmp_path, config=NO_EOS_CONFIG, chat_template=None, eos_token=None)

    refused, allowed = run(model), run(model, "--json", "--allow-no-eos")

    assert refused.exit_code == 2
    assert "--allow-no-eos" in refused.stderr
    assert allowed.exit_code == 0
    assert json.loads(allowed.stdout)["tokens"] == []


def test_help_needs_neither_mlx_nor_transformers() -> None:
    check = (
        "import sys\nfrom mlxq_worker.commands.eos import eos\neos(['--help'], standalone_mode=False)\n"
        "print({'mlx', 'mlx_lm', 'transformers', 'numpy', 'rich'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=DEADLINE_S)

    assert "MODEL is a directory" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
