"""`mlxq inspect MODEL`, called as click calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from tests.support.scripted_models import Folder

from mlxq.cli import main

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
    result = CliRunner().invoke(main, ["inspect", str(path), "--json", *options])
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
    result = CliRunner().invoke(main, ["inspect", str(tmp_path), "--reasoning-parser", "nobody"])
    assert result.exit_code == 2
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
        ("<|end|>", "it ends every part of an answer, not only the last")
    ]


@pytest.mark.parametrize("option", [(), ("--try",)])
def test_the_table_says_the_same_in_words(tmp_path: Path, option: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["inspect", str(FOLDER.write(tmp_path)), *option])

    assert result.exit_code == 0
    for words in ("packed", "<|im_end|>", "hermes", "leaves out messages[1].tool_calls"):
        assert words in result.stdout


def in_words(path: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["inspect", str(path), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def folder_of(config: dict[str, Any], template: str | None = CHATML) -> Folder:
    return Folder(template=template, special=("<|im_start|>", "<|im_end|>"), eos="<|endoftext|>", config=config)


GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_theta": 5.0, "rope_type": "default"},
}


def test_a_window_that_is_not_kept_and_keys_that_are_said_otherwise_are_shown(tmp_path: Path) -> None:
    path = folder_of({**GEMMA2, "sliding_window": 64, "max_position_embeddings": 512}).write(tmp_path)

    found = inspected(path)

    assert (found["window_not_kept"], found["read_otherwise"]) == (64, ["rope_theta"])
    assert "64 tokens, but mlx-lm attends to everything" in in_words(path)


def test_a_window_as_long_as_the_context_is_nobodys_concern(tmp_path: Path) -> None:
    path = folder_of({**GEMMA2, "sliding_window": 512, "max_position_embeddings": 512}).write(tmp_path)

    assert inspected(path)["window_not_kept"] is None


@pytest.mark.parametrize("architecture", ["olmo", "unheard_of"])
def test_an_architecture_that_can_not_be_imported_ends_no_process(tmp_path: Path, architecture: str) -> None:
    path = folder_of({"model_type": architecture}).write(tmp_path)

    assert f"can't load the {architecture} model: it has no architecture of this name" in in_words(path)


def test_weights_in_another_tools_format_are_refused(tmp_path: Path) -> None:
    path = folder_of({"quantization_config": {"quant_method": "bitsandbytes"}}).write(tmp_path)

    assert inspected(path)["batching"]["why"].endswith("quantised by bitsandbytes, which mlx-lm does not read")


def test_a_model_that_is_not_packed_says_why(tmp_path: Path) -> None:
    found = inspected(folder_of({"model_type": "gpt_bigcode", "n_inner": 48}).write(tmp_path))["batching"]

    assert found["kind"] == "one at a time"
    assert "positions are counted outside MLX" in found["why"]


def test_try_needs_no_chat_template(tmp_path: Path) -> None:
    assert "renders no sample" in in_words(folder_of({}, template=None).write(tmp_path), "--try")


def test_weights_are_shown_if_they_are_there(tmp_path: Path) -> None:
    path = folder_of({}).write(tmp_path)
    assert inspected(path)["weights_bytes"] is None

    mx.save_safetensors(str(path / "model.safetensors"), {"w": mx.zeros((4, 4))})

    assert inspected(path)["weights_bytes"] == 64


def test_layers_whose_weights_are_packed_otherwise_are_counted(tmp_path: Path) -> None:
    packed = {"bits": 4, "group_size": 64, "mode": "affine"}
    path = folder_of({"quantization": {**packed, "lm_head": {**packed, "bits": 6}, "model.norm": False}}).write(
        tmp_path
    )

    assert inspected(path)["quantization"] == {**packed, "layers_with_their_own": 1}
    assert "layers with their own: 1" in in_words(path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": "many", "num_attention_heads": 4},
        {"model_type": "gemma3", "text_config": {"hidden_size": None, "rope_parameters": {"full_attention": 7}}},
        {"model_type": "qwen3", "rope_parameters": {"full_attention": None, "sliding_attention": None}},
        {"model_type": "llama", "layer_types": 7, "per_layer_config": {"0": 3}, "quantization_config": [1]},
    ],
)
def test_nonsense_in_a_config_is_refused_and_not_a_traceback(tmp_path: Path, config: dict[str, Any]) -> None:
    assert inspected(folder_of(config).write(tmp_path))["batching"]["kind"] == "refused"
