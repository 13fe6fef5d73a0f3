"""Compiles what an answer is held to (`Request.structure`, a forced tool call) into constraints for the engine.

The compiler is llguidance. Each distinct grammar is tried out once elsewhere (`grammar_trial`) and compiled once; its
start state is copied for every row. Compile errors name the request's field and quote the compiler. Knows no rows and
no arrays but the masks.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mlxq.contract import Request
from mlxq.errors import RequestError
from mlxq_worker.dialects.tool_format import ToolFormat
from mlxq_worker.engine.api import Reasoning, ReasoningState, Words, num_words
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.text.compiler import TokenizerData, compile_grammar
from mlxq_worker.text.grammar import Grammar, answer_grammar
from mlxq_worker.text.grammar_syntax import named_tokens
from mlxq_worker.text.grammar_trial import GrammarTrial

if TYPE_CHECKING:  # it takes a second to import, which only a worker with such requests spends
    from llguidance import LLMatcher, LLTokenizer

_TOKEN = re.compile(r"<\[(\d+)\]>")
"""A token by its id, as grammars of calls have them."""
_CACHED_GRAMMARS = 64
_CACHED_CHARS = 512 * 1024
"""Of the sources of all cached grammars: compiled, a large one takes about a thousand times its length."""


class StructureCompiler:
    """Makes the constraints of one model's rows.

    Args:
        eos_ids: all of the model's EOS ids; none of them ever counts as text.
        vocab_size: the width of the model's logits.
        tool_format: how the model writes tool calls, if that is known.

    `num_compiled` counts the grammars that weren't in the cache.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_ids: frozenset[int],
        vocab_size: int,
        tool_format: ToolFormat | None = None,
        *,
        cached_grammars: int = _CACHED_GRAMMARS,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._vocab_size = vocab_size
        self._tool_format = tool_format
        self._added_tokens = {text: token_id for text, token_id in tokenizer.get_added_vocab().items() if text}
        self._cached_grammars = cached_grammars
        self.num_compiled = 0
        self._compiled: OrderedDict[str, LLMatcher | str] = OrderedDict()  # or an error; least recently used first

    def constraint(
        self, request: Request, eos_ids: frozenset[int], reasoning: Reasoning | None = None
    ) -> GrammarConstraint | None:
        """A fresh constraint for one row of a request, or `None` if nothing holds its answer.

        EOS is allowed exactly when the answer is complete, by any of `eos_ids`, and a complete answer that nothing can
        follow has to end so. The request's `stop_token_ids` are allowed then too, and end it; before that they are
        ordinary tokens, which the row goes on from.

        Args:
            eos_ids: the row's EOS set; empty under `ignore_eos`.
            reasoning: the part before the answer that nothing holds, except that no EOS may end it.

        Raises:
            RequestError: the structure can't be compiled, or the row could never end.
        """
        grammar = answer_grammar(request, self._tool_format, self._added_tokens)
        if grammar is None:
            return None
        end_ids = eos_ids.union(request.sampling.stop_token_ids)
        if not end_ids:
            raise RequestError(
                f"{grammar.param} needs an end token for a complete answer to end with, and ignore_eos takes them all:"
                " leave it out, or give stop_token_ids",
                param="ignore_eos" if request.sampling.ignore_eos else grammar.param,
                code="unsupported",
            )
        if request.structure and request.structure.kind == "grammar":
            self._check_tokens(grammar, end_ids | self._eos_ids)
        if request.tools:
            self._check_calls(grammar, end_ids | self._eos_ids)
        state = ReasoningState(reasoning) if reasoning else None
        return GrammarConstraint(self._matcher(grammar), self._masks.bits(end_ids), state, self._masks)

    def _check_tokens(self, grammar: Grammar, end_ids: frozenset[int]) -> None:
        """
        Raises:
            RequestError: the grammar names a token that ends the row, which so could never be completed.
        """
        for name, ids in named_tokens(grammar.source, self._tokenizer):
            if ids and ids <= end_ids:
                raise grammar.error(
                    f"{name} ends the answer wherever it comes: leave it out, an answer ends where the grammar does"
                )

    def _check_calls(self, grammar: Grammar, end_ids: frozenset[int]) -> None:
        """
        Raises:
            RequestError: the model writes a token in its calls that ends the row, which so could never be completed.
        """
        ends = end_ids.intersection(map(int, _TOKEN.findall(grammar.source)))
        if ends:
            token = self._tokenizer.decode([min(ends)], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            raise RequestError(
                f"this model writes {token} in its calls, which ends its answers too, so {grammar.param} can't be kept"
                " to: use tool_choice auto",
                param=grammar.param,
                code="unsupported",
            )

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        """The start state of a grammar, from the cache if it is there.

        Raises:
            RequestError: it can't be compiled.
        """
        compiled = self._compiled.get(grammar.source)
        if compiled is None:
            compiled = self._compiled[grammar.source] = self._compile(grammar)
            self.num_compiled += 1
            self._make_room()
        self._compiled.move_to_end(grammar.source)
        if isinstance(compiled, str):
            raise grammar.error(compiled)
        return compiled

    def _make_room(self) -> None:
        """The newest grammar always stays."""
        num_chars = sum(map(len, self._compiled))
        while len(self._compiled) > 1 and (len(self._compiled) > self._cached_grammars or num_chars > _CACHED_CHARS):
            num_chars -= len(self._compiled.popitem(last=False)[0])

    def _compile(self, grammar: Grammar) -> LLMatcher | str:
        """The compiled grammar, or what is wrong with it: also worth keeping, since it can take a while to find."""
        error = self._trial.error_in(grammar.source, grammar.probes)
        return error or compile_grammar(self._masks.tokenizer, grammar.source)

    @cached_property
    def _tokenizer_data(self) -> TokenizerData:
        try:
            return TokenizerData.of(self._tokenizer, self._eos_ids, self._vocab_size)
        except ValueError as error:
            raise RequestError(
                f"this model's tokenizer is of a kind that no structure can be held to: {error}",
                param="response_format",
                code="unsupported",
            ) from error

    @cached_property
    def _trial(self) -> GrammarTrial:
        return GrammarTrial(self._tokenizer_data)

    @cached_property
    def _masks(self) -> GrammarMasks:
        return GrammarMasks(self._tokenizer_data.build(), self._eos_ids, self._vocab_size)


class GrammarConstraint:
    """The state of one row's grammar, behind its reasoning part if it may have one. See `Constraint`."""

    __slots__ = ("_end_words", "_is_refuted", "_matcher", "_reasoning", "_start", "batch")

    def __init__(
        self, matcher: LLMatcher, end_words: Words, reasoning: ReasoningState | None, batch: GrammarMasks
    ) -> None:
        self._start = matcher
        self._matcher = matcher.deep_copy()
        self._is_refuted = False
        self._end_words = end_words  # (W,)
        self._reasoning = reasoning
        self.batch = batch

    def allowed_ids(self) -> bytes:
        masks = self.batch.empty(1)
        self.batch.fill([self], masks)
        return masks.astype("<u4").tobytes()

    def advance(self, token_id: int) -> None:
        if self._reasoning is None:
            self._matcher.consume_token(token_id)
            return
        was_starting = self._reasoning.is_starting
        is_thought = self._reasoning.push(token_id)
        if was_starting:
            self._advance_start(token_id)
        elif not is_thought:
            self._matcher.consume_token(token_id)

    def _advance_start(self, token_id: int) -> None:
        """What may still become the start of a thought, blanks or a part of its marker, may be the answer's too."""
        if self._reasoning and self._reasoning.is_inside:
            self._matcher, self._is_refuted = self._start.deep_copy(), False
        elif not self._is_refuted and self._matcher.validate_tokens([token_id]) == 1:
            self._matcher.consume_token(token_id)
        else:
            self._is_refuted = True

    @property
    def is_complete(self) -> bool:
        return self.held_by is not None and self._matcher.is_accepting()

    @property
    def held_by(self) -> LLMatcher | None:
        """The grammar that says what may come next; none inside the reasoning part."""
        return None if self._reasoning and self._reasoning.is_inside else self._matcher

    def complete(self, words: Words) -> None:
        """Turn the grammar's own mask (W,) into the row's: with its end ids, and with the reasoning part's start."""
        if self.held_by is None:
            return
        if self._matcher.is_error():  # too complex to go on with: the row ends here, with an error
            words[:] = 0
        elif self._matcher.is_accepting():
            words |= self._end_words
        if self._is_refuted:  # nothing but a thought begins so
            words[:] = 0
        for start_id in self._reasoning.next_start_ids if self._reasoning else ():
            words[start_id // 32] |= np.uint32(1 << start_id % 32)


class GrammarMasks:
    """Makes the masks of many grammar constraints, in parallel and without holding the interpreter's lock."""

    def __init__(self, tokenizer: LLTokenizer, eos_ids: frozenset[int], vocab_size: int) -> None:
        from llguidance import LLExecutor

        self.tokenizer = tokenizer
        self._executor = LLExecutor()
        self._vocab_size = vocab_size
        self._text_words = self.bits(range(vocab_size)) & ~self.bits(eos_ids)  # (W,)

    def empty(self, num_rows: int) -> Words:
        """Words that allow nothing: (num_rows, W)."""
        return np.zeros((num_rows, num_words(self._vocab_size)), dtype=np.uint32)

    def bits(self, ids: Iterable[int]) -> Words:
        """The mask (W,) that allows exactly these ids."""
        allowed = np.zeros(32 * num_words(self._vocab_size), dtype=np.uint8)
        allowed[list(ids)] = 1
        return np.packbits(allowed, bitorder="little").view("<u4").astype(np.uint32)

    def fill(self, constraints: Sequence[GrammarConstraint], masks: Words) -> None:
        """Write each constraint's mask into its row of `masks` (C, W)."""
        from llguidance.numpy import fill_next_token_bitmask_par

        # llguidance writes as many words as its tokenizer has, which may be more than the model's.
        every = np.full((len(constraints), num_words(self.tokenizer.vocab_size)), -1, dtype=np.int32)
        held = [(matcher, index) for index, each in enumerate(constraints) if (matcher := each.held_by)]
        if held:
            fill_next_token_bitmask_par(self._executor, held, every)
        masks[:] = every.view(np.uint32)[:, : masks.shape[1]] & self._text_words
        for constraint, words in zip(constraints, masks, strict=True):
            constraint.complete(words)
