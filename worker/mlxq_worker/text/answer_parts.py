"""Reads the parts of an answer out of a row that has ended: reasoning, tool calls, and the text that is left.

Works from the token ids where special tokens matter, since text leaves those out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxq.contract import FINISH_REASONS, FinishReason, Request, StopDetails, ToolCall
from mlxq_worker.dialects.calls import Offered
from mlxq_worker.dialects.families.harmony import call_of, messages
from mlxq_worker.dialects.reasoning import ReasonedAnswer, split_reasoning, unclosed_thought, unwrapped
from mlxq_worker.dialects.tool_calls import ToolAnswer, as_tool_calls, begins_call, split_answer, without_specials
from mlxq_worker.dialects.tool_format import ToolFormat
from mlxq_worker.engine.api import Decode, RowResult, RowSpec
from mlxq_worker.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerParts:
    """The parts of one answer. `finish_reason` is `tool_calls` if there are some, else as the row ended.
    `num_reasoning_tokens` counts the tokens of the reasoning part, its markers included."""

    text: str
    finish_reason: FinishReason
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    num_reasoning_tokens: int = 0


class AnswerReader:
    """Reads the answers of one model. `decode` gives text as answers have it, special tokens left out; `wrappers` are
    what the model puts around its answers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Decode,
        tool_format: ToolFormat | None,
        wrappers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._decode = decode
        self._tool_format = tool_format
        self._wrappers = wrappers

    def read(self, request: Request, spec: RowSpec, result: RowResult) -> AnswerParts:
        """The parts of a row's answer.

        Calls are read only if the row ended by an end token or, as in vLLM, at a stop string: one that a limit cut off
        stays text, as it was written, with its special tokens, and the finish reason stays the limit's. `stop_details`
        is nothing of this: it keeps what the row ended on.
        """
        details = result.stop_details
        ended_by_token = details.type in ("eos_token", "stop_token")
        ids = result.token_ids[:-1] if ended_by_token else result.token_ids
        finish_reason = FINISH_REASONS[details.type]
        if request.messages is not None and self._tool_format and self._tool_format.dialect.is_channelled:
            return self._read_channels(request, ids, details, self._tool_format)
        parts = split_reasoning(spec.reasoning, ids, result.text, self._decode)
        bare = AnswerParts(
            text=unwrapped(parts.text, self._wrappers) if request.messages is not None else parts.text,
            finish_reason=finish_reason,
            reasoning_content=parts.reasoning,
            num_reasoning_tokens=parts.num_tokens,
        )
        if self._tool_format is None or not _may_call(request):
            return bare
        if finish_reason == "stop":
            return self._with_calls(request, spec, bare, parts, ids, details, self._tool_format)
        raw = self._raw(parts.token_ids)
        is_cut_call = finish_reason == "length" and begins_call(raw, self._tool_format)
        return replace(bare, text=raw) if is_cut_call else bare

    def grows(self, request: Request, spec: RowSpec) -> bool:
        """Whether a row's answer grows as its text does, so that it can be told as it comes. Where calls may be in it,
        channels, wrappers or markers that no token stands for, what its parts are shows only in the end."""
        if request.echo or spec.beam is not None or request.sampling.max_tokens == 0:
            return False
        if spec.reasoning is not None and spec.reasoning.texts is not None:
            return False
        if self._tool_format is not None and _may_call(request):
            return False
        if request.messages is None:
            return True
        return not self._wrappers and not (self._tool_format and self._tool_format.dialect.is_channelled)

    def _with_calls(
        self,
        request: Request,
        spec: RowSpec,
        bare: AnswerParts,
        parts: ReasonedAnswer,
        ids: Sequence[int],
        details: StopDetails,
        tool_format: ToolFormat,
    ) -> AnswerParts:
        raw = _until_stop(self._raw(parts.token_ids), request, details)
        if answer := _calls(raw, request, tool_format):
            return replace(bare, text=answer.text, finish_reason="tool_calls", tool_calls=answer.calls)
        if parts.reasoning is None or parts.token_ids or parts.num_tokens != len(ids):
            return bare
        thought = unclosed_thought(spec.reasoning, ids, self._raw)
        return _with_calls_of_thought(request, bare, thought, tool_format) or bare

    def _read_channels(
        self, request: Request, ids: Sequence[int], details: StopDetails, tool_format: ToolFormat
    ) -> AnswerParts:
        """gpt-oss: what is final or said to the user is the text, analysis the reasoning."""
        raw = _until_stop(self._raw(ids), request, details)
        finish_reason = FINISH_REASONS[details.type]
        offered = Offered.of(request.tools or ()) if _may_call(request) else Offered({})
        thoughts, texts, calls = [], [], []
        num_thought_tokens = 0
        for message in messages(raw):
            call = call_of(message, offered) if finish_reason == "stop" else None
            if call is not None:
                calls.append(call)
            elif message.channel == "analysis":
                thoughts.append(message.text)
                num_thought_tokens += self._num_tokens(raw[message.start : message.end])
            elif message.recipient is not None:
                texts.append(raw[message.start : message.end])
            else:
                texts.append(without_specials(message.text, tool_format))
        kept = calls if _may_be_several(request) else calls[:1]
        return AnswerParts(
            text="\n".join(text for text in texts if text),
            finish_reason="tool_calls" if calls else finish_reason,
            reasoning_content="\n".join(thoughts) if thoughts else None,
            tool_calls=as_tool_calls(kept, tool_format.dialect.id_style),
            num_reasoning_tokens=num_thought_tokens,
        )

    def _num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return self._decode(token_ids)

    def _raw(self, token_ids: Sequence[int]) -> str:
        """The text with its special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _with_calls_of_thought(
    request: Request, bare: AnswerParts, thought: str, tool_format: ToolFormat
) -> AnswerParts | None:
    """The calls in a thought that the model never closed: the first of them ends it."""
    pieces = tool_format.pieces(thought, request.tools or ())
    first = next((index for index, piece in enumerate(pieces) if piece.calls), None)
    answer = _calls(thought, request, tool_format)
    if first is None or answer is None:
        return None
    before = without_specials("".join(piece.text for piece in pieces[:first]), tool_format)
    behind = without_specials("".join(piece.text for piece in pieces[first:]), tool_format)
    return replace(
        bare,
        text=behind.strip(),
        finish_reason="tool_calls",
        tool_calls=answer.calls,
        reasoning_content=before.strip("\n"),
    )


def _may_call(request: Request) -> bool:
    return bool(request.tools) and request.tool_choice.mode != "none"


def _calls(raw: str, request: Request, tool_format: ToolFormat) -> ToolAnswer | None:
    return split_answer(raw, request.tools or (), tool_format, several=_may_be_several(request))


def _may_be_several(request: Request) -> bool:
    """A named tool is called exactly once."""
    return request.tool_choice.parallel and request.tool_choice.name is None


def _until_stop(raw: str, request: Request, details: StopDetails) -> str:
    """The text up to the stop string on which it ended, if it did: the last token may hold more."""
    if not details.string or details.string not in raw:
        return raw
    before, string, _ = raw.rpartition(details.string)
    return before + string if request.sampling.include_stop_str_in_output else before
