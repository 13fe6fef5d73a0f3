"""JSON schemas in normal form: what says nothing is left out, what is meant is said with what the compiler enforces,
and what can't be enforced is refused by its keyword and its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import pytest
from tests.support.held_answers import made, request, verdict
from tests.support.waiting import DEADLINE_S

from mlxq.contract import Structure
from mlxq.errors import RequestError
from mlxq_worker.schema.keywords import SchemaError
from mlxq_worker.schema.normal import normal_form
from mlxq_worker.schema.rule import json_rule
from mlxq_worker.text.grammar import ignored_formats

STRING = {"type": "string"}


def normal(schema: Any, **options: bool) -> Any:
    return normal_form(schema, **options).schema


def refusal(schema: Any) -> str:
    with pytest.raises(SchemaError) as refused:
        normal_form(schema)
    return str(refused.value)


def answer(schema: dict[str, Any], value: Any) -> str:
    """How far the value's text gets, whose JSON it is itself if it is text."""
    return verdict(
        request("json_schema", schema), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


# --- What says nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nothing",
    [
        {"propertyNames": {"type": "string"}},
        {"propertyNames": {}},
        {"propertyNames": True},
        {"uniqueItems": False},
        {"not": False},
        {"not": {"not": {}}},
        {"if": {"const": 1}},
        {"then": False},
        {"contains": {"const": 1}, "minContains": 0},
        {"minContains": 1},
        {"dependentRequired": {}},
        {"dependentRequired": {"a": []}},
        {"dependentSchemas": {"a": {}}},
        {"unevaluatedProperties": True},
        {"unevaluatedItems": {}},
        {"$dynamicAnchor": "node"},
        {"$vocabulary": {}},
        {"$comment": "x", "title": "T", "description": "d", "default": 1, "examples": [2], "deprecated": True},
        {"readOnly": True, "writeOnly": True, "contentEncoding": "base64", "contentSchema": {}},
        {"x-order": 1, "nullable": True, "discriminator": {"propertyName": "t"}, "markdownDescription": "m"},
        {"minProperties": 0},
    ],
    ids=lambda nothing: " ".join(nothing),
)
def test_keywords_that_constrain_nothing_are_left_out(nothing: dict[str, Any]) -> None:
    assert normal({"type": "object", **nothing}) == {"type": "object"}


def test_a_format_that_is_not_enforced_is_an_annotation_and_named_once() -> None:
    schema = {"properties": {"a": {**STRING, "format": "path"}, "b": {"format": "path"}, "c": {"format": "binary"}}}
    asked = request("json_schema", schema)

    assert answer({**STRING, "format": "path"}, "any text") == "refused"
    assert answer({**STRING, "format": "path"}, '"any text"') == "complete"
    assert ignored_formats(asked) == ("binary", "path")


def test_a_format_that_is_enforced_is_and_one_of_numbers_is_not_named() -> None:
    assert answer({**STRING, "format": "date"}, '"2024-02-30x"') == "refused"
    assert normal_form({"type": "integer", "format": "int32"}).formats == ()
    assert normal_form({**STRING, "format": "date"}).formats == ()


def test_a_count_may_be_written_with_a_point() -> None:
    assert normal({**STRING, "minLength": 1.0, "maxLength": 2.0}) == {**STRING, "minLength": 1, "maxLength": 2}
    assert "properties.a.minLength" in refusal({"properties": {"a": {"minLength": 1.5}}})


# --- References -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}},
        {"$id": "https://x.org/n", "type": "object", "properties": {"next": {"$ref": "https://x.org/n"}}},
        {"$id": "https://x.org/n", "type": "object", "properties": {"next": {"$ref": "n#"}}},
        {"$anchor": "n", "type": "object", "properties": {"next": {"$ref": "#n"}}},
        {"$ref": "#/x/n", "x": {"n": {"type": "object", "properties": {"next": {"$ref": "#/x/n"}}}}},
        {"type": "object", "properties": {"next": {"$ref": "#", "description": "the next", "default": None}}},
        {"type": "object", "properties": {"next": {"allOf": [{"$ref": "#"}]}}},
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"$ref": "#/properties/next"}]}}},
    ],
)
def test_a_schema_may_refer_to_itself_in_every_way_that_there_is(schema: dict[str, Any]) -> None:
    assert answer(schema, {"next": {"next": {}}}) == "complete"
    assert answer(schema, {"next": 1}) == "refused"


def test_that_a_schema_fits_itself_says_nothing_beside_what_else_it_says() -> None:
    assert normal({"$ref": "#", "type": "integer"}) == {"type": "integer"}
    assert normal({"type": "integer", "allOf": [{"$ref": "#"}]})["type"] == "integer"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}, STRING]}]},
    ],
)
def test_what_only_an_endless_value_fits_is_refused(schema: dict[str, Any]) -> None:
    assert "no finite value" in refusal(schema)


def test_a_part_that_only_an_endless_value_fits_is_never_begun() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/node"}, "b": STRING}, "$defs": {"node": node}}

    assert answer(schema, '{"a"') == "refused"
    assert answer(schema, {"b": "x"}) == "complete"


def test_a_reference_to_nothing_is_refused_by_its_place() -> None:
    assert refusal({"properties": {"a": {"$ref": "#/$defs/no"}}}) == (
        "properties.a: $ref #/$defs/no refers to nothing in this schema"
    )


# --- Numbers --------------------------------------------------------------------------------------------------


def integers(least: float, most: float, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most, **more}


def test_the_bounds_of_64_bit_integers_are_accepted() -> None:
    int64 = integers(-(2**63), 2**63 - 1)

    assert [answer(int64, n) for n in (0, -5, 2**63 - 1, -(2**62))] == ["complete"] * 4
    assert answer(int64, 2**63) == answer(int64, -(2**63) - 1) == "refused"


@pytest.mark.parametrize("limit", [3.4028234663852886e38, 1.7976931348623157e308])
def test_the_bounds_of_floats_are_accepted(limit: float) -> None:
    schema = {"type": "number", "minimum": -limit, "maximum": limit}

    assert [answer(schema, text) for text in ("1.5", "-2", "602200000000000000000000")] == ["complete"] * 3
    assert answer({**schema, "minimum": 0}, "-1") == "refused"


@pytest.mark.parametrize("schema", [integers(2**53 + 1, 2**53 + 3), {"const": 2**53 + 1}, {"enum": [[2**60 + 1]]}])
def test_an_integer_that_no_float_holds_is_refused_not_replaced_by_its_neighbour(schema: dict[str, Any]) -> None:
    assert "can't be enforced" in refusal(schema)


def test_a_range_beyond_2_53_that_floats_hold_is_kept_exactly() -> None:
    schema = integers(2**53, 2**53 + 4)

    assert [answer(schema, 2**53 + n) for n in (-1, 0, 1, 4, 5)] == [
        "refused",
        "complete",
        "complete",
        "complete",
        "refused",
    ]


def test_an_integer_that_is_a_multiple_of_a_fraction_is_one_of_a_whole_number() -> None:
    assert normal(integers(1, 5, multipleOf=1.5))["multipleOf"] == 3
    with pytest.raises(RequestError, match="Unsatisfiable"):
        made(request("json_schema", integers(1, 2, multipleOf=1.5)))


# --- One of several -------------------------------------------------------------------------------------------


def tagged(tag: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": tag, **properties}, "required": ["kind"]}


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "string"}, {"type": "number"}],
        [{"type": "integer"}, {"type": ["string", "null"]}],
        [{"const": 1}, {"const": 2}],
        [{"enum": ["a", "b"]}, {"enum": ["c"]}],
        [{"const": 1}, {"const": "1"}],
        [{"const": True}, {"const": 1}],
        [{"enum": ["long"]}, {**STRING, "maxLength": 3}],
        [{**STRING, "maxLength": 3}, {**STRING, "minLength": 4}],
        [{"type": "number", "maximum": 1}, {"type": "number", "exclusiveMinimum": 1}],
        [tagged({"const": "a"}), tagged({"const": "b"}, x=STRING)],
        [tagged({"enum": ["a", "b"]}), tagged({"const": "c"})],
        [tagged({"const": "a"}), {"type": "object", "additionalProperties": False}],
        [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        [{"allOf": [{"$ref": "#/$defs/a"}]}, {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}],
        [{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}],
        [
            {"type": "array", "minItems": 1, "items": STRING},
            {"type": "array", "items": {"type": "null"}, "minItems": 1},
        ],
    ],
)
def test_one_of_branches_that_no_value_fits_two_of_is_any_of_them(branches: list[Any]) -> None:
    definitions = {"a": tagged({"const": "a"}), "b": tagged({"const": "b"})}

    found = normal({"oneOf": branches, "$defs": definitions})

    assert [key for key in found if key != "$defs"] == ["anyOf"]


OVERLAPPING = [
    [{"type": "integer"}, {"type": "number"}],
    [STRING, {"const": "a"}],
    [{"type": "number", "maximum": 1}, {"type": "number", "minimum": 1}],
    [{"required": ["a"]}, {"required": ["b"]}],
    [tagged(STRING), tagged({"const": "b"})],
    [{"type": "object", "properties": {"a": {"const": 1}}}, {"type": "object", "properties": {"a": {"const": 2}}}],
    [{"enum": [1, 2]}, {"enum": [2, 3]}],
    [{}, {"type": "null"}],
    [{"type": "array", "items": STRING}, {"type": "array", "items": {"type": "null"}}],
    [{"pattern": "a"}, {"pattern": "b"}],
    [{"const": {"a": 1}}, {"type": "object"}],
]


@pytest.mark.parametrize("branches", OVERLAPPING)
def test_one_of_branches_that_a_value_may_fit_two_of_is_refused_with_the_switch_that_allows_it(branches: Any) -> None:
    schema = {"properties": {"x": {"oneOf": branches}}}

    assert refusal(schema).startswith("properties.x.oneOf: ")
    assert '"x-guidance": {"coerce_one_of": true}' in refusal(schema)
    assert made(request("json_schema", {**schema, "x-guidance": {"coerce_one_of": True}}))


# --- What is no schema, or too much of one ---------------------------------------------------------------------

# fmt: off
_KEYWORDS = (
    "type", "required", "pattern", "format", "enum", "const", "minimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxItems", "minProperties", "$ref", "$id", "$anchor", "$defs", "properties", "patternProperties",
    "allOf", "anyOf", "oneOf", "prefixItems", "items", "propertyNames", "not", "if", "then", "contains",
    "dependentRequired", "dependencies", "unevaluatedProperties", "x-guidance", "uniqueItems",
)
# fmt: on
_JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e300, 2**70, 10**400, "", "a", "string", "#", "#/$defs/a", "http://[", [], {}),
    *(["a"], [1], [{}], {"a": 1}, {"a": {}}, {"a": ["b"]}, {"type": 5}, {"$ref": "#"}, {"const": [2**60 + 1]}),
)


def test_whatever_stands_in_a_schema_it_is_read_or_refused() -> None:
    num_read = 0
    for seed in range(3000):
        random = Random(seed)
        inside = {keyword: random.choice(_JUNK) for keyword in random.sample(_KEYWORDS, 2)}
        schema = {
            keyword: random.choice((*_JUNK, inside, [inside], {"a": inside})) for keyword in random.sample(_KEYWORDS, 3)
        }
        with suppress(SchemaError):
            json_rule(schema)
            num_read += 1

    assert num_read > 100


def chain(length: int, link: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    links = {f"d{index}": link(f"#/$defs/d{index + 1}") for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "object"}}}


def wide(depth: int) -> dict[str, Any]:
    schema = tagged({"const": 1})
    for _ in range(depth):
        schema = {"anyOf": [schema, schema]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [tagged({"const": str(index)}) for index in range(1500)]},
        {"oneOf": [tagged({"const": index}) for index in range(400)]},
        {"oneOf": [wide(11), wide(11)]},
        chain(1500, lambda ref: {"type": "object", "properties": {"n": {"$ref": ref}}, "required": ["n"]}),
        chain(800, lambda ref: {"allOf": [{"$ref": ref}, {"properties": {"p": {}}}]}),
        chain(12, lambda ref: {"anyOf": [{"$ref": ref}] * 3}),
    ],
    ids=["tags", "numbers", "branches", "references", "parts of parts", "a tree of references"],
)
@pytest.mark.timeout(DEADLINE_S)
def test_a_schema_that_takes_long_to_look_at_costs_moments(schema: dict[str, Any]) -> None:
    with suppress(SchemaError):  # it may also be refused
        json_rule(schema)


# --- The schema's own options ---------------------------------------------------------------------------------


def test_what_a_schema_says_for_the_compiler_is_honoured_beside_our_own() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "x-guidance": {"item_separator": ", "}}

    assert answer(schema, "[1, 2]") == "complete"
    assert answer(schema, "[1,2]") == "refused"
    assert answer({**schema, "x-guidance": {"whitespace_flexible": False}}, "[1, 2]") == "refused"
    assert answer({**schema, "x-guidance": {"whitespace_pattern": "_"}}, "[_1_]") == "complete"
    assert answer({**schema, "uniqueItems": True, "x-guidance": {"lenient": True}}, "[1,1]") == "complete"


@pytest.mark.parametrize("options", [{"colour": 1}, {"lenient": 1}, "lenient"])
def test_an_option_that_there_is_not_is_refused_by_name(options: Any) -> None:
    with pytest.raises(SchemaError, match="x-guidance"):
        json_rule({"type": "object", "x-guidance": options})


# --- White space ----------------------------------------------------------------------------------------------

THREE = {
    "type": "object",
    "properties": {key: {"type": "integer"} for key in "abc"},
    "required": [*"abc"],
    "additionalProperties": False,
}
COMPACT, SPACED = '{"a":1,"b":2,"c":3}', '{"a": 1, "b": 2, "c": 3}'
INDENTED = json.dumps({"a": 1, "b": 2, "c": 3}, indent=4)


def spaced(text: str, whitespace: str | None) -> str:
    structure = Structure(kind="json_schema", value=THREE, param="p", whitespace=whitespace)
    return verdict(msgspec.structs.replace(request(), structure=structure), text)


@pytest.mark.parametrize(
    ("whitespace", "expected"),
    [
        (None, ["complete", "complete", "complete"]),
        ("", ["complete", "refused", "refused"]),
        ("[ ]?", ["complete", "complete", "refused"]),
        (r"[\n ]*", ["complete", "complete", "complete"]),
    ],
)
def test_a_request_says_what_white_space_its_json_has(whitespace: str | None, expected: list[str]) -> None:
    assert [spaced(text, whitespace) for text in (COMPACT, SPACED, INDENTED)] == expected


def test_without_a_word_about_it_no_place_has_room_for_more_than_a_break_and_an_indentation() -> None:
    assert spaced('{\n\n"a":1', None) == "refused"
    assert spaced("{\n" + " " * 13, None) == "refused"
    assert spaced("{   ", None) == "refused"


# --- Keys, and where there would be none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "fits", "does_not"),
    [
        ({"enum": ["a", "b"]}, {"a": 1, "b": 2}, '{"c"'),
        ({"const": "a"}, {"a": 1}, '{"b"'),
        ({"pattern": "^[a-c]+$"}, {"abc": 1}, '{"d"'),
        ({"minLength": 2, "maxLength": 3}, {"äöü": 1}, '{"a"'),
        ({"$ref": "#/$defs/names"}, {"a": 1}, '{"c"'),
        (False, {}, '{"a"'),
    ],
)
def test_what_is_said_of_keys_is_enforced_where_it_can_be(names: Any, fits: Any, does_not: str) -> None:
    schema = {"type": "object", "propertyNames": names, "additionalProperties": {"type": "integer"}}
    schema["$defs"] = {"names": {"enum": ["a", "b"]}}

    assert (answer(schema, fits), answer(schema, does_not)) == ("complete", "refused")
    assert answer(schema, '{"a": "x"') == "refused"


@pytest.mark.parametrize("escaped", [r'{"\u0061":', r'{"a": "x", "\u0061":', r'{"\u0041":'])
def test_a_declared_key_can_not_be_written_in_disguise(escaped: str) -> None:
    schema = {"type": "object", "properties": {"a": STRING, "A": STRING}, "additionalProperties": {"type": "integer"}}

    assert answer(schema, escaped) == "refused"
    assert answer(schema, '{"a": "x", "b": 1}') == "complete"


def test_a_count_of_keys_is_refused_where_one_key_given_twice_would_count_as_two() -> None:
    free = {"type": "object", "additionalProperties": {"type": "integer"}}

    assert "minProperties 2" in refusal({**free, "minProperties": 2})
    assert answer({**free, "minProperties": 1}, "{}") == "refused"
    assert answer({**free, "minProperties": 2, "required": ["a"]}, {"a": 1, "b": 2}) == "complete"
    assert answer({**free, "minProperties": 2, "required": ["a"]}, '{"a": 1, "a"') == "refused"


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": STRING}, "patternProperties": {"^a$": {}}},
        {"properties": {"a": STRING, "b": STRING}, "patternProperties": {"^(a|b)$": {}, "^c": {}}},
        {"required": ["a"], "patternProperties": {"^[a]$": STRING}},
        {"allOf": [{"properties": {"a": STRING}}], "patternProperties": {"^a$": {}}},
    ],
)
def test_a_pattern_for_no_key_but_declared_ones_is_refused_when_it_is_compiled(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="is for no key but those"):
        made(request("json_schema", {"type": "object", "additionalProperties": False, **schema}))


def test_a_pattern_that_leaves_other_keys_beside_declared_ones_is_accepted() -> None:
    schema = {
        "type": "object",
        "properties": {"ab": STRING},
        "patternProperties": {"^a": {"type": "integer"}},
        "additionalProperties": False,
    }

    assert answer({**schema, "properties": {"b": STRING}}, {"b": "x", "abc": 1}) == "complete"
    assert answer({**schema, "properties": {"ab": {}}}, {"ab": 1, "ac": 2}) == "complete"


# --- What can't be enforced -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems: "),
        ({"properties": {"a": {"not": STRING}}}, "properties.a.not: "),
        ({"if": {"const": 1}, "then": {"const": 2}}, "if: "),
        ({"items": {"contains": {"const": 1}}}, "items.contains: "),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired.a: "),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": {"dependencies": {"a": {"required": ["b"]}}}}},
            "$defs.x.dependencies.a: ",
        ),
        ({"allOf": [{}], "unevaluatedProperties": False}, "unevaluatedProperties: "),
        ({"unevaluatedItems": False}, "unevaluatedItems: "),
        ({"$dynamicRef": "#node"}, "$dynamicRef: "),
        ({"propertyNames": {"not": False, "pattern": "a", "maxLength": 2}}, "the schema: propertyNames"),
        ({"pattern": "a(?!b)"}, "pattern: look-around"),
        ({"anyOf": [{"pattern": "(?<=a)b"}]}, "anyOf.0.pattern: look-around"),
        ({"properties": []}, "properties: "),
        ({"items": 3}, "items: "),
        ({"anyOf": {}}, "anyOf: "),
    ],
)
def test_what_can_not_be_enforced_is_refused_by_its_place(schema: Any, place: str) -> None:
    assert refusal(schema).startswith(place)


def test_a_look_ahead_at_the_start_of_a_pattern_is_enforced() -> None:
    schema = {**STRING, "pattern": r"^(?=.{3,5}$)[a-z(]+\)?$"}

    assert [answer(schema, f'"{text}"') for text in ("ab", "abc", "ab(c)", "abcdef")] == [
        "refused",
        "complete",
        "complete",
        "refused",
    ]


def test_a_list_of_items_of_earlier_drafts_is_one_of_first_items() -> None:
    schema = {"type": "array", "items": [STRING, {"type": "integer"}], "additionalItems": False, "minItems": 2}

    assert answer(schema, ["a", 1]) == "complete"
    assert answer(schema, '["a", 1,') == "refused"
