"""Makes a request ready for the engine, and the engine's result ready for the requester.

Going in: text becomes token ids, every default is filled in, and what only the model can tell is checked (is the
prompt too long, is an id outside the vocabulary), so the engine checks nothing again. Plain Python, for the I/O
thread: knows no arrays and no queue.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from mlxq.contract import FINISH_REASONS, Choice, EosEntry, Request, Result, RunInfo, StopDetails, Usage
from mlxq.errors import RequestError
from mlxq_worker.chat import render
from mlxq_worker.engine.row import RowResult, RowSpec
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

    def prepare(self, request: Request, row_id: str) -> RowSpec:
        """The row of one request.

        A request's seed may be any integer; it is taken modulo 2**64.

        Raises:
            RequestError: this model can't run the request.
        """
        sampling = request.sampling
        prompt_ids = self._prompt_ids(request)
        eos_ids = frozenset() if sampling.ignore_eos else self._eos.ids(chat=request.messages is not None)
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
            deadline_s=sampling.timeout_s,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def finish(
        self, request: Request, spec: RowSpec, result: RowResult, *, request_id: str, created: int, queue_s: float
    ) -> Result:
        """The answer to a request whose row has ended. `created` is in Unix seconds, `queue_s` in seconds."""
        details = result.stop_details
        choice = Choice(
            index=0,
            text=result.text,
            finish_reason=FINISH_REASONS[details.type],
            stop_reason=_stop_reason(details, self._eos.primary_id),
            stop_details=details,
        )
        return Result(
            custom_id=request.custom_id,
            request_id=request_id,
            endpoint=request.endpoint,
            model=self._model_name,
            created=created,
            choices=(choice,),
            usage=Usage(prompt_tokens=result.num_prompt_tokens, completion_tokens=len(result.token_ids)),
            run=self._run_info(request, spec, result, queue_s),
        )

    def _run_info(self, request: Request, spec: RowSpec, result: RowResult, queue_s: float) -> RunInfo:
        return RunInfo(
            eos=tuple(EosEntry(id=end.id, token=end.token) for end in self._eos.members(spec.eos_ids)),
            seed=result.seed,
            content_hash=request.content_hash,
            queue_s=queue_s,
            prefill_s=result.prefill_s,
            decode_s=result.decode_s,
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


def _stop_reason(details: StopDetails, primary_id: int | None) -> int | str | None:
    """vLLM's `stop_reason`: nothing for the primary EOS and for limits, else the id or the string that stopped."""
    if details.type == "stop_string":
        return details.string
    if details.type == "eos_token" and details.token_id == primary_id:
        return None
    return details.token_id if details.type in ("eos_token", "stop_token") else None
