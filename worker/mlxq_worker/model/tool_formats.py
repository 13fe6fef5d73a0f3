"""How models write tool calls: told from the chat template, read by mlx-lm's parsers, forced by grammar rules.

A format whose calls hold their arguments as JSON can be forced; others can only be read. The bare JSON of Llama 3.1
(and of the demo model), for which mlx-lm has no parser, is read here. Knows no requests and no results.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.errors import RequestError
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.schema.rule import json_rule

logger = logging.getLogger("rq.worker")

ParsedCall = Mapping[str, Any]
"""`name` and `arguments`, as the model wrote them: both have to be checked."""
ParseCalls = Callable[[str, Sequence[dict[str, Any]]], list[ParsedCall]]
"""Reads the calls between the markers, given the request's tools; any exception means that these are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """The text of forced calls, all around the arguments: `before_all`, then for each call `before` (in which `{name}`
    stands for the function), its arguments as JSON, and `after`; `between` two calls, or `None` if one is the most."""

    before: str
    after: str
    before_all: str = ""
    after_all: str = ""
    between: str | None = None


_TAGGED_JSON = CallSyntax(
    before='<tool_call>\n{{"name": "{name}", "arguments": ', after="}\n</tool_call>", between="\n"
)
_MISTRAL_LIST = CallSyntax(
    before_all="[TOOL_CALLS][", before='{{"name": "{name}", "arguments": ', after="}", between=", ", after_all="]"
)
_MISTRAL_ARGS = CallSyntax(before="[TOOL_CALLS]{name}[ARGS]", after="", between="")
_KIMI = CallSyntax(
    before_all="<|tool_calls_section_begin|>",
    before="<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
    after="<|tool_call_end|>",
    after_all="<|tool_calls_section_end|>",
)
_BARE_JSON = CallSyntax(before='{{"name": "{name}", "parameters": ', after="}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How one model writes its calls. They stand between `start` and `end`; an empty `start` means that the whole
    answer is calls or none, an empty `end` that the last call goes to the end of the answer. `added` are the model's
    added tokens by their texts, `specials` those of them that text leaves out."""

    name: str
    start: str
    end: str
    parse: ParseCalls
    added: Mapping[str, int]
    specials: frozenset[str]
    syntax: CallSyntax | None = None

    def call_rules(self, tools: Sequence[dict[str, Any]], *, name: str, several: bool) -> str:
        """Lark rules, of which `name` stands for one call of any of `tools`, or for `several`.

        Raises:
            RequestError: calls of this format can't be forced, or a tool's parameters are no object.
        """
        if self.syntax is None:
            raise RequestError(
                f"this model writes tool calls as {self.name} does, which can't be forced: use tool_choice auto",
                param="tool_choice",
                code="unsupported",
            )
        syntax = self.syntax
        repeat = f" ({self._literal(syntax.between)} {name}_one)*" if several and syntax.between is not None else ""
        one = " | ".join(f"{name}_{index}" for index in range(len(tools)))
        return "\n".join(
            [
                f"{name}: {self._literal(syntax.before_all)} {name}_one{repeat} {self._literal(syntax.after_all)}",
                f"{name}_one: {one}",
                *(f"{name}_{index}: {self._call(syntax, index, tool)}" for index, tool in enumerate(tools)),
                "",
            ]
        )

    @property
    def can_be_told_from_text(self) -> bool:
        """Whether a grammar can let the model choose between text and forced calls."""
        return self.syntax is not None and (not self.start or self.start in self.added)

    def text_or_calls(self, calls: str) -> str:
        """Lark's start rule for an answer in which text is free, and calls are what the rule `calls` says.

        A call begins with its marker, a token that text never gives; or the whole answer is calls or text, and text
        doesn't begin as calls do.
        """
        if not self.start:
            return f"start: {calls} | MLXQ_TEXT\nMLXQ_TEXT: /([^{{\\s](.|\\n)*)?/"
        after = "MLXQ_TEXT" if self.end else ""
        return f"start: MLXQ_TEXT | MLXQ_TEXT {calls} {after}\nMLXQ_TEXT: /(.|\\n)*/"

    def _call(self, syntax: CallSyntax, index: int, tool: Mapping[str, Any]) -> str:
        before = syntax.before.format(name=tool["function"]["name"])
        schema = arguments_schema(index, tool["function"])
        try:
            arguments = json_rule(schema).source
        except ValueError as error:
            raise _bad_parameters(index, str(error)) from error
        return f"{self._literal(before)} {arguments} {self._literal(syntax.after)}"

    def _literal(self, text: str) -> str:
        """Lark for exactly this text. An added token in it is asked for by its id: llguidance takes most of them for
        special ones, which text never gives."""
        longest_first = sorted(self.added, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if longest_first else [text]
        return " ".join(
            f"<[{self.added[piece]}]>" if piece in self.added else json.dumps(piece) for piece in pieces if piece
        )


def arguments_schema(index: int, function: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the arguments of tool `index` have to fit: a function without parameters takes none, and anything else has
    to be an object, as arguments are.

    Raises:
        RequestError: the function's parameters are no object.
    """
    schema = function.get("parameters")
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise _bad_parameters(index, "arguments are an object, so the schema's type has to be object")
    return {**schema, "type": "object"}


def _bad_parameters(index: int, reason: str) -> RequestError:
    param = f"tools[{index}].function.parameters"
    return RequestError(f"{param} can't be held to: {reason}", param=param, code="invalid_schema")


def tool_format_of(tokenizer: Any) -> ToolFormat | None:
    """The format in which this model writes tool calls, or `None` if neither mlx-lm nor we know one.

    Args:
        tokenizer: a transformers tokenizer.
    """
    name = _parser_name(tokenizer)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    if name is not None:
        return _mlx_lm_format(name, template, tokenizer)
    if all(part in template for part in ('{"name": "', '"parameters": ')):
        return _format("bare JSON", tokenizer, start="", end="", parse=_parse_bare_json, syntax=_BARE_JSON)
    return None


def _parser_name(tokenizer: Any) -> str | None:
    """Which of mlx-lm's tool parsers reads this model's calls, as mlx-lm's `load` finds it for a model on disk: what
    the tokenizer's configuration says, or what template and vocabulary tell. The second is private there, so another
    mlx-lm may be without it; then only the calls of models whose configuration names a parser are read."""
    from mlx_lm import tokenizer_utils  # late, since it imports mlx

    if name := getattr(tokenizer, "init_kwargs", {}).get("tool_parser_type"):
        return str(name)
    infer: Callable[[Any], str | None] | None = getattr(tokenizer_utils, "_infer_tool_parser", None)
    if infer is None:
        logger.warning(
            "This mlx-lm doesn't tell tool call formats from chat templates: most models' calls can't be read"
        )
        return None
    return infer(tokenizer)


def _mlx_lm_format(name: str, template: str, tokenizer: Tokenizer) -> ToolFormat:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    mistral = _MISTRAL_ARGS if "[ARGS]" in template else _MISTRAL_LIST
    syntax = {"json_tools": _TAGGED_JSON, "mistral": mistral, "kimi_k2": _KIMI}.get(name)

    def parse(text: str, tools: Sequence[dict[str, Any]]) -> list[ParsedCall]:
        parsed = module.parse_tool_call(text, list(tools))
        return parsed if isinstance(parsed, list) else [parsed]

    return _format(name, tokenizer, start=module.tool_call_start, end=module.tool_call_end, parse=parse, syntax=syntax)


def _format(
    name: str, tokenizer: Tokenizer, *, start: str, end: str, parse: ParseCalls, syntax: CallSyntax | None
) -> ToolFormat:
    added = {text: token_id for text, token_id in tokenizer.get_added_vocab().items() if text}
    specials = frozenset(
        text
        for text, token_id in added.items()
        if not tokenizer.decode([token_id], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
    return ToolFormat(name=name, start=start, end=end, parse=parse, added=added, specials=specials, syntax=syntax)


def _parse_bare_json(text: str, _tools: Iterable[dict[str, Any]]) -> list[ParsedCall]:
    """Objects with `name` and `parameters`, with blanks or `;` between them, maybe behind Llama's call token."""
    rest = text.strip().removeprefix("<|python_tag|>").lstrip()
    decoder = json.JSONDecoder()
    calls: list[ParsedCall] = []
    while rest:
        call, end = decoder.raw_decode(rest)
        calls.append({"name": call["name"], "arguments": call["parameters"]})
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return calls
