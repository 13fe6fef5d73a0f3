"""Constraints let exactly what was asked for through, by the demo model's tokenizer, and end when it is complete."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from tests.support.held_answers import allows, compiler, demo, encode, eos_ids, made, request, verdict
from tests.support.small_tokenizers import llama_3, real_tokenizer

from mlxq.contract import Sampling, ToolChoice
from mlxq.errors import RequestError
from mlxq.requests.structures import MAX_CHOICES
from mlxq_worker.dialects.tool_format import tool_format_of
from mlxq_worker.engine.constraint import fill_masks
from mlxq_worker.engine.reasoning import Reasoning
from mlxq_worker.text import structure
from mlxq_worker.text.structure import StructureCompiler

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
INTEGER_A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def nested(depth: int) -> dict[str, Any]:
    """Objects in objects; each takes two levels of the schema."""
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("kind", "value", "text", "expected"),
    [
        ("json_object", None, '{"a": [1, {"é": null}]}', "complete"),
        ("json_object", None, '{"a": 1', "unfinished"),
        ("json_object", None, "[1]", "refused"),
        ("json_schema", INTEGER_A, '{"a":1}', "complete"),
        ("json_schema", INTEGER_A, '{"a": "1"}', "refused"),
        ("json_schema", INTEGER_A, "{" + " " * 40, "refused"),
        ("regex", r"\d{2}/[ab]+", "12/", "unfinished"),
        ("regex", r"\d{2}/[ab]+", "12/ab", "complete"),
        ("choice", ["a.c", 'x"\n', "é"], "abc", "refused"),
        ("choice", ["a.c", 'x"\n', "é"], 'x"\n', "complete"),
        ("choice", ["a.c", 'x"\n', "é"], "é", "complete"),
        ("grammar", 'start: "x" y\ny: "1" | "2"', "x2", "complete"),
        ("grammar", 'root ::= "x" y\ny ::= "1" | "2"', "x3", "refused"),
        ("grammar", 'root ::= "x" y\ny ::= "1" | "2"', "x2", "complete"),
    ],
)
def test_an_answer_is_held_to_the_structure(kind: str, value: Any, text: str, expected: str) -> None:
    assert verdict(request(kind, value), text) == expected


def test_each_of_as_many_choices_as_there_may_be_is_let_through() -> None:
    choices = [f"number {i}" for i in range(MAX_CHOICES)]

    assert verdict(request("choice", choices), choices[-1]) == "complete"


def test_a_request_without_a_structure_has_no_constraint() -> None:
    assert compiler().constraint(request(), eos_ids()) is None


def test_a_complete_answer_that_nothing_can_follow_has_to_end() -> None:
    constraint = made(request("choice", ["yes"]))

    for token_id in encode("yes"):
        constraint.advance(token_id)

    assert {i for i, ok in enumerate(allows(constraint, range(demo().vocab_size))) if ok} == eos_ids()


def test_a_complete_answer_that_something_can_follow_may_go_on_or_end() -> None:
    constraint = made(request("regex", "a+"))

    constraint.advance(*encode("a"))

    assert allows(constraint, [*encode("a"), *eos_ids()]) == [True] * (1 + len(eos_ids()))


def test_a_stop_token_id_may_end_a_complete_answer_even_under_ignore_eos() -> None:
    (stop_id,) = encode("!")
    asked = request("choice", ["yes"], Sampling(ignore_eos=True, stop_token_ids=(stop_id,)))
    constraint = compiler().constraint(asked, frozenset())
    assert constraint is not None

    before = allows(constraint, [stop_id])
    for token_id in encode("yes"):
        constraint.advance(token_id)

    assert (before, allows(constraint, [stop_id, *eos_ids()])) == ([False], [True, False, False, False])


def test_a_stop_token_id_whose_text_fits_counts_only_where_the_answer_is_complete() -> None:
    (stop_id,) = encode("b")
    constraint = made(request("regex", "ab+", Sampling(stop_token_ids=(stop_id,))))

    complete = [constraint.is_complete]
    for letter in "ab":
        constraint.advance(*encode(letter))
        complete.append(constraint.is_complete)

    assert complete == [False, False, True]
    assert allows(constraint, [stop_id, *eos_ids()]) == [True] * (1 + len(eos_ids()))


def test_no_reasoning_part_before_a_structure_is_complete() -> None:
    constraint = made(request("regex", "y*"), thinking(is_open=True))
    inside = constraint.is_complete
    for token_id in encode("no/>"):
        constraint.advance(token_id)

    assert (inside, constraint.is_complete) == (False, True)


def test_a_structured_answer_that_no_token_could_end_is_refused() -> None:
    with pytest.raises(RequestError) as refused:
        compiler().constraint(request("choice", ["yes"], Sampling(ignore_eos=True)), frozenset())

    assert refused.value.param == "ignore_eos"


@pytest.mark.parametrize(
    ("kind", "value", "code", "quoted"),
    [
        ("regex", "[a", "invalid_regex", "unclosed character class"),
        ("regex", "(?=a)", "invalid_regex", "look-around"),
        ("json_schema", {"type": "foo"}, "invalid_schema", "Invalid type: foo"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "invalid_schema", "uniqueItems"),
        ("json_schema", {"$ref": "#/nowhere"}, "invalid_schema", "nowhere"),
        ("json_schema", {"$ref": "#"}, "invalid_schema", ""),
        ("json_schema", {"type": "integer", "minimum": 2, "maximum": 1}, "invalid_schema", "Unsatisfiable"),
        ("json_schema", nested(150), "invalid_schema", "200 deep"),
        ("json_schema", nested(50_000), "invalid_schema", "200 deep"),
        ("grammar", "nonsense", "invalid_grammar", "Expected ::="),
        ("grammar", "start: missing", "invalid_grammar", "missing"),
        ("grammar", 'root ::= "x" missing', "invalid_grammar", "missing"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_the_compilers_words(
    kind: str, value: Any, code: str, quoted: str
) -> None:
    with pytest.raises(RequestError) as refused:
        made(request(kind, value))

    assert (refused.value.param, refused.value.code) == ("response_format", code)
    assert quoted in refused.value.message


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "a{100000000}"),
        ("regex", "((a{1,100}){1,100}){1,100}"),
        ("json_schema", {"type": "array", "maxItems": 10**6, "items": {"type": "array", "maxItems": 10**6}}),
        ("json_schema", {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for i in range(8)]} for j in range(12)]}),
        ("json_schema", {"properties": {str(i): {} for i in range(5000)}}),
        ("json_schema", {"patternProperties": {f"^{i}[0-9]*$": {} for i in range(300)}}),
        ("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000),
    ],
)
def test_a_structure_that_explodes_costs_no_more_than_moments(kind: str, value: Any) -> None:
    with suppress(RequestError):  # it may also be compiled
        made(request(kind, value)).allowed_ids()


def test_a_schema_that_takes_the_compiler_longer_than_moments_is_refused_each_time_and_tried_once() -> None:
    slow = request("json_schema", {"type": "integer", "multipleOf": 999_983})
    before = compiler().num_compiled

    for _ in range(2):
        with pytest.raises(RequestError, match="more than 1 s"):
            made(slow)

    assert compiler().num_compiled == before + 1
    assert verdict(request("choice", ["yes"]), "yes") == "complete"


def test_a_grammar_on_which_the_compiler_breaks_down_costs_its_own_request_only() -> None:
    chain = "\n".join(f'r{i}: "a" r{i + 1}' for i in range(5000))

    with pytest.raises(RequestError, match="breaks down") as refused:
        made(request("grammar", f'start: r0\n{chain}\nr5000: "b"'))

    assert (refused.value.param, refused.value.code) == ("response_format", "invalid_grammar")
    assert verdict(request("choice", ["yes"]), "yes") == "complete"


def test_compiled_grammars_take_no_more_room_than_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_CACHED_CHARS", 100)
    model = demo()
    small = StructureCompiler(model.tokenizer, eos_ids(), model.vocab_size)

    for pattern in ("a" * 80, "b" * 80, "a" * 80):
        small.constraint(request("regex", pattern), eos_ids())

    assert small.num_compiled == 3


def test_a_structure_is_compiled_once_and_rows_share_nothing_but_that() -> None:
    first, second = (made(request("regex", "ab")) for _ in range(2))

    first.advance(*encode("a"))

    assert allows(first, encode("b")) == [True]
    assert allows(second, encode("b")) == [False]


def test_the_least_recently_used_grammar_is_compiled_again() -> None:
    model = demo()
    small = StructureCompiler(model.tokenizer, eos_ids(), model.vocab_size, cached_grammars=2)

    for pattern in ("a", "b", "a", "c", "a", "b"):
        small.constraint(request("regex", pattern), eos_ids())

    assert small.num_compiled == 4


def test_masks_of_many_rows_are_those_of_each_alone() -> None:
    patterns = ("a+", "[0-9]{3}", "x|y", "a+")
    constraints = [made(request("regex", pattern)) for pattern in patterns]

    together = fill_masks(constraints, demo().vocab_size)

    assert [row.tobytes() for row in together] == [each.allowed_ids() for each in constraints]


def test_ids_without_a_token_are_never_allowed() -> None:
    tokenizer = real_tokenizer()
    wide = StructureCompiler(tokenizer, frozenset({257}), 264)
    constraint = wide.constraint(request("regex", "(.|\n)*"), frozenset({257}))
    assert constraint is not None

    assert allows(constraint, range(261, 288)) == [False] * 27


def test_a_model_with_fewer_ids_than_its_tokenizer_gets_masks_of_its_own_width() -> None:
    narrow = StructureCompiler(real_tokenizer(), frozenset({5}), 65)
    constraint = narrow.constraint(request("regex", "(.|\n)*"), frozenset({5}))
    assert constraint is not None

    a, b = real_tokenizer().encode("ab", add_special_tokens=False)
    assert (a, b) == (64, 65)
    assert len(constraint.allowed_ids()) == 12
    assert allows(constraint, [a, b]) == [True, False]


def test_a_tokenizer_that_llguidance_cannot_read_refuses_structures_only() -> None:
    plain = StructureCompiler(llama_3(), frozenset({128009}), 128256)

    assert plain.constraint(request(), frozenset({128009})) is None
    with pytest.raises(RequestError, match="tokenizer"):
        plain.constraint(request("regex", "a"), frozenset({128009}))


# --- Tools ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "text", "expected"),
    [
        (ToolChoice(mode="required"), '{"name": "get_weather", "parameters": {"city": "Paris"}}', "complete"),
        (ToolChoice(mode="required"), '{"name": "now", "parameters": {}}', "complete"),
        (ToolChoice(mode="required"), '{"name": "other"', "refused"),
        (ToolChoice(mode="required"), '{"name": "get_weather", "parameters": {}}', "refused"),
        (ToolChoice(mode="required"), "It is", "refused"),
        (ToolChoice(mode="required", name="now"), '{"name": "get_weather"', "refused"),
        (ToolChoice(mode="required", name="now"), '{"name": "now", "parameters": {}}', "complete"),
    ],
)
def test_a_forced_call_fits_a_tool_that_may_be_called(choice: ToolChoice, text: str, expected: str) -> None:
    assert verdict(request(tools=(WEATHER, NOW), tool_choice=choice), text) == expected


@pytest.mark.parametrize("text", ['{"name": "now", "parameters": {}}', "yes"])
def test_a_structure_beside_tools_holds_the_answer_to_either(text: str) -> None:
    asked = request("choice", ["yes"], tools=(NOW,))

    assert verdict(asked, text) == "complete"
    assert verdict(asked, "no") == "refused"


STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is {sunny}.\n", "complete"),
        ("", "complete"),
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', "complete"),
        ('{"name": "now", "parameters": {}}', "complete"),
        ('{"name": "get_weather", "parameters": {}}', "refused"),
        ('{"name": "other"', "refused"),
        (' {"name": "other"', "refused"),
    ],
)
def test_a_strict_tool_leaves_text_free_and_holds_calls_to_their_schemas(text: str, expected: str) -> None:
    assert verdict(request(tools=(NOW, STRICT)), text) == expected


def test_a_strict_tool_is_refused_by_a_model_whose_calls_cannot_be_forced() -> None:
    known = tool_format_of(demo().tokenizer)
    assert known is not None
    read_only_format = replace(known, dialect=replace(known.dialect, forced=None))
    read_only = StructureCompiler(demo().tokenizer, eos_ids(), demo().vocab_size, read_only_format)

    assert read_only.constraint(request(tools=(NOW,)), eos_ids()) is None
    with pytest.raises(RequestError) as refused:
        read_only.constraint(request(tools=(NOW, STRICT)), eos_ids())

    assert refused.value.param == "tools[1].function.strict"


def test_tool_choice_none_leaves_the_structure_alone() -> None:
    asked = request("choice", ["yes"], tools=(NOW,), tool_choice=ToolChoice(mode="none"))

    assert verdict(asked, '{"name"') == "refused"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"tools": ({"function": {"name": "f", "parameters": {"type": "string"}}},), "tool_choice": "required"},
            "tools[0].function.parameters",
        ),
        (
            {"tools": ({"function": {"name": "f", "parameters": nested(150)}},), "tool_choice": "required"},
            "tools[0].function.parameters",
        ),
    ],
)
def test_what_cannot_be_held_to_beside_tools_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    if "tool_choice" in fields:
        fields = {**fields, "tool_choice": ToolChoice(mode=fields["tool_choice"])}

    with pytest.raises(RequestError) as refused:
        made(request(**fields))

    assert refused.value.param == param


@pytest.mark.parametrize("choice", [ToolChoice(), ToolChoice(mode="required")], ids=["auto", "required"])
def test_a_model_whose_call_format_is_unknown_takes_no_tools(choice: ToolChoice) -> None:
    unknown = StructureCompiler(demo().tokenizer, eos_ids(), demo().vocab_size, tool_format=None)

    with pytest.raises(RequestError) as refused:
        unknown.constraint(request(tools=(NOW,), tool_choice=choice), eos_ids())

    assert refused.value.param == "tools"


# --- Reasoning ------------------------------------------------------------------------------------------------


def thinking(*, is_open: bool) -> Reasoning:
    return Reasoning(starts=(tuple(encode("<")),), ends=(tuple(encode("/>")),), is_open=is_open)


def test_the_grammar_holds_only_behind_a_reasoning_part_which_no_eos_may_end() -> None:
    constraint = made(request("choice", ["yes"]), thinking(is_open=True))

    for token_id in encode("no /"):
        assert allows(constraint, [token_id, *eos_ids()]) == [True, False, False, False]
        constraint.advance(token_id)
    constraint.advance(*encode(">"))

    assert allows(constraint, [*encode("no")[:1], *encode("yes")[:1]]) == [False, True]


def test_an_answer_may_begin_with_a_reasoning_part_or_without_one() -> None:
    constraint = made(request("choice", ["yes"]), thinking(is_open=False))
    at_start = allows(constraint, [*encode("<"), *encode("yes")[:1], *encode("n")])
    for token_id in encode("<no/>"):
        constraint.advance(token_id)

    assert at_start == [True, True, False]
    assert allows(constraint, [*encode("<"), *encode("yes")[:1]]) == [False, True]
