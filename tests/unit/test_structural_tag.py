"""Text with structural tags, as vLLM and SGLang take them: free, but for what a trigger begins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.held_answers import compiler, demo, encode, eos_ids, verdict

from mlxq.contract import Request
from mlxq.errors import RequestError
from mlxq.requests.openai import parse_object
from mlxq_worker.text.grammar import ignored_formats

CITY = {"type": "object", "properties": {"city": {"type": "string", "format": "town"}}, "required": ["city"]}
ZONE = {"type": "object", "properties": {"zone": {"enum": ["CET", "UTC"]}}, "required": ["zone"]}
TAGS: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<function=weather>", "schema": CITY, "end": "</function>"},
        {"begin": "<function=time>", "schema": ZONE, "end": "</function>"},
        {"begin": "[[", "end": "]]"},
    ],
    "triggers": ["<function=", "[["],
}


def parse(**body: Any) -> Request:
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    return parse_object({"body": body}, default_custom_id="r").request


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": TAGS},
        {"structured_outputs": {"structural_tag": TAGS}},
        {"structured_outputs": {"structural_tag": json.dumps(TAGS)}},
    ],
    ids=["response_format", "structured_outputs", "as text"],
)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is sunny.\n", "complete"),
        ("", "complete"),
        ("< function", "complete"),
        ('I ask. <function=weather>{"city": "Rome"}</function>', "complete"),
        ('<function=time>{"zone": "UTC"}</function> and <function=weather>{"city": ""}</function>.', "complete"),
        ("see [[ [1, 2] ]]", "refused"),
        ("see [[[1, 2]]]", "complete"),
        ('<function=weather>{"city": "Rome"}', "unfinished"),
        ("<function=other>", "refused"),
        ('<function=weather>{"zone": "UTC"}', "refused"),
        ('<function=time>{"zone": "MEZ"}', "refused"),
        ("<function=", "unfinished"),
    ],
)
def test_a_trigger_goes_on_as_one_of_its_tags_and_all_else_is_free(
    body: dict[str, Any], text: str, expected: str
) -> None:
    assert verdict(parse(**body), text) == expected


def test_a_tag_of_an_added_token_is_asked_for_by_its_id() -> None:
    token = next(text for text, each in demo().tokenizer.get_added_vocab().items() if each not in eos_ids())
    tags = {"type": "structural_tag", "structures": [{"begin": token, "end": "."}], "triggers": [token]}
    constraint = compiler().constraint(parse(response_format=tags), eos_ids())
    assert constraint is not None

    for token_id in [*encode("a"), demo().tokenizer.get_added_vocab()[token], *encode("[1]")]:
        constraint.advance(token_id)

    assert not constraint.is_complete
    constraint.advance(*encode("."))
    assert constraint.is_complete


def test_the_formats_in_tags_that_are_not_enforced_are_named() -> None:
    assert ignored_formats(parse(response_format=TAGS)) == ("town",)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"structures": None}, "response_format.structures"),
        ({"triggers": None}, "response_format.triggers"),
        ({"triggers": ["<tool>"]}, "response_format.structures[0].begin"),
        ({"structures": [{"begin": "[["}]}, "response_format.structures[0].end"),
        ({"structures": [{"begin": "[[", "end": "]]", "schema": 3}]}, "response_format.structures[0].schema"),
        ({"format": {}}, "response_format.format"),
    ],
)
def test_what_is_wrong_with_tags_is_refused_by_its_place(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(response_format={**TAGS, **change})

    assert refused.value.param == param


def test_a_schema_in_a_tag_that_can_not_be_enforced_is_refused() -> None:
    tags = {**TAGS, "structures": [{"begin": "[[", "end": "]]", "schema": {"uniqueItems": True}}]}

    with pytest.raises(RequestError, match="uniqueItems"):
        compiler().constraint(parse(response_format=tags), eos_ids())


def test_tags_go_with_no_other_type_and_leave_no_room_for_calls() -> None:
    with pytest.raises(RequestError) as refused:
        parse(response_format={**TAGS, "type": "json_object"})
    assert refused.value.param == "response_format.structures"

    with pytest.raises(RequestError) as refused:
        parse(response_format=TAGS, tools=[{"type": "function", "function": {"name": "f"}}])
    assert refused.value.code == "conflicting_fields"
