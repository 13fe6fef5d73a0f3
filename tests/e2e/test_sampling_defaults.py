"""`mlxq run` over a model that proposes how to sample: taken where a request leaves it out, and not asked for twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.support.batch_files import read_lines, write_lines
from tests.support.processes import MLXQ, run

from mlxq_worker.demo import MODEL_PATH

OWN = {"temperature": 0.3, "top_k": 5, "max_tokens": 6}

pytestmark = pytest.mark.slow


def test_a_models_sampling_defaults_reach_the_answers_of_requests_that_leave_them_out(tmp_path: Path) -> None:
    # given
    model = shutil.copytree(MODEL_PATH, tmp_path / "own-taste")
    file = model / "generation_config.json"
    stated = {**json.loads(file.read_text()), "temperature": 0.3, "top_k": 5, "max_new_tokens": 6}
    file.write_text(json.dumps(stated))
    question = {"messages": [{"role": "user", "content": "Count from 3 to 40."}], "ignore_eos": True}
    lines = [
        {"custom_id": "open", **question},
        {"custom_id": "said", **question, "temperature": 1.0, "top_k": 0, "max_tokens": 9},
    ]
    write_lines(tmp_path / "in.jsonl", lines)
    command = (*MLXQ, "run", "--model", str(model), "-i", "in.jsonl", "-o", "out.jsonl")

    # when it runs, and once more
    first = run(*command, cwd=tmp_path)
    answers = read_lines(tmp_path / "out.jsonl")
    again = run(*command, cwd=tmp_path)
    file.write_text(json.dumps({**stated, "top_k": -2}))
    broken = run(*command, cwd=tmp_path)

    # then
    assert first.returncode == 0, first.stderr
    about = {custom_id: answer["response"]["body"]["mlxq"] for custom_id, answer in answers.items()}
    tokens = {name: answer["response"]["body"]["usage"]["completion_tokens"] for name, answer in answers.items()}
    assert {each["generation_config"] for each in about.values()} == {"auto"}
    assert about["open"]["sampling_defaults"] == OWN
    assert "sampling_defaults" not in about["said"]
    assert tokens == {"open": 6, "said": 9}
    assert read_lines(tmp_path / "out.jsonl") == answers
    assert again.returncode == 0, again.stderr
    assert "generation_config.json: top_k must be an integer from -1" in broken.stderr
    assert broken.returncode != 0
