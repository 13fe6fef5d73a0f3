"""The tool-call dialect of one model: which one it is, and what its tokens make of it.

Knows no requests and no results.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq.errors import ConfigError, RequestError
from mlxq_worker.dialects.amid_text import text_or_calls
from mlxq_worker.dialects.calls import Call, Offered, Piece, pieces
from mlxq_worker.dialects.dialect import Dialect
from mlxq_worker.dialects.forcing import ForcedCalls, ForcedSyntax
from mlxq_worker.dialects.registry import DIALECTS, NAMES, dialect_named, dialects_told
from mlxq_worker.model.chat import render, template_text
from mlxq_worker.model.chat_shape import SHAPES
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.model.turn_end import find_turn_ends

logger = logging.getLogger("rq.worker")

_QUESTION = "mlxqQuestionText"
_SAMPLE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "mlxq_sample",
        "description": "A sample.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "A city."}},
            "required": ["city"],
        },
    },
}
_SAMPLE_CALL = Call("mlxq_sample", {"city": "mlxqCityText"})
_SAMPLE_MESSAGES: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": _QUESTION},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "functions.mlxq_sample:0",  # Kimi reads the name there, and nobody else anything
                "type": "function",
                "function": {"name": _SAMPLE_CALL.name, "arguments": '{"city": "mlxqCityText"}'},
            }
        ],
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How one model writes its calls. `added` are the model's added tokens by their texts, `specials` those of them
    that text leaves out."""

    dialect: Dialect
    added: Mapping[str, int]
    specials: frozenset[str]

    @classmethod
    def of(cls, dialect: Dialect, tokenizer: Tokenizer) -> ToolFormat:
        added = {text: token_id for text, token_id in tokenizer.get_added_vocab().items() if text}
        specials = frozenset(
            text
            for text, token_id in added.items()
            if not tokenizer.decode([token_id], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        return cls(dialect=dialect, added=added, specials=specials)

    @property
    def name(self) -> str:
        return self.dialect.name

    @property
    def start(self) -> str:
        """The text that tells that a call has begun; empty if nothing does."""
        return self.dialect.syntax.marker

    def pieces(self, raw: str, tools: Sequence[Mapping[str, Any]]) -> list[Piece]:
        """An answer with its special tokens, cut into calls of these tools and what stands around them."""
        return list(pieces(raw, self.dialect.syntax, Offered.of(tools)))

    def call_rules(self, tools: Sequence[dict[str, Any]], *, name: str, several: bool) -> str:
        """Lark rules, of which `name` stands for one call of any of `tools`, or for `several`.

        Raises:
            RequestError: calls of this format can't be forced, or a tool's parameters can't be.
        """
        return ForcedCalls(self._forced("tool_choice"), self.added).rules(tools, name=name, several=several)

    def amid_text(self, tools: Sequence[dict[str, Any]], *, name: str, several: bool, param: str) -> str:
        """A grammar for an answer that is text or calls, all of which fit their tools; `name` is a rule's.

        Raises:
            RequestError: that can't be said of this format, or of a tool's parameters; names `param`.
        """
        forced = self._forced(param)
        if self.dialect.is_channelled:
            raise self._unforced(param)

        def calls(syntax: ForcedSyntax, several: bool) -> str:
            return ForcedCalls(syntax, self.added).rules(tools, name=name, several=several)

        return text_or_calls(self.dialect.syntax, forced, self.added, calls, name=name, several=several)

    def _forced(self, param: str) -> ForcedSyntax:
        if self.dialect.forced is None:
            raise self._unforced(param)
        return self.dialect.forced

    def _unforced(self, param: str) -> RequestError:
        way = "demand a call" if self.dialect.forced else "use tool_choice auto"
        return RequestError(
            f"{param} can't be kept to: this model writes tool calls as {self.name} does, which can't be forced so."
            f" Leave it out, or {way}",
            param=param,
            code="unsupported",
        )


def tool_format_of(tokenizer: Any, name: str | None = None) -> ToolFormat | None:
    """The format in which this model writes tool calls, or `None` if none is known.

    Args:
        tokenizer: a transformers tokenizer.
        name: the parser that the user names, in vLLM's words; ``none`` for no tool calls at all.

    Raises:
        ConfigError: there is no such parser.
    """
    if name == "none":
        return None
    found = _named(name) if name is not None else _configured(tokenizer) or _told(tokenizer)
    return ToolFormat.of(found, tokenizer) if found else None


def _named(name: str) -> Dialect:
    found = dialect_named(name)
    if found is None:
        known = ", ".join(["none", *NAMES])
        raise ConfigError(f"--tool-call-parser (MLXQ_TOOL_CALL_PARSER) is one of {known}, not {name!r}")
    return found


def _configured(tokenizer: Any) -> Dialect | None:
    """What the tokenizer's configuration says in mlx-lm's words; a name that nobody here knows is left aside."""
    name = getattr(tokenizer, "init_kwargs", {}).get("tool_parser_type")
    if not isinstance(name, str):
        return None
    found = dialect_named(name)
    if found is None:
        logger.warning("tokenizer_config.json names the tool parser %r, which is not known here", name)
    return found


def _told(tokenizer: Any) -> Dialect | None:
    """The dialect that the signs tell, and among several the one that reads what the template makes of a call. Without
    any sign that alone decides."""
    told = dialects_told(template_text(tokenizer), tokenizer.get_added_vocab())
    written = own_call(tokenizer) if tokenizer.chat_template is not None else None
    if written is None:
        return told[0] if told else None
    reading = [each for each in told or DIALECTS if _reads(each, written)]
    exact = [each for each in reading if each.write([_SAMPLE_CALL]).strip() == written.strip()]
    marked = [each for each in reading if each.syntax.marker and each.syntax.marker in written]
    if reading:
        return [*exact, *marked, *reading][0]
    # Calls that begin as this dialect's but are none that it reads are another's, which nobody here knows.
    is_another = not told or (told[0].syntax.marker and told[0].syntax.marker in written)
    return None if is_another else told[0]


def own_call(tokenizer: Any) -> str | None:
    """What the chat template makes of a sample call: the assistant's text, without the turn end. `None` if it takes
    none, or drops it."""
    for shape in SHAPES:
        try:
            text = render(tokenizer, _SAMPLE_MESSAGES, add_generation_prompt=False, tools=[_SAMPLE_TOOL], shape=shape)
            asked = render(
                tokenizer, _SAMPLE_MESSAGES[:1], add_generation_prompt=True, tools=[_SAMPLE_TOOL], shape=shape
            )
        except RequestError:
            continue
        question, _, behind = text.rpartition(_QUESTION)
        is_misquoted = "{'city'" in behind or '\\"city' in behind
        if question and "mlxqCityText" in behind and not is_misquoted:
            answer = text[len(asked) :] if text.startswith(asked) else behind
            return _without_end(answer, tokenizer)
    return None


def _without_end(text: str, tokenizer: Any) -> str:
    """The text less the special tokens at its end that close no call."""
    ends = [end.token for end in find_turn_ends(tokenizer).ends] + [tokenizer.eos_token]
    stripped = text.rstrip()
    for end in filter(None, ends):
        stripped = stripped.removesuffix(end).rstrip()
    return stripped


def _reads(dialect: Dialect, written: str) -> bool:
    read = pieces(written, dialect.syntax, Offered.of([_SAMPLE_TOOL]))
    return [(call.name, call.arguments) for piece in read for call in piece.calls] == [
        (_SAMPLE_CALL.name, _SAMPLE_CALL.arguments)
    ]


def reads_own_call(tool_format: ToolFormat, written: str) -> bool:
    """Whether a format reads what the model's own template made of the sample call."""
    return _reads(tool_format.dialect, written)
