"""Turns the ends of a request's rows into its answer: choices, their texts and scores, and what was used.

Plain Python: knows no engine, no wire format and no queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from mlxq.contract import CHAT, Choice, EosEntry, Request, Result, RunInfo, StopDetails, TokenLogprob, Usage
from mlxq_worker.engine.api import RowResult, RowSpec, TokenScores
from mlxq_worker.model.eos import EosSet
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.text.answer_parts import AnswerParts, AnswerReader
from mlxq_worker.text.grammar import ignored_formats
from mlxq_worker.text.vocabulary import TokenTexts


class AnswerBuilder:
    """Builds the answers of one model. `reader` tells their parts apart; they report `model_name` and, where a request
    has no limit, `default_max_tokens`, and likewise what of the `sampling_defaults` it has left out, if they are in
    force."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos: EosSet,
        reader: AnswerReader,
        *,
        model_name: str,
        default_max_tokens: int,
        sampling_defaults: Mapping[str, float] | None,
    ) -> None:
        self._reader = reader
        self._texts = TokenTexts(tokenizer)
        self._eos = eos
        self._model_name = model_name
        self._default_max_tokens = default_max_tokens
        self._sampling_defaults = sampling_defaults

    def grows(self, request: Request, spec: RowSpec) -> bool:
        """Whether an answer can be told while it grows, see `AnswerReader.grows`."""
        return self._reader.grows(request, spec)

    def build(
        self,
        request: Request,
        specs: Sequence[RowSpec],
        results: Sequence[RowResult],
        *,
        request_id: str,
        created: int,
        queue_s: float,
    ) -> Result:
        """The answer to a request all of whose rows have ended, one result for each choice, in order.

        Args:
            created: Unix seconds.
            queue_s: seconds that the request waited.
        """
        first = specs[0]
        results = [_without_tokens(each) if request.sampling.max_tokens == 0 else each for each in results]
        echo = self._echo(request, first, results[0])
        wants_ids = request.sampling.return_token_ids
        read = [self._reader.read(request, first, result) for result in results]
        has_reasoning = first.reasoning is not None or any(parts.reasoning_content is not None for parts in read)
        return Result(
            custom_id=request.custom_id,
            request_id=request_id,
            endpoint=request.endpoint,
            model=self._model_name,
            created=created,
            choices=tuple(
                self._choice(request, parts, index, result, echo)
                for index, (parts, result) in enumerate(zip(read, results, strict=True))
            ),
            usage=Usage(
                prompt_tokens=results[0].num_prompt_tokens,
                completion_tokens=sum(len(result.token_ids) for result in results),
                reasoning_tokens=sum(parts.num_reasoning_tokens for parts in read) if has_reasoning else None,
            ),
            run=self._run_info(request, first, results, queue_s),
            prompt_token_ids=first.prompt_ids if wants_ids else None,
            prompt_logprobs=self._prompt_logprobs(request, results[0]),
        )

    def _choice(self, request: Request, parts: AnswerParts, index: int, result: RowResult, echo: _Echo) -> Choice:
        details = result.stop_details
        return Choice(
            index=index,
            text=echo.text + parts.text,
            finish_reason=parts.finish_reason,
            stop_reason=_stop_reason(details, self._eos.primary_id),
            stop_details=details,
            reasoning_content=parts.reasoning_content,
            tool_calls=parts.tool_calls,
            logprobs=self._logprobs(_shown_scores(request, result), echo.logprobs),
            token_ids=result.token_ids if request.sampling.return_token_ids else None,
            seed=result.seed,
            beam_score=result.beam_score,
        )

    def _echo(self, request: Request, spec: RowSpec, result: RowResult) -> _Echo:
        """What of the prompt an answer begins with."""
        if not request.echo:
            return _Echo()
        text = request.prompt if isinstance(request.prompt, str) else self._reader.text(spec.prompt_ids)
        scores = result.prompt_logprobs
        if scores is None or request.sampling.logprobs is None:
            return _Echo(text)
        num_top = request.sampling.logprobs
        tokens = [
            self._texts.unscored(token_id) if each is None else self._texts.scored(_fewer(each, num_top))
            for token_id, each in zip(spec.prompt_ids, scores, strict=True)
        ]
        return _Echo(text, tuple(tokens[self._num_added(request, spec) :]))

    def _num_added(self, request: Request, spec: RowSpec) -> int:
        """How many tokens the tokenizer has put in front of a text, such as a BOS: they are none of it."""
        if not isinstance(request.prompt, str):
            return 0
        texts = (self._reader.text([token_id]) for token_id in spec.prompt_ids)
        return sum(1 for _ in takewhile(lambda text: not text, texts))

    def _logprobs(
        self, scores: Sequence[TokenScores] | None, of_prompt: Sequence[TokenLogprob]
    ) -> tuple[TokenLogprob, ...] | None:
        return None if scores is None else (*of_prompt, *map(self._texts.scored, scores))

    def _prompt_logprobs(self, request: Request, result: RowResult) -> tuple[TokenLogprob | None, ...] | None:
        num_top = request.sampling.prompt_logprobs
        if num_top is None or result.prompt_logprobs is None:
            return None
        scores = (None if each is None else _fewer(each, num_top) for each in result.prompt_logprobs)
        return tuple(None if each is None else self._texts.scored(each) for each in scores)

    def _run_info(self, request: Request, spec: RowSpec, results: Sequence[RowResult], queue_s: float) -> RunInfo:
        """Seconds are those of the row that took longest."""
        return RunInfo(
            eos=tuple(EosEntry(id=end.id, token=end.token) for end in self._eos.members(spec.eos_ids)),
            seed=spec.seed,
            content_hash=request.content_hash,
            queue_s=queue_s,
            prefill_s=max(result.prefill_s for result in results),
            decode_s=max(result.decode_s for result in results),
            ignored_formats=ignored_formats(request),
            default_max_tokens=self._default_max_tokens if request.sampling.max_tokens is None else None,
            generation_config="off" if self._sampling_defaults is None else "auto",
            sampling_defaults={
                name: value for name, value in (self._sampling_defaults or {}).items() if name in request.left_out
            },
            ignore_eos=request.sampling.ignore_eos,
        )


@dataclass(frozen=True, slots=True)
class _Echo:
    """The prompt as an answer repeats it."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


def _fewer(scores: TokenScores, num_top: int) -> TokenScores:
    return replace(scores, top=scores.top[:num_top])


def _without_tokens(result: RowResult) -> RowResult:
    """The end of a row whose answer has no tokens: the one that it generated counts for nothing."""
    details = result.stop_details
    return replace(
        result,
        token_ids=(),
        text="",
        logprobs=None if result.logprobs is None else (),
        stop_details=details if details.type in ("cancelled", "deadline", "error") else StopDetails(type="max_tokens"),
    )


def _shown_scores(request: Request, result: RowResult) -> Sequence[TokenScores] | None:
    """The scores that an answer reports. As in OpenAI's chats, those of a chat leave out the token that ended it, which
    is no part of its text; those of a completion are of all its tokens, as in vLLM."""
    ended_by_token = result.stop_details.type in ("eos_token", "stop_token")
    if result.logprobs is None or request.endpoint != CHAT or not ended_by_token:
        return result.logprobs
    return result.logprobs[: len(result.token_ids) - 1]


def _stop_reason(details: StopDetails, primary_id: int | None) -> int | str | None:
    """vLLM's `stop_reason`: nothing for the primary EOS and for limits, else the id or the string that stopped, or
    its word for a text that loops (`check_stop` in vllm/v1/core/sched/utils.py)."""
    if details.type == "repetition":
        return "repetition_detected"
    if details.type == "stop_string":
        return details.string
    if details.type == "eos_token" and details.token_id == primary_id:
        return None
    return details.token_id if details.type in ("eos_token", "stop_token") else None
