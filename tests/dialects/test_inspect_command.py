"""`mlxq inspect MODEL`, called as click calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.scripted_models import Folder

from mlxq_worker.commands.inspect import inspect

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>'+m.role+'\\n'+m.content+'<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HERMES = "{% if tools %}{{ tools|tojson }}{% endif %}{# <tool_call> tool_call.name #}" + CHATML
FOLDER = Folder(
    template=HERMES,
    special=("<|im_start|>", "<|im_end|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    eos="<|endoftext|>",
)


def inspected(path: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(inspect, [str(path), "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_all_that_a_folder_says_is_one_json_object(tmp_path: Path) -> None:
    found = inspected(FOLDER.write(tmp_path / "tiny"))

    assert (found["model"], found["architecture"], found["context_length"]) == ("tiny", "gpt2", 2048)
    assert found["batching"]["kind"] == "packed"
    assert [token["token"] for token in found["eos"]["tokens"]] == ["<|endoftext|>", "<|im_end|>"]
    assert found["reasoning"] == {"parser": "qwen3", "start": "<think>", "end": "</think>"}
    assert found["tool_calls"]["parser"] == "hermes"
    assert json.loads(found["tool_calls"]["example"].split("\n")[1])["name"] == "get_weather"


def test_what_the_template_would_drop_is_shown_as_refused(tmp_path: Path) -> None:
    chats = inspected(FOLDER.write(tmp_path))["chats"]

    assert [chats[name] for name in ("plain", "system message", "tools")] == ["rendered"] * 3
    assert "leaves out messages[1].tool_calls" in chats["tool history"]


def test_try_renders_a_sample(tmp_path: Path) -> None:
    assert inspected(FOLDER.write(tmp_path), "--try")["sample"].endswith("<|im_start|>assistant\n")


def test_a_named_parser_is_shown_and_an_unknown_one_refused(tmp_path: Path) -> None:
    FOLDER.write(tmp_path)

    assert inspected(tmp_path, "--tool-call-parser", "qwen3_xml")["tool_calls"]["parser"] == "qwen3_coder"
    result = CliRunner().invoke(inspect, [str(tmp_path), "--reasoning-parser", "nobody"])
    assert result.exit_code == 1
    assert "--reasoning-parser" in result.stderr


def test_an_architecture_that_mlx_lm_has_not_is_shown_as_refused(tmp_path: Path) -> None:
    folder = Folder(template=CHATML, special=("<|im_start|>", "<|im_end|>"), config={"model_type": "unheard_of"})

    batching = inspected(folder.write(tmp_path))["batching"]

    assert batching["kind"] == "refused"
    assert "unheard_of" in batching["why"]


def test_a_token_that_only_seems_to_end_answers_is_shown_with_the_reason(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|start|>'+m.role+'<|message|>'+m.content+"
        "('<|return|>' if m.role=='assistant' and loop.last else '<|end|>') }}{% endfor %}"
    )
    special = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>")

    eos = inspected(Folder(template=template, special=special, eos="<|return|>").write(tmp_path))["eos"]

    assert [token["token"] for token in eos["tokens"]] == ["<|return|>", "<|call|>"]
    assert [(each["token"], each["reason"]) for each in eos["rejected"]] == [
        ("<|end|>", "it ends every channel, not only the last")
    ]


@pytest.mark.parametrize("option", [(), ("--try",)])
def test_the_table_says_the_same_in_words(tmp_path: Path, option: tuple[str, ...]) -> None:
    result = CliRunner().invoke(inspect, [str(FOLDER.write(tmp_path)), *option])

    assert result.exit_code == 0
    for words in ("packed", "<|im_end|>", "hermes", "leaves out messages[1].tool_calls"):
        assert words in result.stdout
