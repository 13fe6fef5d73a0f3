"""Chat templates get messages in the shape that they want, from every place where a folder keeps them, and what they
would leave out is refused by name."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_models import Folder, preparer_of, request_of
from tokenizers import normalizers

from mlxq.errors import RequestError
from mlxq_worker.model.load import load_tokenizer_only

USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
SECOND = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": '{"c": "d"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
KNOWN = "{# <tool_call> tool_call.name #}"


def rendered(
    path: Path, template: str | None, *messages: Any, folder: dict[str, Any] | None = None, **body: Any
) -> str:
    preparer = preparer_of(Folder(template=template, **(folder or {})).write(path))
    [spec] = preparer.prepare(request_of({"messages": list(messages), **body}), "row")
    return preparer.decode(spec.prompt_ids)


def refused(path: Path, template: str, *messages: Any, **body: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        rendered(path, template, *messages, **body)
    return error.value


EACH = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
CALLS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}"
    "<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %};{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "messages", "param"),
    [
        (EACH, [USER, CALLED, RESULT], "messages[1].tool_calls"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            [{"role": "system", "content": "x"}, USER],
            "messages[0].content",
        ),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls }}{% endfor %}",
            [USER, {"role": "tool", "content": "x"}, USER],
            "messages[1].content",
        ),
        ("{{ messages[-1].content }}", [USER, {"role": "assistant", "content": "yes"}, USER], "messages[0].content"),
        (
            CALLS.replace("in m.tool_calls", "in (m.tool_calls or [])[:1]"),
            [USER, {**CALLED, "tool_calls": [CALL, SECOND]}, RESULT],
            "messages[1].tool_calls",
        ),
        (CALLS.replace("{{ c.function.arguments | tojson }}", ""), [USER, CALLED, RESULT], "messages[1].tool_calls"),
    ],
    ids=["calls", "a system message", "a tool's result", "earlier messages", "all calls but the first", "arguments"],
)
def test_what_a_template_leaves_out_is_refused_by_name(
    tmp_path: Path, template: str, messages: list[Any], param: str
) -> None:
    error = refused(tmp_path, template, *messages)

    assert (error.param, error.code) == (param, "unsupported")
    assert param in error.message


def test_tools_that_a_template_leaves_out_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, KNOWN + EACH, USER, tools=TOOLS).param == "tools"
    assert refused(tmp_path, KNOWN + EACH + "{{ 'You have tools.' if tools }}", USER, tools=TOOLS).param == "tools"


def test_a_template_that_merges_messages_is_no_reason_to_refuse(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}|{{ messages[1].content | trim | lower }}"

    assert rendered(tmp_path, template, {"role": "system", "content": "be kind"}, USER) == "be kind|hi"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CALLS, 'user:hi;assistant:<f {"a": "b"}>;tool:sunny;'),
        (CALLS.replace(" | tojson", ""), 'user:hi;assistant:<f {"a": "b"}>;tool:sunny;'),
        (
            CALLS.replace(
                "{{ c.function.arguments | tojson }}",
                "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}",
            ),
            "user:hi;assistant:<f a=b>;tool:sunny;",
        ),
        (
            CALLS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"),
            'user:hi;assistant:<f {"a": "b"}>;tool:sunny;',
        ),
        (
            (
                "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %}"
                "{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %};"
                "{% endfor %}"
            ),
            'user:hi;assistant:<f {"a": "b"}>;tool:sunny;',
        ),
        (
            (
                "{% for m in messages %}{{ m.role }}:{{ m.content }}"
                "{% if m.tool_calls and m.content is defined %}"
                "{{ raise_exception('no content, please') }}{% endif %}{% for c in m.tool_calls %}"
                "<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %};{% endfor %}"
            ),
            'user:hi;assistant:<f {"a": "b"}>;tool:sunny;',
        ),
    ],
    ids=["as an object", "printed bare", "item by item", "as text", "contents as parts", "no content"],
)
def test_calls_reach_every_template_in_the_shape_that_it_wants(tmp_path: Path, template: str, expected: str) -> None:
    assert rendered(tmp_path, template, USER, CALLED, RESULT) == expected


def test_a_template_that_counts_its_tools_gets_an_empty_list(tmp_path: Path) -> None:
    assert rendered(tmp_path, "{{ tools | length }}" + EACH, USER) == "0user:hi;"


def test_tools_reach_a_template_that_calls_them_otherwise(tmp_path: Path) -> None:
    template = KNOWN + "{{ xml_tools[0].function.name if xml_tools }}" + EACH

    assert rendered(tmp_path, template, USER, tools=TOOLS) == "fuser:hi;"


def test_ids_that_a_template_refuses_are_made_short_the_same_for_call_and_result(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls %}{% if c.id|length != 9 %}{{ raise_exception('nine') }}"
        "{% endif %}[{{ c.id }}{{ c.function }}]{% endfor %}{{ m.tool_call_id }}{{ m.content }}{% endfor %}"
    ).replace("{{ c.function }}", "{{ c.function | tojson }}")

    text = rendered(tmp_path, template, USER, CALLED, RESULT)

    [call_id] = re.findall(r"\[(\w{9})\{", text)
    assert text.endswith(f"{call_id}sunny")


def test_kimis_ids_name_the_function_and_count_over_the_conversation(tmp_path: Path) -> None:
    template = (
        "{# <|tool_calls_section_begin|> #}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
        "{{ c.id }}{{ c.function.name }}{{ c.function.arguments|tojson }}{% endfor %}({{ m.tool_call_id }}){% endfor %}"
    )
    again = {**CALLED, "tool_calls": [SECOND]}

    text = rendered(tmp_path, template, USER, CALLED, RESULT, again, {**RESULT, "tool_call_id": "call_2"})

    assert re.findall(r"functions\.\w+:\d", text) == [
        "functions.f:0",
        "functions.f:0",
        "functions.g:1",
        "functions.g:1",
    ]


def test_reasoning_reaches_a_template_under_the_name_that_it_reads(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    for index, name in enumerate(("reasoning_content", "reasoning", "thinking")):
        template = EACH.replace("{{ m.content }}", "{{ m.content }}{{ m." + name + " }}")
        assert rendered(tmp_path / str(index), template, USER, said, USER) == "user:hi;assistant:yeshm;user:hi;"


def test_an_error_names_the_message_and_what_the_template_said(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 and m.role == 'user' == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )

    error = refused(tmp_path, template, USER, {"role": "assistant", "content": "x"}, USER, USER, USER)

    assert (error.param, error.code) == ("messages", "chat_template_error")
    assert error.message.endswith("roles must alternate (at messages[3])")


# --- Where templates are kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chat_template.jinja", f"file:{EACH}"),
        ("chat_template.json", json.dumps({"chat_template": f"file:{EACH}"})),
    ],
)
def test_a_template_in_a_file_of_its_own_is_found(tmp_path: Path, name: str, text: str) -> None:
    assert rendered(tmp_path, None, USER, folder={"files": {name: text}}) == "file:user:hi;"


def test_additional_templates_are_chosen_by_name(tmp_path: Path) -> None:
    files = {
        "chat_template.jinja": EACH,
        "additional_chat_templates/tool_use.jinja": KNOWN + "{{ tools[0].function.name }}" + EACH,
        "additional_chat_templates/rag.jinja": "never",
    }

    assert rendered(tmp_path / "a", None, USER, folder={"files": files}) == "user:hi;"
    assert rendered(tmp_path / "b", None, USER, folder={"files": files}, tools=TOOLS) == "fuser:hi;"


def test_several_templates_without_a_default_one_are_no_error(tmp_path: Path) -> None:
    named = [{"name": "plain", "template": EACH}]

    assert rendered(tmp_path, None, USER, folder={"tokenizer_config": {"chat_template": named}}) == "user:hi;"


def test_templates_have_the_helpers_that_transformers_gives_them(tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"

    text = rendered(tmp_path, template, USER)

    assert text in {f"{datetime.now(UTC).year + change}hi" for change in (-1, 0, 1)}


def test_a_class_that_reads_texts_otherwise_than_its_file_is_warned_of_and_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = Folder(template=EACH).tokenizer()
    raw.normalizer = normalizers.Lowercase()
    files = {"tokenizer.json": raw.to_str()}

    rendered(tmp_path / "same", EACH, USER, folder={"files": files})
    assert "reads texts otherwise" not in caplog.text
    rendered(
        tmp_path / "other",
        EACH,
        USER,
        folder={"files": files, "tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}},
    )
    assert "Qwen2Tokenizer reads texts otherwise" in caplog.text
    tokenizer = load_tokenizer_only(str(tmp_path / "other")).tokenizer
    assert tokenizer.encode("ABC", add_special_tokens=False) == raw.encode("abc").ids


@pytest.mark.parametrize("tokenizer_class", ["GemmaTokenizer", "MistralCommonBackend"])
def test_a_class_that_can_not_be_made_of_the_file_is_not_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tokenizer_class: str
) -> None:
    folder = Folder(template=EACH, tokenizer_config={"tokenizer_class": tokenizer_class})

    tokenizer = load_tokenizer_only(str(folder.write(tmp_path))).tokenizer

    assert tokenizer.encode("ABC", add_special_tokens=False) == folder.tokenizer().encode("ABC").ids
    assert "can't make its own tokenizer" in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True},
        {"extra_special_tokens": ["<|a|>", "<image>"]},
        {"extra_special_tokens": {"image_token": "<image>"}, "additional_special_tokens": ["<|a|>"]},
        {"tokenizer_class": "NoSuchTokenizerFast", "auto_map": {"AutoTokenizer": ["its_own.Code", None]}},
    ],
    ids=["a backend", "a list of special tokens", "a dict of them", "a class of its own"],
)
def test_a_tokenizer_is_the_same_in_either_transformers_words(tmp_path: Path, words: dict[str, Any]) -> None:
    folder = Folder(template=EACH, special=("<|a|>", "<image>"), tokenizer_config=words)
    text = "<|a|>Ab  1<image>"

    tokenizer = load_tokenizer_only(str(folder.write(tmp_path))).tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)

    assert ids == folder.tokenizer().encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == "Ab  1"


def test_tools_reach_a_template_that_reads_them_in_the_system_message(tmp_path: Path) -> None:
    template = (
        KNOWN + "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% if m.role == 'system' and 'tools' in m and m.tools is not none %}{{ '<|tool|>' + m.tools + '<|/tool|>' }}"
        "{% endif %};{% endfor %}"
    )

    text = rendered(tmp_path, template, USER, tools=TOOLS)

    assert text == 'system:<|tool|>[{"name": "f", "parameters": {"type": "object"}}]<|/tool|>;user:hi;'


def test_calls_that_only_begin_as_a_known_dialect_does_are_refused(tmp_path: Path) -> None:
    template = (
        "{{ tools | tojson if tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
        "<tool_call>({{ c.function.name }})({{ c.function.arguments | tojson }})</tool_call>{% endfor %}{% endfor %}"
    )

    assert refused(tmp_path, KNOWN + template, USER, tools=TOOLS).param == "tools"


DEEPSEEK: dict[str, Any] = {
    "special": ("<｜User｜>", "<｜Assistant｜>"),
    "plain": ("<think>", "</think>"),
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "tokenizer_config": {"chat_template_type": "deepseek_v32"},
}


def test_a_template_that_is_python_renders_as_others_do(tmp_path: Path) -> None:
    plain = rendered(tmp_path / "plain", None, USER, folder=DEEPSEEK)
    tools = rendered(tmp_path / "tools", None, USER, CALLED, RESULT, folder=DEEPSEEK, tools=TOOLS)

    assert plain == "hi<think>"
    assert '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">b<' in tools


def test_a_python_template_that_mlx_lm_has_not_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = {"tokenizer_config": {"chat_template_type": "unheard_of"}}

    assert rendered(tmp_path, EACH, USER, folder=folder) == "user:hi;"
    assert "unheard_of" in caplog.text
