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

_FORMATS = {name: name for name in ("text", "json_object", "json_schema")}
_KINDS: dict[str, StructureKind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
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
    value = None if kind == "json_object" else given[name]
    return Structure(kind=kind, value=value, param=f"{param}.{name}", whitespace=_whitespace(given, kind, param))


def _whitespace(given: dict[str, Any], kind: StructureKind, param: str) -> str | None:
    """What may stand between the parts of JSON, which only JSON has."""
    pattern = "" if given.get("disable_any_whitespace") else given.get("whitespace_pattern")
    if pattern is None or kind in ("json_schema", "json_object"):
        return pattern
    name = "whitespace_pattern" if "whitespace_pattern" in given else "disable_any_whitespace"
    raise RequestError(f"{param}.{name} only goes with json and json_object", param=f"{param}.{name}")


response_format = Check("an object with the type text, json_object or json_schema", _response_format)
structured_outputs = Check(f"an object with exactly one of {', '.join(_KINDS)}", _structured_outputs)

JSON_SCHEMA_FIELDS = table(
    honoured("schema", _sized(checks.an_object, "a JSON schema"), "what the answer must satisfy"),
    honoured("name", checks.string, "what the schema is called"),
    honoured("description", checks.string, "what the schema is for"),
    honoured("strict", checks.boolean, "the schema is enforced either way"),
)

RESPONSE_FORMAT_FIELDS = table(
    honoured("type", checks.one_of(_FORMATS), "text is free"),
    honoured("json_schema", checks.an_object, "the schema, with the type json_schema only", inside=JSON_SCHEMA_FIELDS),
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
    refused("structural_tag", doc="free text with structured parts"),
    honoured("disable_any_whitespace", checks.boolean, "compact JSON"),
    honoured(
        "whitespace_pattern",
        Check("a regular expression", checks.string.read),
        "what may stand between the parts of JSON, once in each place; by default a break and up to 12 blanks, or 2",
    ),
    refused("disable_additional_properties", False, doc="close every object; say so in the schema"),
)
