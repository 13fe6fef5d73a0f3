"""The turn end of chat templates: a table of those that have one, and of those that only seem to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.small_tokenizers import CHATML_TEMPLATE, FakeTokenizer, gemma, gpt_oss, llama_3, qwen

from mlxq_worker.model.turn_end import find_turn_end

SPECIALS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|end|>\n", "[INST]", "[/INST]", "<think>")


def turn_end(template: str | None) -> str | None:
    added = {token: i for i, token in enumerate(SPECIALS)}
    return find_turn_end(FakeTokenizer(added=added, bos_token="<s>", eos_token="</s>", chat_template=template))


def each_message(body: str, before: str = "", after: str = "") -> str:
    return f"{before}{{% for m in messages %}}{body}{{% endfor %}}{after}"


GENERATION_PROMPT = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"

TEMPLATES = {
    "an end token after a role token": (
        each_message("<|{{ m.role }}|>\n{{ m.content }}<|end|>", after=GENERATION_PROMPT),
        "<|end|>",
    ),
    "white space before the end token": (each_message("<|{{ m.role }}|>{{ m.content }} \n</s>"), "</s>"),
    "Mistral, where only answers have an end": (
        each_message(
            "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}",
            before="<s>",
        ),
        "</s>",
    ),
    "roles in plain words": (each_message("{{ m.role }}: {{ m.content }}<|end|>", before="<s>"), "<|end|>"),
    "a default system message that ends like an answer": (
        each_message("{{ m.role }}: {{ m.content }}<|end|>", before="<s>Be kind.<|end|>"),
        "<|end|>",
    ),
    "thoughts before the answer": (
        each_message("<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}<|end|>"),
        "<|end|>",
    ),
    "a system message is demanded": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        + each_message("<|{{ m.role }}|>{{ m.content }}<|end|>"),
        "<|end|>",
    ),
    "no template": (None, None),
    "nothing after the answer": (each_message("<|{{ m.role }}|>{{ m.content }}", after=GENERATION_PROMPT), None),
    "plain text after the answer": (each_message("{{ m.role }}: {{ m.content }}\n###\n"), None),
    "plain text, then a special token": (each_message("{{ m.role }}: {{ m.content }} END</s>"), None),
    "no end token, then the generation prompt always": (
        each_message("<|{{ m.role }}|>{{ m.content }}", after="<|assistant|>"),
        None,
    ),
    "no end token, then the next user's turn is opened": (
        each_message("<|{{ m.role }}|>{{ m.content }}", after="<|user|>"),
        None,
    ),
    "no end token, then a header like the one that the text starts with": (
        each_message("[INST]{{ m.role }}[/INST]{{ m.content }}", before="<s>", after="[INST]"),
        None,
    ),
    "no end token, then a header like the one of the generation prompt": (
        each_message(
            "[INST]{{ m.role }}[/INST]{{ m.content }}",
            before="<s>Be kind.",
            after="{% if add_generation_prompt or messages[-1].role == 'assistant' %}[INST]{% endif %}",
        ),
        None,
    ),
    "no end token, then the start of a text": (each_message("{{ m.role }}: {{ m.content }}<s>"), None),
    "a template that always fails": ("{{ raise_exception('never') }}", None),
    "a template that divides by zero": ("{{ 1 // 0 }}", None),
    "a template that does not compile": ("{% for %}", None),
    "a template that leaves answers out": (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}",
        None,
    ),
}


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_turn_end_is_the_special_token_right_after_the_answer(template: str | None, expected: str | None) -> None:
    assert turn_end(template) == expected


def test_of_two_tokens_that_fit_the_longer_is_the_turn_end() -> None:
    added = {"<|im_end|>": 1, "<|im_end|>\n": 2, "<|im_start|>": 3}

    assert find_turn_end(FakeTokenizer(added=added, chat_template=CHATML_TEMPLATE)) == "<|im_end|>\n"


def test_a_tokenizer_without_special_tokens_has_no_turn_end() -> None:
    assert find_turn_end(FakeTokenizer(words={"a": 1}, chat_template=CHATML_TEMPLATE)) is None


def test_a_turn_end_is_found_in_a_template_without_generation_prompt() -> None:
    template = llama_3().chat_template
    assert template is not None
    without = replace(llama_3(), chat_template=template.split("{%- if add_generation_prompt %}")[0])

    assert find_turn_end(without) == "<|eot_id|>"


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [(llama_3(), "<|eot_id|>"), (qwen(), "<|im_end|>"), (gemma(), "<end_of_turn>"), (gpt_oss(), "<|return|>")],
    ids=["llama 3", "qwen", "gemma", "gpt-oss"],
)
def test_the_turn_ends_of_well_known_models_are_found(tokenizer: FakeTokenizer, expected: str) -> None:
    assert find_turn_end(tokenizer) == expected
