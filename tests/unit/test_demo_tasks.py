"""The demo model's tasks, tokenizer and files, without running the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.waiting import DEADLINE_S
from tokenizers import Tokenizer

from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.demo.capitals import CAPITALS
from mlxq_worker.demo.prompts import encode, encode_prompt, load_tokenizer
from mlxq_worker.demo.tasks import MAX_NUMBER, Example, count_example, generate, held_out, is_held_out_pair
from mlxq_worker.demo.tokenizer import BOS, CHAT_TEMPLATE, build_tokenizer

MIB = 2**20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODEL_PATH)


@pytest.fixture(scope="module")
def raw_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))


def question(example: Example) -> str:
    """What was asked, whatever stands around it."""
    prompt: str = example.body.get("prompt") or example.body["messages"][-1]["content"]
    return prompt


def take(split: Any, n: int, seed: int = 0) -> Iterator[Example]:
    return islice(generate(seed, split), n)


def test_equal_seeds_give_equal_examples_and_other_seeds_others() -> None:
    assert held_out(40, seed=1) == held_out(40, seed=1)
    assert held_out(40, seed=1) != held_out(40, seed=2)


def test_no_held_out_question_is_ever_trained_on() -> None:
    trained = {question(example) for example in take("train", 20_000)}

    assert trained.isdisjoint(question(example) for example in take("held_out", 5_000))


def test_every_country_and_city_is_trained_on_in_each_task_that_asks_for_it() -> None:
    trained = list(take("train", 20_000))

    for task in ("chat", "plain", "tool"):
        text = " ".join(example.expected_text for example in trained if example.task == task)
        assert all(city in text for city in CAPITALS.values())
        assert task == "tool" or all(country in text for country in CAPITALS)


def test_held_out_counting_pairs_are_of_every_length() -> None:
    for span in range(2, 199):
        kept_out = [is_held_out_pair(start, start + span) for start in range(MAX_NUMBER - span + 1)]
        assert 1 / 9 <= sum(kept_out) / len(kept_out) <= 1 / 5


def test_every_number_is_trained_on_as_the_end_of_counting() -> None:
    trained = [question(example) for example in take("train", 40_000) if example.task == "count"]

    ends = {int(re.findall(r"\d+", prompt)[1]) for prompt in trained}

    assert ends >= set(range(10, MAX_NUMBER + 1))


def test_the_right_end_depends_on_whether_the_matching_tool_is_offered() -> None:
    for example in take("held_out", 400):
        if example.task != "tool":
            continue
        offered = {tool["function"]["name"] for tool in example.body.get("tools", [])}
        if example.expected_end_token == "<|eom_id|>":
            assert json.loads(example.expected_text)["name"] in offered
        else:
            topic = "weather" if "weather" in example.expected_text else "time"
            assert f"get_{topic}" not in offered


def test_counting_includes_both_ends() -> None:
    assert count_example(8, 11).expected_text == " 8 9 10 11"


def test_counting_answers_take_4_to_200_tokens(tokenizer: Any) -> None:
    examples = [example for example in take("held_out", 1_200) if example.task == "count"]

    lengths = [len(encode(tokenizer, example).answer_ids) for example in examples]

    assert min(lengths) == 4
    assert 190 <= max(lengths) <= 200
    assert 15 < sorted(lengths)[len(lengths) // 2] < 50


def test_every_number_up_to_400_is_one_token(tokenizer: Any) -> None:
    assert all(len(tokenizer.encode(f" {n}", add_special_tokens=False)) == 1 for n in range(401))


@given(text=st.text())
def test_any_text_survives_encoding_and_decoding(raw_tokenizer: Tokenizer, text: str) -> None:
    ids = raw_tokenizer.encode(text, add_special_tokens=False).ids

    assert raw_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_prompt_starts_with_exactly_one_bos(tokenizer: Any) -> None:
    bos = tokenizer.convert_tokens_to_ids(BOS)
    for example in held_out(40):
        ids = encode_prompt(tokenizer, example)
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_encoding_a_rendered_chat_with_special_tokens_doubles_the_bos(tokenizer: Any) -> None:
    """Why `add_special_tokens=False` matters for this model as for every Llama."""
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)

    assert tokenizer.encode(rendered).count(tokenizer.convert_tokens_to_ids(BOS)) == 2


def test_the_template_renders_a_whole_tool_conversation(tokenizer: Any) -> None:
    call = {"function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What time is it in Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12:30"},
        {"role": "assistant", "content": "Half past twelve."},
    ]
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {"properties": {"city": {}}}}}]

    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)

    assert rendered == (
        "<|begin_of_text|>"
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.\nTools: get_time(city)<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat time is it in Oslo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "get_time", "parameters": {"city": "Oslo"}}<|eom_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n12:30<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHalf past twelve.<|eot_id|>"
    )


def test_the_template_takes_a_tool_without_parameters(tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "ping"}}]

    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tools=tools, tokenize=False)

    assert "Tools: ping()<|eot_id|>" in rendered


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_both_configs_list_all_three_end_tokens_in_llama_order(tokenizer: Any, name: str) -> None:
    config = json.loads((MODEL_PATH / name).read_text())

    tokens = tokenizer.convert_ids_to_tokens(config["eos_token_id"])

    assert tokens == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    assert tokenizer.eos_token == "<|eot_id|>"


def test_the_shipped_tokenizer_and_template_are_what_the_code_builds() -> None:
    assert (MODEL_PATH / "tokenizer.json").read_text() == build_tokenizer().to_str(pretty=True)
    assert (MODEL_PATH / "chat_template.jinja").read_text() == CHAT_TEMPLATE.read_text()


def test_the_model_directory_stays_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in MODEL_PATH.iterdir()) <= 6 * MIB


def test_generating_requests_loads_neither_mlx_nor_transformers() -> None:
    code = (
        "import sys, mlxq_worker.demo.tasks; "
        "print(sorted({'mlx', 'transformers', 'tokenizers', 'numpy'} & {name.split('.')[0] for name in sys.modules}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE_S)

    assert done.stdout.strip() == "[]"


def test_the_command_line_prints_batch_lines() -> None:
    command = [sys.executable, "-m", "mlxq_worker.demo.tasks", "--n", "8", "--seed", "3"]

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["custom_id"] for line in lines}) == 8
    assert [line["body"] for line in lines] == [example.body for example in held_out(8, seed=3)]
