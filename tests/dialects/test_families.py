"""Every dialect of the registry reads what its models write: one call and several, amid text, of any arguments; what is
cut off or calls nobody stays text. Calls are also generated, a thousand for each dialect."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.thorough import sample_of

from mlxq_worker.dialects.calls import Call, Offered, pieces
from mlxq_worker.dialects.dialect import Dialect
from mlxq_worker.dialects.registry import DIALECTS

EACH = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
OFFERED = Offered.of(
    [
        tool("get_weather", city=TEXT, days=WHOLE, share=NUMBER, where={"type": "object"}, tags={"type": "array"}),
        tool("now"),
    ]
)
PARIS = Call("get_weather", {"city": "Paris"})


def read(dialect: Dialect, text: str, offered: Offered = OFFERED) -> tuple[list[tuple[str, Any]], str]:
    """The calls in a text, and what is left of it."""
    found = list(pieces(text, dialect.syntax, offered))
    calls = [(call.name, call.arguments) for piece in found for call in piece.calls]
    return calls, "".join(piece.text for piece in found)


def as_pairs(*calls: Call) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in calls]


@EACH
def test_one_call_is_read_and_no_text_is_left(dialect: Dialect) -> None:
    calls, text = read(dialect, dialect.write([PARIS]))

    assert (calls, text.strip()) == (as_pairs(PARIS), "")


@EACH
def test_several_calls_keep_their_order(dialect: Dialect) -> None:
    asked = [PARIS, Call("now", {}), Call("get_weather", {"city": "Rome", "days": 3})]

    assert read(dialect, dialect.write(asked))[0] == as_pairs(*asked)


@EACH
def test_text_before_a_call_stays(dialect: Dialect) -> None:
    calls, text = read(dialect, f"I look it up.\n{dialect.write([PARIS])}")

    assert (calls, text.strip()) == (as_pairs(PARIS), "I look it up.")


BARE = {"llama3_json", "pythonic"}
"""Nothing marks the calls of these, so they count at the end of an answer only."""


@EACH
def test_text_behind_a_call_stays_or_makes_it_none(dialect: Dialect) -> None:
    written = dialect.write([PARIS])

    calls, text = read(dialect, f"{written}\nI wait.")

    if dialect.name in BARE:
        assert (calls, text) == ([], f"{written}\nI wait.")
    else:
        assert (calls, text.strip()) == (as_pairs(PARIS), "I wait.")


@EACH
def test_a_call_without_arguments_has_an_empty_object(dialect: Dialect) -> None:
    assert read(dialect, dialect.write([Call("now", {})]))[0] == [("now", {})]


@EACH
@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "São Paulo 北京 🌧"},
        {"city": 'say "hi"\nand\\or {braces} [brackets] <tags>'},
        {"city": "42"},
        {"days": -7, "share": 0.25, "city": "x"},
        {"where": {"a": [1, None, True, {"b": "é"}]}, "tags": ["x", "y"]},
    ],
    ids=["unicode", "signs", "a text of digits", "numbers", "nested"],
)
def test_arguments_are_read_as_they_were_meant(dialect: Dialect, arguments: dict[str, Any]) -> None:
    asked = Call("get_weather", arguments)

    assert read(dialect, dialect.write([asked]))[0] == as_pairs(asked)


@pytest.mark.parametrize("says", ["true", "false"])
@pytest.mark.parametrize("name", ["deepseek_v32", "deepseek_v4"])
def test_a_tag_that_takes_a_number_for_a_text_is_read_by_the_schema(name: str, says: str) -> None:
    [dialect] = [each for each in DIALECTS if each.name == name]
    written = dialect.write([Call("get_weather", {"city": "42", "days": 7})])
    written = re.sub('string="(true|false)"', f'string="{says}"', written)

    assert read(dialect, written)[0] == [("get_weather", {"city": "42", "days": 7})]


@EACH
def test_a_call_of_a_tool_that_is_not_offered_is_text(dialect: Dialect) -> None:
    written = dialect.write([Call("rm_rf", {"path": "/"})])

    assert read(dialect, written) == ([], written)


@EACH
def test_a_call_that_was_cut_off_is_whole_or_none(dialect: Dialect) -> None:
    asked = Call("get_weather", {"city": "Paris, France", "days": 3})
    written = dialect.write([asked])

    for length in range(len(written)):
        assert read(dialect, written[:length])[0] in ([], as_pairs(asked))


@EACH
def test_an_answer_full_of_opening_markers_is_read_without_trying_each_to_the_end(dialect: Dialect) -> None:
    opening = dialect.write([PARIS]).partition("get_weather")[0]

    assert read(dialect, opening * 3000)[0] == []


# --- Generated calls ------------------------------------------------------------------------------------------

_NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12).filter(str.isidentifier)
_WORDS = "</parameter> </tool_call> <tool_call> </function> </arg_value> </invoke> </param> ``` [ARGS] null true 3"
_LOOK_ALIKES = st.sampled_from(
    [*_WORDS.split(), *"'\"}])({\\\n", "[TOOL_CALLS]", "</think>", "<parameter=", "</parameter>\n</function>"]
)
_TEXTS = st.lists(
    st.one_of(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12), _LOOK_ALIKES), max_size=4
)
_STRINGS = _TEXTS.map("".join)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False, width=32)
)
_VALUES = st.recursive(
    st.one_of(_SCALARS, _STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)),
    max_leaves=6,
)
_ARGUMENTS = st.dictionaries(_NAMES, _VALUES, max_size=4)

_JSON_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def offered_for(name: str, arguments: dict[str, Any]) -> Offered:
    properties = {key: {"type": _JSON_TYPES[type(value)]} for key, value in arguments.items()}
    return Offered.of([tool(name, **properties)])


def _marks(dialect: Dialect) -> list[str]:
    """What no value of this dialect may hold, since nothing could tell it from the syntax."""
    own = {"gemma4": ['<|"|>'], "functiongemma": ["<escape>"], "openai": ["<|"], "pythonic": [], "llama3_json": []}
    return own.get(dialect.name, [])


def holds(value: Any, mark: str) -> bool:
    if isinstance(value, str):
        return mark in value
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(holds(each, mark) for each in items)


@pytest.mark.slow
@pytest.mark.thorough
@EACH
@settings(max_examples=sample_of(1000, 50), deadline=None, suppress_health_check=list(HealthCheck))
@given(name=_NAMES, arguments=_ARGUMENTS)
def test_a_generated_call_is_read_to_exactly_what_was_written(
    dialect: Dialect, name: str, arguments: dict[str, Any]
) -> None:
    if any(holds(arguments, mark) for mark in _marks(dialect)):
        return
    written = dialect.write([Call(name, arguments)])

    [(read_name, read_arguments)], text = read(dialect, written, offered_for(name, arguments))

    # As JSON: 1 and 1.0 and true are equal to Python.
    assert (read_name, json.dumps(read_arguments)) == (name, json.dumps(arguments))
    assert text.strip() == ""
