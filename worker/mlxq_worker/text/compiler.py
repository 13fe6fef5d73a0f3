"""Has llguidance compile a grammar, the same way in the worker and in the process that tries it out first.

Imports llguidance only when it is used: it takes a while, which only a worker with such requests spends.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxq_worker.schema.openness import Probe
from mlxq_worker.schema.rule import guided

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Where only one text fits, llguidance asks for the tokens that the tokenizer makes of it. Of a text like
``<tool_call>`` that is a special token, which it then refuses as none of the text's."""


@dataclass(frozen=True, slots=True)
class TokenizerData:
    """All that llguidance has to know of a model's tokenizer, as values that another process can be told.

    `json` is a tokenizer.json, with what the tokenizer's configuration adds.
    """

    json: str
    num_ids: int
    eos_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, eos_ids: frozenset[int], vocab_size: int) -> TokenizerData:
        """
        Raises:
            ValueError: it is no fast tokenizer of the `tokenizers` library, which llguidance reads alone.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("it is not a fast one")
        backend = copy(backend)
        backend.no_padding()
        backend.no_truncation()
        # A tokenizer may have more ids than the model, whose masks then leave the last ones out.
        return cls(backend.to_str(), max(vocab_size, len(tokenizer)), tuple(sorted(eos_ids)))

    def build(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        return LLTokenizer(self.json, n_vocab=self.num_ids, eos_token=list(self.eos_ids) or None)


def compile_grammar(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """The start state of a grammar in llguidance's Lark; ask it for its error."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, source + _NO_FORCING, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some grammars show only here that they allow nothing
    return matcher


def error_in(tokenizer: LLTokenizer, source: str, probes: Iterable[Probe]) -> str | None:
    """Why no row can be held to a grammar, or `None` if rows can: it doesn't compile, or what its schemas ask for leads
    into a wall."""
    if error := compile_grammar(tokenizer, source).get_error():
        return error
    return next((probe.message for probe in probes if not _leaves_something(tokenizer, probe)), None)


def _leaves_something(tokenizer: LLTokenizer, probe: Probe) -> bool:
    options = {"whitespace_flexible": False, "json_allowed_escapes": 'nrbtf\\"'}
    matcher = compile_grammar(tokenizer, f"start: %json {guided(probe.schema, options)}")
    matcher.consume_tokens(tokenizer.tokenize_str(probe.text))
    return not matcher.is_error() and any(matcher.compute_bitmask()) and not matcher.is_error()
