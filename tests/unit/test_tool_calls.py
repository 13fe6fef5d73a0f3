"""Tool calls are read out of an answer whole and well-formed, or its text stays as it is."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.support.row_results import row_result
from tests.support.row_specs import row_spec
from tests.support.small_tokenizers import real_tokenizer

from mlxq.contract import Request, Sampling, StopDetails, StopType, Structure, ToolChoice
from mlxq.errors import ConfigError
from mlxq_worker.dialects.tool_calls import ToolAnswer, split_answer
from mlxq_worker.dialects.tool_format import ToolFormat, tool_format_of
from mlxq_worker.engine.constraint import Constraint
from mlxq_worker.engine.reasoning import Reasoning
from mlxq_worker.model.load import load_tokenizer_only
from mlxq_worker.text.answer_parts import AnswerParts, AnswerReader
from mlxq_worker.text.structure import StructureCompiler

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
)

TEMPLATES = {
    "json_tools": '<tool_call>{"name": {{ tool_call.name }}, "arguments": {{ tool_call.arguments }}}</tool_call>',
    "mistral list": "[TOOL_CALLS] [",
    "mistral": "[TOOL_CALLS]{{ name }}[ARGS]",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "pythonic": "<|tool_call_start|>",
    "qwen3_coder": "<tool_call>\n<function=",
    "bare JSON": '{"name": "{{ name }}", "parameters": {{ arguments }}}',
}
"""As much of each family's chat template as its format is told by."""
SPECIALS = {
    "json_tools": [],
    "qwen3_coder": [],
    "mistral": ["[TOOL_CALLS]", "[ARGS]"],
    "mistral list": ["[TOOL_CALLS]"],
    "kimi_k2": [
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ],
    "pythonic": ["<|tool_call_start|>", "<|tool_call_end|>"],
    "bare JSON": ["<|python_tag|>"],
}


@cache
def tokenizer(family: str) -> Any:
    made = real_tokenizer(chat_template=TEMPLATES[family])
    made.add_tokens(SPECIALS[family], special_tokens=True)
    made.add_tokens(["<tool_call>", "</tool_call>"])  # with a text, as in Qwen
    return made


@cache
def format_of(family: str) -> ToolFormat:
    found = tool_format_of(tokenizer(family))
    assert found is not None
    return found


def split(family: str, raw: str, *, several: bool = True) -> ToolAnswer | None:
    ids = iter(range(10))
    return split_answer(raw, TOOLS, format_of(family), several=several, draw_id=lambda: f"call_{next(ids)}")


def calls(answer: ToolAnswer | None) -> list[tuple[str, Any]]:
    assert answer is not None
    return [(call.name, json.loads(call.arguments)) for call in answer.calls]


PARIS = ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        ("json_tools", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        ("json_tools", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}'),
        ("mistral list", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]'),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
        ("pythonic", '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>'),
        (
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        ),
        ("bare JSON", '{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        ("bare JSON", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}'),
    ],
)
def test_a_call_is_read_in_the_models_own_format(family: str, raw: str) -> None:
    answer = split(family, raw)

    assert calls(answer) == [PARIS]
    assert answer is not None
    assert answer.text == ""


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        (
            "json_tools",
            """<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>
            <tool_call>{"name": "now", "arguments": {}}</tool_call>""",
        ),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}'),
        ("bare JSON", '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}'),
    ],
)
def test_several_calls_keep_their_order_or_the_first_is_taken(family: str, raw: str) -> None:
    assert calls(split(family, raw)) == [PARIS, ("now", {})]
    assert calls(split(family, raw, several=False)) == [PARIS]


KIMIS_CALLS = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_call_begin|>now<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
)


@pytest.mark.parametrize(
    ("family", "raw", "ids"),
    [
        ("kimi_k2", KIMIS_CALLS, ["functions.now:3", "functions.now:1"]),
        ("mistral list", '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "q2W4e6R8t"}]', ["q2W4e6R8t"]),
        ("mistral list", '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "too long an id"}]', ["call_0"]),
    ],
)
def test_a_call_keeps_the_id_that_the_model_gave_it_if_its_template_takes_that(
    family: str, raw: str, ids: list[str]
) -> None:
    answer = split(family, raw)

    assert answer is not None
    assert [call.id for call in answer.calls] == ids


def test_an_argument_may_spell_out_the_end_marker() -> None:
    answer = split("json_tools", '<tool_call>{"name": "now", "arguments": {"a": "</tool_call>"}}</tool_call> So.')

    assert calls(answer) == [("now", {"a": "</tool_call>"})]
    assert answer is not None
    assert answer.text == "So."


def test_an_answer_full_of_end_markers_is_read_without_trying_each() -> None:
    # given so many that trying each takes hours
    assert split("json_tools", '<tool_call>"' + "</tool_call>" * 400_000) is None


def test_what_stands_outside_the_calls_is_the_text_without_special_tokens() -> None:
    answer = split("pythonic", "Let me see.\n<|tool_call_start|>[now()]<|tool_call_end|> So.<|end_header_id|>")

    assert answer is not None
    assert (answer.text, [call.id for call in answer.calls]) == ("Let me see.\n So.", ["call_0"])


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        ("json_tools", "<tool_call>{not JSON}</tool_call>"),
        ("json_tools", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "now", "arguments": {"x": NaN}}</tool_call>'),
        ("json_tools", "<tool_call>[]</tool_call>"),
        ("json_tools", "It is noon."),
        ("pythonic", "<|tool_call_start|>nothing<|tool_call_end|>"),
        ("bare JSON", '{"name": "now"}'),
        ("bare JSON", '{"name": "now", "parameters": {}} is what I would call'),
        ("bare JSON", "null"),
        ("bare JSON", ""),
    ],
)
def test_what_is_no_call_of_an_offered_tool_is_none(family: str, raw: str) -> None:
    assert split(family, raw) is None


def test_a_malformed_call_beside_a_good_one_stays_in_the_text() -> None:
    answer = split("json_tools", '<tool_call>{oops</tool_call><tool_call>{"name": "now"}</tool_call>')

    assert answer is not None
    assert (answer.text, calls(answer)) == ("<tool_call>{oops</tool_call>", [("now", {})])


def test_the_demo_models_calls_are_known_and_a_template_without_calls_is_not() -> None:
    demo = tool_format_of(load_tokenizer_only().tokenizer)

    assert demo is not None
    assert demo.name == "llama3_json"
    assert tool_format_of(real_tokenizer(chat_template="{{ messages }}")) is None
    assert tool_format_of(real_tokenizer(chat_template=None)) is None


@pytest.mark.parametrize("family", TEMPLATES)
def test_each_family_is_told_by_its_template(family: str) -> None:
    names = {"json_tools": "hermes", "mistral list": "mistral_list", "pythonic": "lfm2", "bare JSON": "llama3_json"}

    assert format_of(family).name == names.get(family, family)


def test_a_parser_that_the_tokenizers_configuration_names_goes_before_the_template() -> None:
    model = real_tokenizer(chat_template=TEMPLATES["mistral"])
    model.init_kwargs["tool_parser_type"] = "json_tools"

    found = tool_format_of(model)

    assert found is not None
    assert (found.name, found.start) == ("hermes", "<tool_call>")


def test_a_parser_of_an_unknown_name_in_the_tokenizers_configuration_is_left_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = real_tokenizer(chat_template=TEMPLATES["mistral"])
    model.init_kwargs["tool_parser_type"] = "nobody_knows"

    found = tool_format_of(model)

    assert found is not None
    assert found.name == "mistral"
    assert "nobody_knows" in caplog.text


def test_a_parser_that_the_user_names_goes_before_all_and_must_be_known() -> None:
    model = tokenizer("mistral")

    named = [tool_format_of(model, name) for name in ("hermes", "qwen3_xml", "glm47")]

    assert [each.name for each in named if each] == ["hermes", "qwen3_coder", "glm47"]
    assert tool_format_of(model, "none") is None
    with pytest.raises(ConfigError, match="--tool-call-parser"):
        tool_format_of(model, "nobody_knows")


@pytest.mark.parametrize("family", ["json_tools", "mistral list", "mistral", "kimi_k2", "bare JSON"])
@pytest.mark.parametrize("several", [False, True])
def test_the_calls_that_a_grammar_forces_are_read_back(family: str, several: bool) -> None:
    eos = frozenset({257})
    compiler = StructureCompiler(tokenizer(family), eos, len(tokenizer(family)), format_of(family))
    asked = request(tool_choice=ToolChoice(mode="required", parallel=several))

    for seed in range(5):
        constraint = compiler.constraint(asked, eos)
        assert constraint is not None

        answer = split(family, tokenizer(family).decode(random_answer(constraint, eos, seed)))
        assert answer is not None
        assert answer.text == ""
        assert len(answer.calls) == 1 or several


@pytest.mark.parametrize("family", ["json_tools", "mistral list", "mistral", "kimi_k2"])
def test_calls_of_strict_tools_fit_amid_free_text(family: str) -> None:
    eos, model, tool_format = frozenset({257}), tokenizer(family), format_of(family)
    strict = ({"type": "function", "function": {**TOOLS[0]["function"], "strict": True}},)
    constraint = StructureCompiler(model, eos, len(model), tool_format).constraint(request(tools=strict), eos)
    assert constraint is not None
    text = model.encode("I <see>: {}\n", add_special_tokens=False)
    (marker,) = model.encode(tool_format.start, add_special_tokens=False)

    for token_id in (*text, marker):
        assert token_id in allowed_by(constraint)
        constraint.advance(token_id)
    call = random_answer(constraint, eos, seed=1)

    answer = split(family, model.decode([*text, marker, *call]))
    assert answer is not None
    assert {(name, "city" in arguments) for name, arguments in calls(answer)} == {("get_weather", True)}
    assert answer.text.startswith("I <see>: {}")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("choice", ["[TOOL_CALLS]"], "[TOOL_CALLS]"),
        ("choice", ["<tool_call>"], "<tool_call>"),
        ("json_schema", {"const": "<tool_call>"}, '"<tool_call>"'),
        ("json_schema", {"enum": ["[TOOL_CALLS]"]}, '"[TOOL_CALLS]"'),
        ("regex", "<tool_call>x", "<tool_call>x"),
        ("grammar", 'start: "[TOOL_CALLS]" "x"', "[TOOL_CALLS]x"),
    ],
)
def test_a_structure_that_demands_the_text_of_a_special_token_gets_it_spelled_out(
    kind: Any, value: Any, expected: str
) -> None:
    eos, model = frozenset({257}), tokenizer("mistral")
    asked = request(tools=None, structure=Structure(kind=kind, value=value, param="response_format"))
    constraint = StructureCompiler(model, eos, len(model)).constraint(asked, eos)
    assert constraint is not None

    ids = random_answer(constraint, eos, seed=1)

    assert model.decode(ids) == expected
    assert set(model.get_added_vocab().values()).isdisjoint(ids)


def allowed_by(constraint: Constraint) -> list[int]:
    bits = np.unpackbits(np.frombuffer(constraint.allowed_ids(), np.uint8), bitorder="little")
    found: list[int] = np.flatnonzero(bits).tolist()
    return found


def random_answer(constraint: Constraint, eos: frozenset[int], seed: int) -> list[int]:
    """One of the answers that a constraint allows, ended as soon as it may be."""
    choose = random.Random(seed)
    ids: list[int] = []
    while True:
        allowed = allowed_by(constraint)
        if not eos.isdisjoint(allowed):
            return ids
        ids.append(choose.choice(allowed))
        constraint.advance(ids[-1])


def test_a_format_that_no_grammar_says_cannot_be_forced() -> None:
    known = format_of("pythonic")
    unsaid = replace(known, dialect=replace(known.dialect, forced=None))
    compiler = StructureCompiler(tokenizer("pythonic"), frozenset({257}), 300, unsaid)

    with pytest.raises(Exception, match="can't be forced") as refused:
        compiler.constraint(request(tool_choice=ToolChoice(mode="required")), frozenset({257}))

    assert getattr(refused.value, "param", None) == "tool_choice"


# --- The whole answer -----------------------------------------------------------------------------------------


def request(**fields: Any) -> Request:
    return Request(
        custom_id="r",
        endpoint="/v1/chat/completions",
        sampling=Sampling(),
        content_hash="",
        messages=(),
        **{"tools": TOOLS, **fields},
    )


def read(
    text: str,
    *,
    family: str = "mistral",
    end: StopType = "eos_token",
    stop: str | None = None,
    spec: Any = None,
    **fields: Any,
) -> AnswerParts:
    model = tokenizer(family)

    def decode(token_ids: Any) -> str:
        return str(model.decode(list(token_ids), skip_special_tokens=True))

    ids = model.encode(text, add_special_tokens=False)
    result = row_result(
        token_ids=tuple(ids) + ((257,) if end == "eos_token" else ()),
        text=decode(ids),
        stop_details=StopDetails(type=end, string=stop),
    )
    return AnswerReader(model, decode, format_of(family)).read(request(**fields), spec or row_spec(), result)


CALL = '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'


def test_the_end_token_is_no_part_of_a_call() -> None:
    parts = read('{"name": "now", "parameters": {}}', family="bare JSON")

    assert [call.name for call in parts.tool_calls] == ["now"]


def test_an_answer_with_calls_finishes_with_tool_calls() -> None:
    parts = read(CALL)

    (call,) = parts.tool_calls
    assert (parts.finish_reason, parts.text, call.name, call.arguments) == (
        "tool_calls",
        "",
        "get_weather",
        '{"city": "Paris"}',
    )
    assert re.fullmatch("[A-Za-z0-9]{9}", call.id)  # the only ids that Mistral's templates take


def test_calls_of_most_formats_have_ids_in_openais_style() -> None:
    [call] = read('{"name": "now", "parameters": {}}', family="bare JSON").tool_calls

    assert re.fullmatch("call_[0-9a-f]{24}", call.id)


def test_a_call_that_a_limit_cut_off_is_length_and_keeps_its_raw_text() -> None:
    parts = read(CALL[:-3], end="max_tokens")

    assert (parts.finish_reason, parts.text, parts.tool_calls) == ("length", CALL[:-3], ())


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (f"{CALL}\nObservation: s", "\nObservation:", [("get_weather", {"city": "Paris"})]),
        (CALL, '"}', []),
    ],
)
def test_calls_are_read_up_to_a_stop_string(text: str, stop: str, expected: list[Any]) -> None:
    parts = read(text, end="stop_string", stop=stop)

    assert [(call.name, json.loads(call.arguments)) for call in parts.tool_calls] == expected
    assert parts.finish_reason == ("tool_calls" if expected else "stop")


def test_a_malformed_call_stays_the_text_that_it_was() -> None:
    parts = read("[TOOL_CALLS]get_weather[ARGS]{oops")

    assert (parts.finish_reason, parts.text) == ("stop", "get_weather{oops")


@pytest.mark.parametrize("fields", [{"tools": None}, {"tool_choice": ToolChoice(mode="none")}])
def test_without_tools_on_offer_nothing_is_a_call(fields: dict[str, Any]) -> None:
    assert read(CALL, **fields).tool_calls == ()


def test_without_parallel_calls_the_first_is_taken() -> None:
    assert len(read(CALL * 2, tool_choice=ToolChoice(parallel=False)).tool_calls) == 1


def test_calls_are_looked_for_behind_the_reasoning_part_only() -> None:
    (bar,) = tokenizer("mistral").encode("|", add_special_tokens=False)
    spec = row_spec(reasoning=Reasoning(starts=((bar,),), ends=((bar,),), is_open=True))

    parts = read(f"{CALL}|{CALL}", spec=spec)

    assert parts.reasoning_content == 'get_weather{"city": "Paris"}'
    assert len(parts.tool_calls) == 1
