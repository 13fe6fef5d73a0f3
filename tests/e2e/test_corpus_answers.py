"""What vLLM, OpenAI and mlx_lm.server document goes through `mlxq run` with the demo model: every request that the
reader accepts is answered, in a form that OpenAI's own types read, or refused for a field that this model can't honour.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from tests.support.batch_files import Line, read_lines, write_lines
from tests.support.processes import MLXQ, run

CORPUS = Path(__file__).parents[1] / "corpus"
NOT_BY_THE_DEMO_MODEL = {
    "openai_batch: penalties and bias": "logit_bias",
    "openai_batch: an effort": "reasoning_effort",
    "vllm_run_batch: an effort": "reasoning_effort",
    "vllm_run_batch: a budget for thinking": "thinking_token_budget",
}
"""Requests that are fine, but not for a model with 1705 tokens and a template that knows no effort."""


def accepted() -> list[Line]:
    """The lines that are to be accepted, each with a name of its own and few tokens."""
    named = {
        f"{path.stem}: {entry['about']}": entry
        for path in sorted(CORPUS.glob("*.jsonl"))
        for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    }
    lines = {name: each["line"] for name, each in named.items() if each["refused"] is None}
    return [
        {"custom_id": name, "url": line.get("url"), "body": short(line.get("body", line))}
        for name, line in lines.items()
    ]


def short(body: Line) -> Line:
    kept = {name: value for name, value in body.items() if name not in ("max_tokens", "max_completion_tokens")}
    return {"max_output_tokens" if "input" in body else "max_completion_tokens": 24, **kept}


@pytest.mark.slow
def test_documented_requests_are_answered_or_refused_for_what_the_model_lacks(tmp_path: Path) -> None:
    # given every documented request that the reader accepts
    lines = accepted()
    source = write_lines(tmp_path / "in.jsonl", lines)

    # when the demo model is asked
    run(*MLXQ, "run", "-i", str(source), "-o", str(tmp_path / "out.jsonl"))

    # then it answers all but those that are beyond it, which are refused by field
    answers, errors = read_lines(tmp_path / "out.jsonl"), read_lines(tmp_path / "out.errors.jsonl")
    assert {name: line["response"]["body"]["error"]["param"] for name, line in errors.items()} == NOT_BY_THE_DEMO_MODEL
    assert answers.keys() | errors.keys() == {line["custom_id"] for line in lines}

    # and OpenAI's types read every answer in full
    for line in answers.values():
        body = line["response"]["body"]
        read = (Completion if body["object"] == "text_completion" else ChatCompletion).model_validate(body)
        assert read.model_dump(exclude_unset=True) == body
