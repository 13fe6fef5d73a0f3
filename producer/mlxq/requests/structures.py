"""The fields that say what form an answer must have: OpenAI's `response_format`, vLLM's `structured_outputs`.

Both become a `Structure`. Whether a schema, an expression or a grammar can be compiled is for the worker to say.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mlxq.contract import Structure, StructureKind
from mlxq.errors import RequestError
from mlxq.requests import checks
from mlxq.requests.checks import Check
from mlxq.requests.field import honoured, read_object, refused, table

MAX_STRUCTURE_KIB = 256
MAX_CHOICES = 4096
MAX_TAGS = 256

_FORMATS = {name: name for name in ("text", "json_object", "json_schema", "structural_tag")}
_KINDS: dict[str, StructureKind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
"""The fields of ``structured_outputs`` of which one must be given."""


def _sized(check: Check[Any], expected: str) -> Check[Any]:
    """The check, and a limit on how long the value is as JSON."""
    limited = f"{expected} of at most {MAX_STRUCTURE_KIB} KiB"

    def read(value: Any, param: str) -> Any:
        checked = check(value, param)
        if len(msgspec.json.encode(checked)) > MAX_STRUCTURE_KIB * 1024:
            raise RequestError(f"{param} must be {limited}", param=param, code="out_of_range")
        return checked

    return Check(limited, read)


def _schema_or_text(value: Any, param: str) -> dict[str, Any]:
    """vLLM takes a schema as JSON text, too."""
    if type(value) is not str:
        return checks.an_object(value, param)
    try:
        return checks.an_object(msgspec.json.decode(value), param)
    except (ValueError, RecursionError) as error:
        text = f"{param} must be an object or its JSON text, and this text is not JSON: {error}"
        raise RequestError(text, param=param, code="invalid_schema") from error


def _response_format(value: Any, param: str) -> Structure | None:
    given = read_object(RESPONSE_FORMAT_FIELDS, value, param)
    if "type" not in given:
        raise checks.missing(f"{param}.type", f"{param}.type is missing")
    if given["type"] == "json_schema":
        return _json_schema(given, param)
    if given["type"] == "structural_tag":
        return _tags({name: given[name] for name in _OF_TAGS if name in given}, param, param)
    for name in _OF_TAGS:
        if name in given:
            text = f"{param}.{name} only goes with the type structural_tag, not with {given['type']}"
            raise RequestError(text, param=f"{param}.{name}")
    if "json_schema" in given:
        text = f"{param}.json_schema only goes with the type json_schema, not with {given['type']}"
        raise RequestError(text, param=f"{param}.json_schema")
    return None if given["type"] == "text" else Structure(kind="json_object", param=param)


def _json_schema(given: dict[str, Any], param: str) -> Structure:
    path = f"{param}.json_schema"
    if "json_schema" not in given:
        raise checks.missing(path, f"{path} is missing")
    inside = read_object(JSON_SCHEMA_FIELDS, given["json_schema"], path)
    if "schema" not in inside:
        raise checks.missing(f"{path}.schema", f"{path}.schema is missing")
    return Structure(kind="json_schema", value=inside["schema"], param=f"{path}.schema")


def _structured_outputs(value: Any, param: str) -> Structure:
    given = read_object(STRUCTURED_OUTPUTS_FIELDS, value, param)
    asked = [name for name in _KINDS if given.get(name, False) is not False]
    if len(asked) != 1:
        text = f"{param} must have exactly one of {', '.join(_KINDS)}, not {' and '.join(asked) or 'none'}"
        raise RequestError(text, param=param)
    [name] = asked
    kind = _KINDS[name]
    if kind == "structural_tag":
        inside = {key: each for key, each in given[name].items() if key != "type"}
        return _tags(read_object(TAGS_FIELDS, inside, f"{param}.{name}"), f"{param}.{name}", f"{param}.{name}")
    value = None if kind == "json_object" else given[name]
    return Structure(kind=kind, value=value, param=f"{param}.{name}", whitespace=_whitespace(given, kind, param))


def _tags(given: dict[str, Any], path: str, param: str) -> Structure:
    """Text in which tags hold JSON, in the form that vLLM and SGLang have for it."""
    for name in _OF_TAGS:
        if name not in given:
            raise checks.missing(f"{path}.{name}", f"{path}.{name} is missing")
    for index, tag in enumerate(given["structures"]):
        if not any(tag["begin"].startswith(trigger) for trigger in given["triggers"]):
            place = f"{path}.structures[{index}].begin"
            raise RequestError(f"{place} must begin with one of the triggers", param=place)
    value = {"structures": list(given["structures"]), "triggers": list(given["triggers"])}
    return Structure(kind="structural_tag", value=value, param=param)


def _tag(value: Any, param: str) -> dict[str, Any]:
    tag = read_object(TAG_FIELDS, value, param)
    for name in ("begin", "end"):
        if name not in tag:
            raise checks.missing(f"{param}.{name}", f"{param}.{name} is missing")
    return {"schema": {}, **tag}


def _whitespace(given: dict[str, Any], kind: StructureKind, param: str) -> str | None:
    """What may stand between the parts of JSON, which only JSON has."""
    pattern = "" if given.get("disable_any_whitespace") else given.get("whitespace_pattern")
    if pattern is None or kind in ("json_schema", "json_object"):
        return pattern
    name = "whitespace_pattern" if "whitespace_pattern" in given else "disable_any_whitespace"
    raise RequestError(f"{param}.{name} only goes with json and json_object", param=f"{param}.{name}")


response_format = Check("an object with the type text, json_object, json_schema or structural_tag", _response_format)
structured_outputs = Check(f"an object with exactly one of {', '.join(_KINDS)}", _structured_outputs)

_TAGS = "structural_tag"
_OF_TAGS = ("structures", "triggers")

TAG_FIELDS = table(
    honoured("begin", checks.filled_string, "what a tag begins with, its trigger first"),
    honoured("schema", _sized(checks.an_object, "a JSON schema"), "what stands inside; any JSON if absent"),
    honoured("end", checks.string, "what it ends with"),
)

_structures = checks.list_of(Check("a tag", _tag), "tags", at_least=1, at_most=MAX_TAGS)
_triggers = checks.list_of(checks.filled_string, "strings", at_least=1, at_most=MAX_TAGS)

TAGS_FIELDS = table(
    honoured("structures", _structures, "the tags that the text may hold", inside=TAG_FIELDS),
    honoured("triggers", _triggers, "the texts that only begin a tag"),
    refused("format", doc="xgrammar's newer form", hint="use structures and triggers"),
)

JSON_SCHEMA_FIELDS = table(
    honoured("schema", _sized(checks.an_object, "a JSON schema"), "what the answer must satisfy"),
    honoured("name", checks.string, "what the schema is called"),
    honoured("description", checks.string, "what the schema is for"),
    honoured("strict", checks.boolean, "the schema is enforced either way"),
)

RESPONSE_FORMAT_FIELDS = table(
    honoured("type", checks.one_of(_FORMATS), "text is free"),
    honoured("json_schema", checks.an_object, "the schema, with the type json_schema only", inside=JSON_SCHEMA_FIELDS),
    *TAGS_FIELDS.values(),
)

STRUCTURED_OUTPUTS_FIELDS = table(
    honoured(
        "json",
        _sized(Check("an object", _schema_or_text), "a JSON schema (an object or its text)"),
        "JSON that satisfies the schema",
    ),
    honoured("regex", _sized(checks.filled_string, "a non-empty string"), "text that the whole expression matches"),
    honoured(
        "choice",
        _sized(checks.list_of(checks.filled_string, "strings", at_least=1, at_most=MAX_CHOICES), "a list of strings"),
        f"one of these, at most {MAX_CHOICES}",
    ),
    honoured("grammar", _sized(checks.filled_string, "a non-empty string"), "text of this Lark or EBNF grammar"),
    honoured("json_object", checks.boolean, "any JSON object"),
    honoured(
        "structural_tag",
        Check("an object with structures and triggers, or its JSON text", _schema_or_text),
        "free text with tags that hold JSON",
        inside={**TAGS_FIELDS, **table(honoured("type", checks.one_of({_TAGS: _TAGS}), _TAGS))},
    ),
    honoured("disable_any_whitespace", checks.boolean, "compact JSON"),
    honoured(
        "whitespace_pattern",
        Check("a regular expression", checks.string.read),
        "what may stand between the parts of JSON, once in each place; by default a break and up to 12 blanks, or 2",
    ),
    refused("disable_additional_properties", False, doc="close every object; say so in the schema"),
)
