"""Answers that go on where an earlier one hit its limit: which can, and how both become one.

What follows a text can be asked for where the text is all that there is to the answer. Knows no queues and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxq.contract import Sampling
from mlxq.requests.openai import ParsedLine
from mlxq.results.read_back import choices_of, is_success, stop_details_of, text_of, usage_of

_PLAIN = Sampling()
_NEEDS_ALL = ("n", "beam", "logprobs", "prompt_logprobs", "return_token_ids", "thinking_token_budget")
"""What an answer in parts can't have: several texts, scores or ids of all tokens, a limit on all of its thoughts."""


def can_go_on(line: Mapping[str, Any]) -> bool:
    """Whether an output line holds one text that hit its limit, and nothing beside it."""
    choices, stops = choices_of(line), stop_details_of(line)
    if not is_success(line) or len(choices) != 1 or [stop.get("type") for stop in stops] != ["max_tokens"]:
        return False
    message = choices[0].get("message") or {}
    return bool(text_of(choices[0])) and not (message.get("tool_calls") or message.get("reasoning_content"))


def can_be_continued(line: ParsedLine) -> bool:
    """Whether the answer to this request can be in parts."""
    request = line.request
    is_plain = all(getattr(request.sampling, name) == getattr(_PLAIN, name) for name in _NEEDS_ALL)
    is_text = request.messages is not None or isinstance(request.prompt, str)
    return is_plain and is_text and not (request.tools or request.structure or request.echo)


def going_on(line: ParsedLine, part: Mapping[str, Any]) -> ParsedLine:
    """The request for what follows the answer in this output line."""
    body, text = dict(line.payload["body"]), text_of(choices_of(part)[0]) or ""
    if "prompt" in body:
        return line.with_body({**body, "prompt": body["prompt"] + text})
    messages = list(body["messages"])
    if body.get("continue_final_message"):
        last = messages.pop()
        messages.append({**last, "content": _joined(last["content"], text)})
    else:
        messages.append({"role": "assistant", "content": text})
    body.pop("add_generation_prompt", None)
    return line.with_body({**body, "messages": messages, "continue_final_message": True})


def joined_line(part: Mapping[str, Any], rest: Mapping[str, Any], content_hash: str) -> dict[str, Any]:
    """The output line of the whole answer, which is to the request itself: both texts, the tokens of both, and the end
    of the last part. A failure stays as it is."""
    if not is_success(rest):
        return dict(rest)
    body, [first], [last] = rest["response"]["body"], choices_of(part), choices_of(rest)
    (prompt_tokens, num_before), (_, num_after) = usage_of(part), usage_of(rest)
    text = (text_of(first) or "") + (text_of(last) or "")
    stop = dict(last["stop_details"])
    if stop.get("token_index") is not None:
        stop["token_index"] += num_before
    whole = {"message": {**last["message"], "content": text}} if "message" in last else {"text": text}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": num_before + num_after,
        "total_tokens": prompt_tokens + num_before + num_after,
    }
    num_parts = part["response"]["body"]["mlxq"].get("parts", 1) + 1
    about = {**body["mlxq"], "content_hash": content_hash, "parts": num_parts}
    choices = [{**last, **whole, "stop_details": stop}]
    body = {**body, "choices": choices, "usage": {**body["usage"], **usage}, "mlxq": about}
    return {**rest, "response": {**rest["response"], "body": body}}


def _joined(content: Any, text: str) -> Any:
    """The content of a message, which may be a list of parts, with more text behind it."""
    return content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]
