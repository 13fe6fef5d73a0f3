"""Writes down, in llguidance's grammar syntax, what a request's answer is held to; compiles nothing.

A request can ask for a structure, for tool calls, or for either of them. What llguidance will say of the result is
turned into an error that names the field which asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlxq.contract import Request, Structure
from mlxq.errors import RequestError
from mlxq_worker.dialects.forcing import arguments_schema
from mlxq_worker.dialects.tool_format import ToolFormat
from mlxq_worker.schema.openness import Probe
from mlxq_worker.schema.rule import Rule, json_rule
from mlxq_worker.text.grammar_syntax import as_lark
from mlxq_worker.text.structural_tag import tagged_text

_ERROR_CODES = {
    "json_object": "invalid_schema",
    "json_schema": "invalid_schema",
    "regex": "invalid_regex",
    "choice": "invalid_choice",
    "grammar": "invalid_grammar",
    "structural_tag": "invalid_schema",
}
_LONGEST_QUOTE = 500


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar for llguidance, the field that asked for it, the code of an error in it, and what has to be possible in
    its schemas."""

    source: str
    param: str
    code: str
    probes: tuple[Probe, ...] = ()

    def error(self, message: str) -> RequestError:
        """The refusal that quotes the compiler."""
        quoted = message.strip()
        if len(quoted) > _LONGEST_QUOTE:
            quoted = f"{quoted[:_LONGEST_QUOTE]}..."
        return RequestError(f"{self.param} can't be compiled: {quoted}", param=self.param, code=self.code)


def answer_grammar(
    request: Request, tool_format: ToolFormat | None, added_tokens: Mapping[str, int] = MappingProxyType({})
) -> Grammar | None:
    """What the answer is held to, or `None` for nothing.

    Under tool_choice `required` it is one or more calls and nothing else. Under `auto` with a structure it is calls or
    what fits the structure, and with a `strict` tool it is free but for its calls, each of which fits its tool.

    Raises:
        RequestError: the request asks for something that can't be written down for this model.
    """
    if request.tools and request.tool_choice.mode != "none":
        return _beside_tools(request, request.tools, _known(tool_format))
    return _alone(request.structure, added_tokens) if request.structure else None


def ignored_formats(request: Request) -> tuple[str, ...]:
    """The formats in an answer's schemas that the compiler doesn't enforce, each once, for a request that it has a
    grammar for."""
    structure = request.structure
    rules = [_rule(structure)] if structure and structure.kind == "json_schema" else []
    if structure and structure.kind == "structural_tag":
        rules = [_tagged(structure, {})]
    if request.tools and _holds_calls(request):
        rules += _rules_of_tools(request)
    return tuple(sorted({name for rule in rules for name in rule.formats}))


def _holds_calls(request: Request) -> bool:
    """Whether calls are held to their tools' schemas."""
    if request.tool_choice.mode != "auto":
        return request.tool_choice.mode == "required"
    return request.structure is not None or any(tool["function"].get("strict") for tool in request.tools or ())


_CALLS = "mlxq_calls"
"""The rule of `call_rules` that stands for all calls of an answer."""


def _known(tool_format: ToolFormat | None) -> ToolFormat:
    """Like vLLM without a parser, this refuses tools whose calls would stay text."""
    if tool_format is None:
        raise RequestError(
            "no tool call format is known for this model's chat template, so its calls can't be read:"
            ' leave tools out or set tool_choice to "none"',
            param="tools",
            code="unsupported",
        )
    return tool_format


def _beside_tools(request: Request, tools: Sequence[dict[str, Any]], tool_format: ToolFormat) -> Grammar | None:
    if request.tool_choice.mode == "required":
        source = f"start: {_CALLS}\n{_forced_calls(request, tool_format)}"
        return Grammar(source, "tool_choice", "invalid_schema", _probes_of_tools(request))
    if request.structure is None:
        return _strict_calls(request, tools, tool_format)
    return _structure_or_calls(request, request.structure, tool_format)


def _forced_calls(request: Request, tool_format: ToolFormat) -> str:
    several = request.tool_choice.parallel and request.tool_choice.name is None
    return tool_format.call_rules(_callable_tools(request), name=_CALLS, several=several)


def _structure_or_calls(request: Request, structure: Structure, tool_format: ToolFormat) -> Grammar:
    rules = _forced_calls(request, tool_format)
    rule = _rule(structure)
    source = f"start: {_CALLS} | mlxq_answer\nmlxq_answer: {rule.source}\n{rules}"
    return Grammar(source, structure.param, _ERROR_CODES[structure.kind], (*rule.probes, *_probes_of_tools(request)))


def _probes_of_tools(request: Request) -> tuple[Probe, ...]:
    return tuple(probe for rule in _rules_of_tools(request) for probe in rule.probes)


def _rules_of_tools(request: Request) -> list[Rule]:
    tools = enumerate(_callable_tools(request))
    return [json_rule(arguments_schema(index, tool["function"])) for index, tool in tools]


def _alone(structure: Structure, added_tokens: Mapping[str, int]) -> Grammar:
    if structure.kind == "grammar":
        return Grammar(_lark(structure), structure.param, _ERROR_CODES[structure.kind])
    rule = _tagged(structure, added_tokens) if structure.kind == "structural_tag" else _rule(structure)
    return Grammar(f"start: {rule.source}", structure.param, _ERROR_CODES[structure.kind], rule.probes)


def _rule(structure: Structure) -> Rule:
    """What stands behind a rule's name in Lark for any structure but a grammar, which no request has beside calls."""
    from llguidance import regex_to_lark

    match structure.kind:
        case "json_object":
            return json_rule({"type": "object"}, _options(structure))
        case "json_schema":
            return _schema_rule(structure)
        case "regex":
            return Rule(f"/{regex_to_lark(structure.value, use_ascii='d')}/")
        case _:
            # One terminal: as alternatives of a rule they would be limited to 2000.
            return Rule(f"MLXQ_CHOICE\nMLXQ_CHOICE: {' | '.join(map(json.dumps, structure.value))}")


def _tagged(structure: Structure, added_tokens: Mapping[str, int]) -> Rule:
    try:
        return tagged_text(structure.value, added_tokens)
    except ValueError as error:
        raise Grammar("", structure.param, _ERROR_CODES[structure.kind]).error(str(error)) from error


def _options(structure: Structure) -> dict[str, Any]:
    """What a request says about white space, in llguidance's words."""
    if structure.whitespace is None:
        return {}
    return {"whitespace_pattern": structure.whitespace} if structure.whitespace else {"whitespace_flexible": False}


def _schema_rule(structure: Structure) -> Rule:
    try:
        return json_rule(structure.value, _options(structure))
    except ValueError as error:
        raise Grammar("", structure.param, _ERROR_CODES[structure.kind]).error(str(error)) from error


def _lark(structure: Structure) -> str:
    try:
        return as_lark(structure.value)
    except Exception as error:  # the converter raises bare ones
        raise Grammar("", structure.param, "invalid_grammar").error(str(error)) from error


def _callable_tools(request: Request) -> tuple[dict[str, Any], ...]:
    """The tools that may be called, or the one that must."""
    name = request.tool_choice.name
    tools = request.tools or ()
    return tuple(tool for tool in tools if name is None or tool["function"]["name"] == name)


def _strict_calls(request: Request, tools: Sequence[dict[str, Any]], tool_format: ToolFormat) -> Grammar | None:
    """What holds the calls that the model may make, if one of the tools is `strict`; the others' are held as well."""
    strict = (index for index, tool in enumerate(tools) if tool["function"].get("strict"))
    first = next(strict, None)
    if first is None:
        return None
    param = f"tools[{first}].function.strict"
    source = tool_format.amid_text(tools, name=_CALLS, several=request.tool_choice.parallel, param=param)
    return Grammar(source, param, "invalid_schema", _probes_of_tools(request))
