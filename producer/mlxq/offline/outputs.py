"""What an `LLM` answers: vLLM's `RequestOutput` and what is inside, made from our results.

Text is what the model wrote, as in vLLM: calls of tools and reasoning are in it. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlxq.contract import Alternative, Choice, Failure, Result, StopDetails, TokenLogprob
from mlxq.results.answer import AnswerError


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token that could have stood in a place: its log probability, its rank there (1 is the most probable), its
    text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One answer to a prompt, under vLLM's names. `token_ids` has every generated token, the end token included;
    `logprobs` has, for each of them, the ids that were looked at there. `cumulative_logprob` is there if `logprobs` is.

    `stop_details` and `error` are ours: why it ended, always, and what killed it, where the reason is ``error``.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: None = None
    stop_details: StopDetails | None = None
    error: AnswerError | None = None

    def finished(self) -> bool:
        """Whether it has ended, which every answer has that `LLM` returns."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """The answers to one prompt, under vLLM's names. `prompt` is its text, in a chat what the template has made of it,
    and `None` where token ids were given alone.

    A prompt that can't be answered has the answers that it was to have, with no text and the finish reason ``error``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool = True
    metrics: None = None
    lora_request: None = None
    num_cached_tokens: None = None

    @property
    def error(self) -> AnswerError | None:
        """Why the prompt, or one of its answers, has failed; `None` if nothing has. Not in vLLM."""
        return next((each.error for each in self.outputs if each.error is not None), None)


def answered(result: Result, prompt: str | None) -> RequestOutput:
    """The output of a request that ran, with its token ids reported."""
    scores = result.prompt_logprobs
    return RequestOutput(
        request_id=result.request_id,
        prompt=prompt,
        prompt_token_ids=list(result.prompt_token_ids or ()),
        prompt_logprobs=None if scores is None else [None if each is None else _place(each) for each in scores],
        outputs=list(map(_completion, result.choices)),
    )


def failed(failure: Failure, prompt: str | None, prompt_token_ids: Iterable[int] | None, n: int) -> RequestOutput:
    """The output of a request that did not run to an end: `n` empty answers that say why."""
    error = AnswerError(failure.code, failure.message, failure.param)
    details = StopDetails(type="error")
    return RequestOutput(
        request_id=failure.request_id,
        prompt=prompt,
        prompt_token_ids=None if prompt_token_ids is None else list(prompt_token_ids),
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(index, "", [], None, None, "error", stop_details=details, error=error)
            for index in range(n)
        ],
    )


def _completion(choice: Choice) -> CompletionOutput:
    scores, error = choice.logprobs, choice.error
    return CompletionOutput(
        index=choice.index,
        text=choice.text,
        token_ids=list(choice.token_ids or ()),
        cumulative_logprob=None if scores is None else _sum(scores),
        logprobs=None if scores is None else list(map(_place, scores)),
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        stop_details=choice.stop_details,
        error=None if error is None else AnswerError(error.code, error.message),
    )


def _sum(scores: Sequence[TokenLogprob]) -> float:
    return sum(each.chosen.logprob or 0.0 for each in scores)


def _place(scored: TokenLogprob) -> dict[int, Logprob]:
    """The token that stands there first, then the others by falling probability."""
    return {each.token_id: _logprob(each) for each in (scored.chosen, *scored.top)}


def _logprob(each: Alternative) -> Logprob:
    return Logprob(each.logprob or 0.0, each.rank or None, each.token)
