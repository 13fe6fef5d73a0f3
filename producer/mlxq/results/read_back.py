"""Reads output lines back: who is answered, with what, why it stopped, and which error a line holds.

A line may come from an older or newer mlxq, or from another program: whatever is missing or of another shape reads as
nothing, and no function here raises. Builds no lines; `mlxq.results.result_lines` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeGuard

import msgspec

CANCELLED_CODES: Final = ("cancelled", "batch_cancelled")
"""Of a request that was cancelled before it ran, by itself or with its batch."""
CHAT_OBJECT: Final = "chat.completion"
"""What OpenAI calls the answer to a conversation."""
_CUT_TYPES: Final = frozenset({"cancelled", "deadline", "error"})
_CUT_REASONS: Final = frozenset({"abort", "error"})
"""`finish_reason` in lines of other programs, which have no `stop_details`."""


def custom_id_of(line: Any) -> str | None:
    """The id of the request that an output line answers; `None` if it has none."""
    custom_id = _at(line, "custom_id")
    return custom_id if isinstance(custom_id, str) else None


def decode_output_line(data: bytes) -> dict[str, Any] | None:
    """The output line that these bytes are; `None` if they are something else, or only a part of one."""
    try:
        line: dict[str, Any] = msgspec.json.decode(data)
    except (ValueError, RecursionError):  # DecodeError and UnicodeDecodeError are ValueErrors
        return None
    return line if is_output_line(line) else None


def is_output_line(line: Any) -> bool:
    """Whether this says whom it answers and with what: a request has an id, too."""
    has_outcome = _at(line, "response") is not None or _at(line, "error") is not None
    return has_outcome and custom_id_of(line) is not None


def is_success(line: Any) -> bool:
    """Whether an output line holds an answer."""
    return _at(line, "response", "status_code") == 200 and _at(line, "error") is None


def is_cut(line: Any) -> bool:
    """Whether an output line has a part of an answer, or lacks one of several: somebody cancelled it, its time ran out,
    or one of its rows died."""
    choices = choices_of(line)
    stops = [_at(choice, "stop_details", "type") for choice in choices]
    return are_cut(filter(_is_text, stops), filter(_is_text, (choice.get("finish_reason") for choice in choices)))


def are_cut(stop_types: Iterable[str], finish_reasons: Iterable[str]) -> bool:
    """The same of an answer with choices that ended so."""
    return not (_CUT_TYPES.isdisjoint(stop_types) and _CUT_REASONS.isdisjoint(finish_reasons))


def is_cancelled(line: Any) -> bool:
    """Whether an output line is that of a cancelled request: one that never ran, or a part of an answer."""
    if error_code_of(line) in CANCELLED_CODES:
        return True
    return any(stop.get("type") == "cancelled" for stop in stop_details_of(line))


def content_hash_of(line: Any) -> str | None:
    """The hash of the request that an output line answers; `None` for one without an answer by mlxq."""
    value = _at(line, "response", "body", "mlxq", "content_hash")
    return value if isinstance(value, str) else None


def default_max_tokens_of(line: Any) -> int | None:
    """The worker's limit that was in force for a request without one of its own; `None` where that isn't known."""
    value = _at(line, "response", "body", "mlxq", "default_max_tokens")
    return value if type(value) is int else None


def sampling_defaults_of(line: Any) -> dict[str, float] | None:
    """What the model's own sampling defaults have filled in of a request; `None` where that isn't known."""
    if _at(line, "response", "body", "mlxq", "generation_config") is None:
        return None
    values = _at(line, "response", "body", "mlxq", "sampling_defaults")
    known = values.items() if isinstance(values, dict) else ()
    return {name: value for name, value in known if type(value) in (int, float)}


def raised_max_tokens_of(line: Any) -> int | None:
    """The limit of a retry, which is larger than that of the request; `None` for an answer to the request as it is."""
    value = _at(line, "response", "body", "mlxq", "raised_max_tokens")
    return value if type(value) is int else None


def model_of(line: Any) -> str | None:
    """The name of the model that gave the answer in an output line; `None` for one without an answer."""
    value = _at(line, "response", "body", "model")
    return value if isinstance(value, str) else None


def eos_of(line: Any) -> tuple[tuple[int, str], ...]:
    """The ids and texts of the end tokens that were in force for an answer; none where it says none."""
    ends = _at(line, "response", "body", "mlxq", "eos")
    pairs = ((_at(end, "id"), _at(end, "token")) for end in ends) if isinstance(ends, list) else ()
    return tuple((number, token) for number, token in pairs if type(number) is int and isinstance(token, str))


def ignores_eos_of(line: Any) -> bool | None:
    """Whether a request without end tokens wanted to have none; `None` where that isn't known."""
    value = _at(line, "response", "body", "mlxq", "ignore_eos")
    return value if isinstance(value, bool) else None


def object_of(line: Any) -> str | None:
    """What OpenAI calls the answer in an output line; `None` for one without an answer."""
    value = _at(line, "response", "body", "object")
    return value if isinstance(value, str) else None


def choices_of(line: Any) -> tuple[dict[str, Any], ...]:
    """The answers in an output line, in order; none if it holds an error."""
    choices = _at(line, "response", "body", "choices")
    return tuple(choice for choice in choices if isinstance(choice, dict)) if isinstance(choices, list) else ()


def seed_of(line: Any, choice: Any) -> int | None:
    """The seed of one choice of an output line: its own, or that of the request; `None` where it isn't known."""
    value = _at(choice, "seed")
    if choice and value is None:
        value = _at(line, "response", "body", "mlxq", "seed")
    return value if type(value) is int else None


def stop_details_of(line: Any) -> tuple[dict[str, Any], ...]:
    """The `stop_details` of every choice of an output line. Plain objects, since a newer worker may know more."""
    details = (_at(choice, "stop_details") for choice in choices_of(line))
    return tuple(detail for detail in details if isinstance(detail, dict))


def text_of(choice: Any) -> str | None:
    """The text of one choice; `None` for one that has none, as when it only calls tools."""
    for path in (("message", "content"), ("text",)):
        if isinstance(text := _at(choice, *path), str):
            return text
    return None


def texts_of(line: Any) -> tuple[str, ...]:
    """The text of every choice of an output line that has one."""
    return tuple(text for choice in choices_of(line) if (text := text_of(choice)) is not None)


def calls_of(choice: Any) -> tuple[dict[str, Any], ...]:
    """The functions that one choice calls, with their names and arguments."""
    calls = _at(choice, "message", "tool_calls")
    functions = (_at(call, "function") for call in calls) if isinstance(calls, list) else ()
    return tuple(function for function in functions if isinstance(function, dict))


def error_code_of(line: Any) -> str | None:
    """The code of the error that an output line holds; `None` for one that holds an answer."""
    code = _at(line, "error", "code") or _at(line, "response", "body", "error", "code")
    return code if isinstance(code, str) else None


def error_message_of(line: Any) -> str | None:
    """The message of the error that an output line holds; `None` for one that holds an answer."""
    message = _at(line, "error", "message") or _at(line, "response", "body", "error", "message")
    return message if isinstance(message, str) else None


def error_param_of(line: Any) -> str | None:
    """The field that the error in an output line names; `None` where it names none."""
    param = _at(line, "response", "body", "error", "param")
    return param if isinstance(param, str) else None


def input_of(line: Any) -> str | None:
    """The name of the input file whose request an error line is about; `None` where it says none."""
    value = _at(line, "mlxq", "input")
    return value if isinstance(value, str) else None


def retry_pass_of(line: Any) -> str | None:
    """The name of the pass of retries that wrote an output line; `None` where it says none."""
    value = _at(line, "mlxq", "retry")
    return value if isinstance(value, str) else None


def usage_of(line: Any) -> tuple[int, int]:
    """The prompt and completion tokens of an output line; zeros where it has none."""
    counts = (_at(line, "response", "body", "usage", name) for name in ("prompt_tokens", "completion_tokens"))
    prompt, completion = (count if isinstance(count, int) else 0 for count in counts)
    return prompt, completion


def service_s_of(line: Any) -> float | None:
    """The seconds that an answer has taken, without its time in the queue; `None` where that isn't known."""
    parts = [_at(line, "response", "body", "mlxq", name) for name in ("prefill_s", "decode_s")]
    return sum(parts) if all(type(part) in (int, float) for part in parts) else None


def reasoning_tokens_of(line: Any) -> int:
    """The tokens of an output line's thoughts; zero where it says none."""
    value = _at(line, "response", "body", "usage", "completion_tokens_details", "reasoning_tokens")
    return value if type(value) is int else 0


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _at(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
