"""Reads the parts of an answer out of a row that has ended: reasoning, tool calls, and the text that is left.

Works from the token ids where special tokens matter, since text leaves those out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxq.contract import FINISH_REASONS, FinishReason, Request, StopDetails, ToolCall
from mlxq_worker.engine.api import Decode, RowResult, RowSpec
from mlxq_worker.model.reasoning import split_reasoning
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.model.tool_formats import ToolFormat
from mlxq_worker.text.tool_calls import ToolAnswer, begins_call, split_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerParts:
    """The parts of one answer. `finish_reason` is `tool_calls` if there are some, else as the row ended."""

    text: str
    finish_reason: FinishReason
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class AnswerReader:
    """Reads the answers of one model. `decode` gives text as answers have it, special tokens left out."""

    def __init__(self, tokenizer: Tokenizer, decode: Decode, tool_format: ToolFormat | None) -> None:
        self._tokenizer = tokenizer
        self._decode = decode
        self._tool_format = tool_format

    def read(self, request: Request, spec: RowSpec, result: RowResult) -> AnswerParts:
        """The parts of a row's answer.

        Calls are read only if the row ended by an end token or, as in vLLM, at a stop string: one that a limit cut off
        stays text, as it was written, with its special tokens, and the finish reason stays the limit's. `stop_details`
        is nothing of this: it keeps what the row ended on.
        """
        details = result.stop_details
        ended_by_token = details.type in ("eos_token", "stop_token")
        ids = result.token_ids[:-1] if ended_by_token else result.token_ids
        parts = split_reasoning(spec.reasoning, ids, result.text, self._decode)
        finish_reason = FINISH_REASONS[details.type]
        text = parts.text
        if self._tool_format and request.tools and request.tool_choice.mode != "none":
            raw = self._raw(parts.token_ids)
            ended = _until_stop(raw, request, details)
            if finish_reason == "stop" and (answer := _calls(ended, request, self._tool_format)):
                return AnswerParts(
                    text=answer.text,
                    finish_reason="tool_calls",
                    reasoning_content=parts.reasoning,
                    tool_calls=answer.calls,
                )
            if finish_reason == "length" and begins_call(raw, self._tool_format):
                text = raw
        return AnswerParts(text=text, finish_reason=finish_reason, reasoning_content=parts.reasoning)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return self._decode(token_ids)

    def _raw(self, token_ids: Sequence[int]) -> str:
        """The text with its special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _calls(raw: str, request: Request, tool_format: ToolFormat) -> ToolAnswer | None:
    return split_answer(raw, request.tools or (), tool_format, several=request.tool_choice.parallel)


def _until_stop(raw: str, request: Request, details: StopDetails) -> str:
    """The text up to the stop string on which it ended, if it did: the last token may hold more."""
    if not details.string or details.string not in raw:
        return raw
    before, string, _ = raw.rpartition(details.string)
    return before + string if request.sampling.include_stop_str_in_output else before
