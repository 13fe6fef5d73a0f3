"""Turns a request's prompt or messages into token ids, and refuses what this model can't take.

Plain Python over a tokenizer: knows no sampling parameters, no arrays and no queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxq.contract import Request
from mlxq.errors import RequestError
from mlxq_worker.model.chat import ChatRenderer, template_text
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.text.vocabulary import check_ids, check_text

_EFFORT_VARIABLES = ("reasoning_effort", "enable_thinking")
_START_CHARS_PER_TOKEN = 16
"""Several times what languages need, so that the start of a text that doesn't fit is enough to tell."""
_LONGEST_TOKEN_CHARS = 1024
"""More than any vocabulary has in one token; those of blanks are the longest, with 100 to 250."""


class PromptReader:
    """Reads prompts for one model.

    Args:
        vocab_size: how many ids the model has.
        context_length: how many tokens prompt and answer may have together.
        model_name: what errors call the model.
        id_style: how the model's ids of tool calls look.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        context_length: int,
        model_name: str,
        id_style: str = "openai",
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._model_name = model_name
        self._chats = ChatRenderer(tokenizer, model_name=model_name, id_style=id_style)

    def token_ids(self, request: Request) -> tuple[int, ...]:
        """The prompt's ids: not empty, inside the vocabulary, and with room for an answer.

        Raises:
            RequestError: they aren't, or the messages can't be rendered.
        """
        param = "prompt" if request.messages is None else "messages"
        ids = self._tokenize(request)
        if not ids:
            raise RequestError(f"{param} has no tokens", param=param, code="empty_prompt")
        check_ids(ids, self._vocab_size, param)
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
        self._check_effort(request)
        # Each has a token at least, and a million of them take minutes to render.
        if len(request.messages or ()) >= self._context_length:
            raise self._too_long("messages", f"more than {self._context_length}")
        return self._chats.render(
            request.messages or (),
            tools=request.tools,
            template_kwargs=request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )

    def _check_effort(self, request: Request) -> None:
        """Refuse a `reasoning_effort` that the template reads under neither of its names, and so would leave aside."""
        if "reasoning_effort" in request.chat_template_kwargs and not any(
            name in template_text(self._tokenizer) for name in _EFFORT_VARIABLES
        ):
            raise RequestError(
                f"the chat template of {self._model_name} has no reasoning_effort, and no thinking to switch off",
                param="reasoning_effort",
                code="unsupported",
            )

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        check_text(text, param)
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
