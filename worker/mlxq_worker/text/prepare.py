"""Makes a request ready for the engine: every default is filled in, and what only the model can tell is checked, so
that the engine checks nothing again.

The prompt is `prompt.py`'s matter, the way back `answer.py`'s. Plain Python, for the I/O thread: knows no arrays and no
queue.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from mlxq.contract import Request, Result, Sampling
from mlxq.errors import RequestError
from mlxq_worker.dialects.reasoning import ReasoningMarkers
from mlxq_worker.dialects.tool_format import ToolFormat
from mlxq_worker.engine.api import Constraint, Reasoning, RowId, RowResult, RowSpec, Streaming
from mlxq_worker.model.eos import EosSet
from mlxq_worker.model.tokenizer import Tokenizer, token_text
from mlxq_worker.text.answer import AnswerBuilder
from mlxq_worker.text.answer_parts import AnswerReader
from mlxq_worker.text.bad_words import BadWordSpeller
from mlxq_worker.text.prompt import PromptReader
from mlxq_worker.text.structure import StructureCompiler
from mlxq_worker.text.thought_budget import ThoughtBudget
from mlxq_worker.text.vocabulary import byte_ids, check_ids

_DRAWN_SEEDS = 2**53
_SEEDS = 2**64
_CHANNEL_HEADER_TOKENS = 3
"""With fewer tokens than its header has, a channel's message can't even begin."""


def draw_seed() -> int:
    """A seed for a request that has none: below 2**53, so that every JSON reader keeps it exactly."""
    return secrets.randbelow(_DRAWN_SEEDS)


class ModelPreparer:
    """Turns requests into rows and results into answers, for one model.

    Args:
        vocab_size: how many ids the model has.
        context_length: how many tokens prompt and answer may have together.
        default_max_tokens: the limit of a request that sets none; never more than the context leaves.
        model_name: what answers report.
        tool_format: how the model writes tool calls, if that is known.
        markers: what the model's reasoning stands between, if it has such a part.
        draw_seed: gives the seed of a request that has none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos: EosSet,
        *,
        vocab_size: int,
        context_length: int,
        default_max_tokens: int,
        model_name: str,
        tool_format: ToolFormat | None = None,
        markers: ReasoningMarkers | None = None,
        draw_seed: Callable[[], int] = draw_seed,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._default_max_tokens = default_max_tokens
        self._draw_seed = draw_seed
        self._prompts = PromptReader(
            tokenizer,
            vocab_size=vocab_size,
            context_length=context_length,
            model_name=model_name,
            id_style=tool_format.dialect.id_style if tool_format else "openai",
        )
        self._structures = StructureCompiler(tokenizer, eos.ids(chat=True), vocab_size, tool_format)
        self._bad_words = BadWordSpeller(tokenizer, vocab_size)
        self._markers = markers
        self._streaming: Streaming | None = None  # once somebody asks for it
        reader = AnswerReader(tokenizer, self.decode, tool_format, markers.wrappers if markers else ())
        self._answers = AnswerBuilder(
            tokenizer, eos, reader, model_name=model_name, default_max_tokens=default_max_tokens
        )

    def prepare(self, request: Request, request_id: str) -> tuple[RowSpec, ...]:
        """The rows of a request: one for each of its `n` answers, or one for a beam search. Row and seed of answer `i`
        follow from those of the first; what is asked about the prompt, the first alone reports.

        A request's seed may be any integer; it is taken modulo 2**64.

        Raises:
            RequestError: this model can't run the request.
        """
        first = self._first_row(request, RowId(request_id))
        if first.beam:
            return (first,)
        return first, *(self._further_row(request, first, index) for index in range(1, request.sampling.n))

    def streaming(self, request: Request, specs: tuple[RowSpec, ...]) -> tuple[RowSpec, ...]:
        """The rows of a request whose text is to be told while it grows; as they are, where that can only be done in
        the end."""
        if not self._answers.grows(request, specs[0]):
            return specs
        if self._streaming is None:
            self._streaming = Streaming(unsettled_ids=byte_ids(self._tokenizer))
        return tuple(replace(spec, streaming=self._streaming) for spec in specs)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def finish(
        self,
        request: Request,
        specs: tuple[RowSpec, ...],
        results: tuple[RowResult, ...],
        *,
        request_id: str,
        created: int,
        queue_s: float,
    ) -> Result:
        """The answer to a request all of whose rows have ended; see `AnswerBuilder.build`."""
        return self._answers.build(request, specs, results, request_id=request_id, created=created, queue_s=queue_s)

    def _first_row(self, request: Request, row_id: RowId) -> RowSpec:
        sampling = request.sampling
        self._check_token_ids(sampling)
        prompt_ids = self._prompts.token_ids(request)
        reasoning = self._reasoning(request, prompt_ids)
        eos_ids = frozenset() if sampling.ignore_eos else self._eos.ids(chat=request.messages is not None)
        allowed = sampling.allowed_token_ids
        return RowSpec(
            row_id=row_id,
            prompt_ids=prompt_ids,
            max_tokens=self._max_tokens(request, len(prompt_ids)),
            context_length=self._context_length,
            end_tokens=self._end_tokens(eos_ids, sampling.stop_token_ids),
            eos_ids=eos_ids,
            seed=self._draw_seed() if sampling.seed is None else sampling.seed % _SEEDS,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            min_tokens=sampling.min_tokens,
            stop=sampling.stop,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            timeout_s=sampling.timeout_s,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=sampling.logit_bias,
            bad_words=self._bad_words.ids(sampling.bad_words),
            allowed_token_ids=None if allowed is None else frozenset(allowed),
            repetition_detection=sampling.repetition_detection,
            constraint=self._constraint(request, eos_ids, reasoning),
            reasoning=reasoning,
            num_logprobs=sampling.logprobs,
            logprob_token_ids=sampling.logprob_token_ids,
            num_prompt_logprobs=_num_prompt_logprobs(request),
            beam=sampling.beam,
            num_beams_returned=sampling.n if sampling.beam else 1,
        )

    def _further_row(self, request: Request, first: RowSpec, index: int) -> RowSpec:
        """The row of answer `index`. A grammar's state is its row's own."""
        return replace(
            first,
            row_id=first.row_id.answer(index),
            seed=(first.seed + index) % _SEEDS,
            constraint=self._constraint(request, first.eos_ids, first.reasoning),
            num_prompt_logprobs=None,
        )

    def _reasoning(self, request: Request, prompt_ids: Sequence[int]) -> Reasoning | None:
        """Only a chat is answered with reasoning: a completion goes on with its prompt."""
        if self._markers is None or request.messages is None:
            if request.sampling.thinking_token_budget is not None:
                raise RequestError(
                    "thinking_token_budget limits the reasoning part of a chat, and none is known of this model",
                    param="thinking_token_budget",
                    code="unsupported",
                )
            return None
        are_forced = bool(request.tools) and request.tool_choice.mode == "required"
        return self._markers.after_prompt(prompt_ids, self.decode, calls_are_forced=are_forced)

    def _constraint(self, request: Request, eos_ids: frozenset[int], reasoning: Reasoning | None) -> Constraint | None:
        """What holds a row: its grammar, and the budget of its thought."""
        held = self._structures.constraint(request, eos_ids, reasoning)
        budget = request.sampling.thinking_token_budget
        if budget is None or reasoning is None or self._markers is None:
            return held
        before_calls = reasoning is self._markers.calls
        end_ids = reasoning.ends[0] if before_calls else self._markers.closing_ids
        if reasoning.is_open and self._markers.is_channelled and budget < _CHANNEL_HEADER_TOKENS:
            end_ids, budget = reasoning.ends[0], 0  # no message has begun that could be ended
        return ThoughtBudget(reasoning, budget, end_ids=end_ids, inner=held, vocab_size=self._vocab_size)

    def _check_token_ids(self, sampling: Sampling) -> None:
        check_ids(sampling.stop_token_ids, self._vocab_size, "stop_token_ids")
        check_ids(sampling.logprob_token_ids, self._vocab_size, "logprob_token_ids")
        check_ids(sampling.logit_bias, self._vocab_size, "logit_bias")
        check_ids(sampling.allowed_token_ids or (), self._vocab_size, "allowed_token_ids")

    def _max_tokens(self, request: Request, num_prompt_tokens: int) -> int:
        sampling = request.sampling
        limit = sampling.max_tokens
        if limit is None:
            limit = min(self._default_max_tokens, self._context_length - num_prompt_tokens)
        if sampling.min_tokens > limit:
            raise RequestError(
                f"min_tokens is {sampling.min_tokens}, but the answer can have {limit} tokens at most",
                param="min_tokens",
                code="out_of_range",
            )
        return max(1, limit)  # a row has a token; whoever wants none is shown none

    def _end_tokens(self, eos_ids: frozenset[int], stop_token_ids: Sequence[int]) -> dict[int, str]:
        """Every id that ends the row, with its text."""
        eos = {end.id: end.token for end in self._eos.members(eos_ids)}
        return {i: token_text(self._tokenizer, i) for i in stop_token_ids} | eos


def _num_prompt_logprobs(request: Request) -> int | None:
    """How many alternatives of the prompt's tokens are looked for: an answer that repeats it scores it as itself."""
    sampling = request.sampling
    asked = [sampling.prompt_logprobs, sampling.logprobs if request.echo else None]
    return max((num for num in asked if num is not None), default=None)
