"""Makes a request ready for the engine, and the engine's result ready for the requester.

Going in: text becomes token ids, every default is filled in, and what only the model can tell is checked (is the
prompt too long, is an id outside the vocabulary), so the engine checks nothing again. Plain Python, for the I/O
thread: knows no arrays and no queue.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mlxq.contract import FINISH_REASONS, Choice, EosEntry, Request, Result, RunInfo, StopDetails, Usage
from mlxq.errors import RequestError
from mlxq_worker.chat import render
from mlxq_worker.engine.row import RowResult, RowSpec, choice_row_id
from mlxq_worker.eos import EosSet
from mlxq_worker.tokenizer import Tokenizer, token_text

_DRAWN_SEEDS = 2**53
_SEEDS = 2**64
_START_CHARS_PER_TOKEN = 16
"""Several times what languages need, so that the start of a text that doesn't fit is enough to tell."""
_LONGEST_TOKEN_CHARS = 1024
"""More than any vocabulary has in one token; those of blanks are the longest, with 100 to 250."""


def draw_seed() -> int:
    """A seed for a request that has none: below 2**53, so that every JSON reader keeps it exactly."""
    return secrets.randbelow(_DRAWN_SEEDS)


class Preparer:
    """Turns requests into rows and results into answers, for one model.

    Args:
        vocab_size: how many ids the model has.
        context_length: how many tokens prompt and answer may have together.
        default_max_tokens: the limit of a request that sets none; never more than the context leaves.
        model_name: what answers report.
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
        draw_seed: Callable[[], int] = draw_seed,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._default_max_tokens = default_max_tokens
        self._model_name = model_name
        self._draw_seed = draw_seed

    def prepare(self, request: Request, row_id: str) -> tuple[RowSpec, ...]:
        """The rows of a request, one for each of its `n` answers; row and seed of answer `i` follow from those of the
        first.

        A request's seed may be any integer; it is taken modulo 2**64.

        Raises:
            RequestError: this model can't run the request.
        """
        _check_supported(request)
        sampling = request.sampling
        prompt_ids = self._prompt_ids(request)
        eos_ids = frozenset() if sampling.ignore_eos else self._eos.ids(chat=request.messages is not None)
        first = RowSpec(
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
            deadline_s=sampling.timeout_s,
            repetition_detection=sampling.repetition_detection,
            shares_prompt=sampling.n > 1,
        )
        return tuple(
            replace(first, row_id=choice_row_id(row_id, index), seed=(first.seed + index) % _SEEDS)
            for index in range(sampling.n)
        )

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
        """The answer to a request all of whose rows have ended. `created` is in Unix seconds, `queue_s` in seconds."""
        return Result(
            custom_id=request.custom_id,
            request_id=request_id,
            endpoint=request.endpoint,
            model=self._model_name,
            created=created,
            choices=tuple(self._choice(index, result) for index, result in enumerate(results)),
            usage=Usage(
                prompt_tokens=results[0].num_prompt_tokens,
                completion_tokens=sum(len(result.token_ids) for result in results),
            ),
            run=self._run_info(request, specs[0], results, queue_s),
        )

    def _choice(self, index: int, result: RowResult) -> Choice:
        details = result.stop_details
        return Choice(
            index=index,
            text=result.text,
            finish_reason=FINISH_REASONS[details.type],
            stop_reason=_stop_reason(details, self._eos.primary_id),
            stop_details=details,
            seed=result.seed,
        )

    def _run_info(self, request: Request, spec: RowSpec, results: Sequence[RowResult], queue_s: float) -> RunInfo:
        return RunInfo(
            eos=tuple(EosEntry(id=end.id, token=end.token) for end in self._eos.members(spec.eos_ids)),
            seed=spec.seed,
            content_hash=request.content_hash,
            queue_s=queue_s,
            prefill_s=max(result.prefill_s for result in results),
            decode_s=max(result.decode_s for result in results),
        )

    def _prompt_ids(self, request: Request) -> tuple[int, ...]:
        """The prompt's ids: not empty, inside the vocabulary, and with room for an answer."""
        param = "prompt" if request.messages is None else "messages"
        ids = self._tokenize(request)
        if not ids:
            raise RequestError(f"{param} has no tokens", param=param, code="empty_prompt")
        self._check_vocabulary(ids, param)
        if len(ids) >= self._context_length:
            raise self._too_long(param, str(len(ids)))
        return tuple(ids)

    def _too_long(self, param: str, num_tokens: str) -> RequestError:
        return RequestError(
            f"{param} has {num_tokens} tokens, but prompt and answer together can have"
            f" {self._context_length} at most with this model",
            param=param,
            code="context_length_exceeded",
        )

    def _tokenize(self, request: Request) -> Sequence[int]:
        if request.messages is not None:
            # The template writes the special tokens itself; the tokenizer would add a second BOS.
            return self._encode(self._render_chat(request), "messages", add_special_tokens=False)
        if isinstance(request.prompt, str):
            return self._encode(request.prompt, "prompt", add_special_tokens=True)
        return request.prompt or ()

    def _render_chat(self, request: Request) -> str:
        if self._tokenizer.chat_template is None:
            raise RequestError(
                f"{self._model_name} has no chat template, so it takes no messages: send a prompt to /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        text = self._render(request, with_tools=True)
        if request.tools and text == self._render(request, with_tools=False):
            raise RequestError(
                f"the chat template of {self._model_name} does not write tools, so the model would not see them",
                param="tools",
                code="unsupported",
            )
        return text

    def _render(self, request: Request, *, with_tools: bool) -> str:
        return render(
            self._tokenizer,
            request.messages or (),
            add_generation_prompt=True,
            tools=request.tools if with_tools else None,
            template_kwargs=request.chat_template_kwargs,
        )

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{param} holds a lone surrogate ({text[error.start]!a}), which is no character: use UTF-8 text",
                param=param,
                code="invalid_unicode",
            ) from error
        self._check_start(text, param)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _check_start(self, text: str, param: str) -> None:
        """Refuse a text of megabytes by its start alone: to tokenise all of it would keep everybody waiting.

        In the whole text the tokens near the cut may be fewer, so there must be far more of them than fit.
        """
        num_chars = _START_CHARS_PER_TOKEN * (self._context_length + _LONGEST_TOKEN_CHARS)
        if len(text) > num_chars:
            start_ids = self._tokenizer.encode(text[:num_chars], add_special_tokens=False)
            if len(start_ids) >= 2 * self._context_length + _LONGEST_TOKEN_CHARS:
                raise self._too_long(param, f"more than {self._context_length}")

    def _check_vocabulary(self, ids: Sequence[int], param: str) -> None:
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self._vocab_size:
                raise RequestError(
                    f"{param} has the token id {token_id} at index {index}, but the model's ids end at"
                    f" {self._vocab_size - 1}",
                    param=param,
                    code="out_of_range",
                )

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
        return limit

    def _end_tokens(self, eos_ids: frozenset[int], stop_token_ids: Sequence[int]) -> dict[int, str]:
        """Every id that ends the row, with its text."""
        self._check_vocabulary(stop_token_ids, "stop_token_ids")
        eos = {end.id: end.token for end in self._eos.members(eos_ids)}
        return {i: token_text(self._tokenizer, i) for i in stop_token_ids} | eos


_NOT_YET: Mapping[str, Callable[[Request], object]] = {
    "presence_penalty": lambda request: request.sampling.presence_penalty,
    "frequency_penalty": lambda request: request.sampling.frequency_penalty,
    "repetition_penalty": lambda request: request.sampling.repetition_penalty != 1,
    "logit_bias": lambda request: request.sampling.logit_bias,
    "bad_words": lambda request: request.sampling.bad_words,
    "allowed_token_ids": lambda request: request.sampling.allowed_token_ids is not None,
    "logprobs": lambda request: request.sampling.logprobs is not None,
    "prompt_logprobs": lambda request: request.sampling.prompt_logprobs is not None,
    "return_token_ids": lambda request: request.sampling.return_token_ids,
    "use_beam_search": lambda request: request.sampling.beam,
    "tool_choice": lambda request: request.tool_choice.mode == "required",
    "response_format": lambda request: request.structure,
}
"""What this worker doesn't honour: the field, and whether a request asks for it."""


def _check_supported(request: Request) -> None:
    for param, asks in _NOT_YET.items():
        if asks(request):
            raise RequestError(f"{param} is not supported by this worker", param=param, code="unsupported_field")


def _stop_reason(details: StopDetails, primary_id: int | None) -> int | str | None:
    """vLLM's `stop_reason`: nothing for the primary EOS and for limits, else the id or the string that stopped."""
    if details.type == "stop_string":
        return details.string
    if details.type == "eos_token" and details.token_id == primary_id:
        return None
    return details.token_id if details.type in ("eos_token", "stop_token") else None
