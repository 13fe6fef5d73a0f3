"""Model folders in the shape of public reports, each a tiny model that answers with a script: the answer that comes out
is the one that is right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_models import Folder, answer, preparer_of, request_of

from mlxq.errors import RequestError

ASK = {"role": "user", "content": "What is the weather in Paris?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
LONG_ID = "call_0123456789abcdef01234567"
HISTORY = [
    ASK,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": LONG_ID, "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": LONG_ID, "content": "sunny"},
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>'+m.role+'\\n'+m.content+'<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HERMES = "{% if tools %}{{ '<tools>'+tools|tojson+'</tools>' }}{% endif %}{# <tool_call> tool_call.name #}" + CHATML
CODER = (
    "{% if tools %}{{ tools|tojson+'<tool_call>\\n<function=name>\\n<parameter=p>\\nv\\n</parameter>\\n</function>\\n"
    "</tool_call>' }}{% endif %}" + CHATML
)
IM = {"special": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "eos": "<|im_end|>"}
IM_TOOLS: dict[str, Any] = {**IM, "plain": ("<tool_call>", "</tool_call>")}


def message(path: Path, folder: Folder, script: str, **body: Any) -> dict[str, Any]:
    """The only choice's message, and its finish reason."""
    [choice] = answer(path, folder, script, {"messages": [ASK], **body})["choices"]
    return {**choice["message"], "finish_reason": choice["finish_reason"]}


def calls(said: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in said["tool_calls"]]


PARIS = ("get_weather", {"city": "Paris"})


def test_a_thought_may_begin_behind_a_line_break(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|'+m.role+'|>\\n'+m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    folder = Folder(
        template=template,
        special=("<|user|>", "<|assistant|>"),
        plain=("<think>", "</think>"),
        eos="<|endoftext|>",
        config={"eos_token_id": [256, 257]},
    )

    said = message(tmp_path, folder, "\n<think>two and two</think>\n\nIt is sunny.<|user|>")

    assert (said["reasoning_content"], said["content"]) == ("two and two", "It is sunny.")


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role=='user' %}{{ ('[TOOLS]'+tools|tojson if tools else '')"
    "+'[INST]'+m.content+'[/INST]' }}{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}"
    "{% if c.id|length != 9 %}{{ raise_exception('ids must have 9 characters') }}{% endif %}"
    '{{ \'{"name": "\'+c.function.name+\'", "arguments": \'+c.function.arguments|tojson+\', "id": "\'+c.id+\'"}\' }}'
    "{% endfor %}{{ ']'+eos_token }}{% elif m.role=='tool' %}{{ '[TOOL_RESULTS]'+m.tool_call_id+m.content }}"
    "{% else %}{{ m.content+eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TOKENS: dict[str, Any] = {
    "special": ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[THINK]", "[/THINK]"),
    "bos": "<s>",
    "eos": "</s>",
}


def test_mistrals_thoughts_have_markers_of_their_own(tmp_path: Path) -> None:
    said = message(tmp_path, Folder(template=MISTRAL, **MISTRAL_TOKENS), "[THINK]two and two[/THINK]It is sunny.</s>")

    assert (said["reasoning_content"], said["content"]) == ("two and two", "It is sunny.")


def test_mistrals_calls_have_ids_of_nine_letters_and_digits(tmp_path: Path) -> None:
    script = '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]</s>'

    said = message(tmp_path, Folder(template=MISTRAL, **MISTRAL_TOKENS), script, tools=TOOLS)

    assert calls(said) == [PARIS]
    assert re.fullmatch("[A-Za-z0-9]{9}", said["tool_calls"][0]["id"])


def test_openais_long_ids_in_a_history_become_ones_that_the_template_takes(tmp_path: Path) -> None:
    preparer = preparer_of(Folder(template=MISTRAL, **MISTRAL_TOKENS).write(tmp_path))

    [spec] = preparer.prepare(request_of({"messages": HISTORY, "tools": TOOLS}), "row")
    text = preparer.decode(spec.prompt_ids)

    [call_id] = re.findall('"id": "(.*?)"', text)
    assert re.fullmatch("[A-Za-z0-9]{9}", call_id)
    assert text.endswith(f"{call_id}sunny")


def test_a_call_whose_opening_tag_the_model_forgot_is_read(tmp_path: Path) -> None:
    script = (
        "I look it up.\n\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call><|im_end|>"
    )

    said = message(tmp_path, Folder(template=CODER, **IM_TOOLS), script, tools=TOOLS)

    assert (calls(said), said["content"]) == ([PARIS], "I look it up.")


def test_a_value_may_spell_out_its_closing_tag(tmp_path: Path) -> None:
    city = "A block ends with </parameter> here."
    script = (
        f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{city}\n</parameter>\n</function>\n</tool_call>"
        "<|im_end|>"
    )

    said = message(tmp_path, Folder(template=CODER, **IM_TOOLS), script, tools=TOOLS)

    assert calls(said) == [("get_weather", {"city": city})]


def test_parameters_are_read_where_the_format_says_arguments(tmp_path: Path) -> None:
    script = '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n</tool_call><|im_end|>'

    assert calls(message(tmp_path, Folder(template=HERMES, **IM_TOOLS), script, tools=TOOLS)) == [PARIS]


def test_a_named_tool_is_called_exactly_once(tmp_path: Path) -> None:
    one = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    choice = {"type": "function", "function": {"name": "get_weather"}}

    said = message(
        tmp_path,
        Folder(template=HERMES, **IM_TOOLS),
        one + "\n" + one.replace("Paris", "Rome") + "<|im_end|>",
        tools=TOOLS,
        tool_choice=choice,
    )

    assert calls(said) == [PARIS]


def test_a_tool_history_that_the_template_would_drop_is_refused(tmp_path: Path) -> None:
    preparer = preparer_of(Folder(template=CHATML, **IM).write(tmp_path))

    with pytest.raises(RequestError) as refused:
        preparer.prepare(request_of({"messages": HISTORY}), "row")

    assert refused.value.param == "messages[1].tool_calls"


def test_a_template_that_wants_arguments_as_text_gets_them_so(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role=='user' %}{{ '<User>'+m.content }}{% elif m.tool_calls %}"
        "{% for c in m.tool_calls %}{{ '<Assistant>'+c.function.name+'\\n```json\\n'+c.function.arguments+'\\n```'"
        "+eos_token }}{% endfor %}{% elif m.role=='tool' %}{{ '<output>'+m.content }}{% else %}"
        "{{ '<Assistant>'+m.content+eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<Assistant>{% endif %}"
    )
    folder = Folder(template=template, special=("<User>", "<Assistant>"), bos="<bos>", eos="<eos>")

    assert message(tmp_path, folder, "It is sunny.<eos>", messages=HISTORY)["content"] == "It is sunny."


def test_a_turn_end_that_is_written_only_before_a_further_message_is_found(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>'+m.role+'\\n'+m.content }}"
        "{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    folder = Folder(template=template, special=("<|im_start|>", "<|im_end|>"), eos="<|endoftext|>")
    script = "It is sunny.<|im_end|><|im_start|>user And tomorrow?<|endoftext|>"

    assert message(tmp_path, folder, script)["content"] == "It is sunny."


NAMED = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": HERMES}]


def test_with_tools_the_template_named_tool_use_is_used(tmp_path: Path) -> None:
    folder = Folder(template=None, **IM_TOOLS, tokenizer_config={"chat_template": NAMED})
    script = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'

    assert calls(message(tmp_path / "tools", folder, script, tools=TOOLS)) == [PARIS]
    assert message(tmp_path / "plain", folder, "It is sunny.<|im_end|>")["content"] == "It is sunny."


def test_an_unknown_tool_parser_stops_nobody_who_asks_for_no_tools(tmp_path: Path) -> None:
    folder = Folder(template=HERMES, **IM_TOOLS, tokenizer_config={"tool_parser_type": "olmo9"})

    assert message(tmp_path, folder, "It is sunny.<|im_end|>")["content"] == "It is sunny."


HARMONY = (
    "{% if tools %}{{ '<|start|>developer<|message|># Tools' + tools|tojson + '<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content"
    " + ('<|return|>' if m.role == 'assistant' and loop.last else '<|end|>') }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|> to=functions. <|call|> #}"
)
HARMONY_TOKENS: dict[str, Any] = {
    "special": ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|endoftext|>"),
    "eos": "<|return|>",
}


def test_gpt_oss_thinks_in_one_channel_and_answers_in_another(tmp_path: Path) -> None:
    script = (
        "<|channel|>analysis<|message|>The user wants the weather.<|end|><|start|>assistant<|channel|>final<|message|>"
        "It is sunny.<|return|>"
    )

    said = message(tmp_path, Folder(template=HARMONY, **HARMONY_TOKENS), script)

    assert (said["reasoning_content"], said["content"]) == ("The user wants the weather.", "It is sunny.")


def test_gpt_oss_calls_a_tool_in_the_commentary_channel_and_ends_with_it(tmp_path: Path) -> None:
    script = (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Paris"}<|call|>On and on'
    )

    said = message(tmp_path, Folder(template=HARMONY, **HARMONY_TOKENS), script, tools=TOOLS)

    assert (said["reasoning_content"], calls(said), said["finish_reason"]) == ("Look.", [PARIS], "tool_calls")
