"""An answer as it grows: OpenAI's chunks of what is new of it, which join to exactly the whole answer.

What is told has been compared with what was told before, so an answer that another worker had to begin again goes on
where it was, if it is the same; and a gap is closed by the whole answer. Knows neither Redis nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlxq.contract import CHAT, Endpoint

_PARTS = {"reasoning": "reasoning_content", "content": "content"}
_OWN_FIELDS = frozenset({"id", "object", "created", "model", "choices", "usage"})


class Diverged(Exception):
    """The answer is another one than what was told of it."""


class GrowingAnswer:
    """One answer on its way to a client.

    Args:
        request_id: of the answer.
        created: Unix seconds.
        with_usage: a last chunk says what was used.
    """

    def __init__(
        self, endpoint: Endpoint, request_id: str, *, created: int, model: str, with_usage: bool = False
    ) -> None:
        self._is_chat = endpoint == CHAT
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._with_usage = with_usage
        self._told: dict[tuple[int, str], str] = {}
        self._begun: set[int] = set()
        self._has_gap = False

    def grow(self, pieces: list[tuple[int, str, int, str]]) -> Iterator[dict[str, Any]]:
        """Chunks of what is new in these: indices of choices, parts, how many characters come before, and texts."""
        for index, part, start, text in pieces:
            told = self._told.get((index, part), "")
            known = told[start : start + len(text)]
            if self._has_gap or part not in _PARTS or start > len(told) or not text.startswith(known):
                self._has_gap = True  # what is missing comes in the end
                return
            yield from self._tell(index, part, text[len(known) :])

    def end(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Chunks of all that is left to tell, now that the answer is there.

        Raises:
            Diverged: it doesn't begin with what was told.
        """
        self._head["model"] = body["model"]
        choices = body["choices"]
        for choice in choices:
            yield from self._tell_rest(choice)
            is_last = choice is choices[-1]
            others = {name: value for name, value in body.items() if name not in _OWN_FIELDS} if is_last else {}
            yield {**self._chunk(self._ended(choice)), **others}
        if self._with_usage:
            yield {**self._head, "choices": [], "usage": body["usage"]}

    def _tell_rest(self, choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index = choice["index"]
        message = choice["message"] if self._is_chat else {"content": choice["text"]}
        yield from self._begin(index)
        for part, name in _PARTS.items():
            told, whole = self._told.get((index, part), ""), message.get(name) or ""
            if not whole.startswith(told):
                raise Diverged
            yield from self._tell(index, part, whole[len(told) :])
        if calls := message.get("tool_calls"):
            yield self._delta(index, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})

    def _tell(self, index: int, part: str, text: str) -> Iterator[dict[str, Any]]:
        if not text:
            return
        yield from self._begin(index)
        self._told[index, part] = self._told.get((index, part), "") + text
        yield self._delta(index, {_PARTS[part]: text})

    def _begin(self, index: int) -> Iterator[dict[str, Any]]:
        if index not in self._begun and self._is_chat:
            yield self._delta(index, {"role": "assistant", "content": ""})
        self._begun.add(index)

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        shown = {"delta": delta} if self._is_chat else {"text": delta["content"]}
        return self._chunk({"index": index, **shown, "logprobs": None, "finish_reason": None})

    def _ended(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """The last chunk of a choice: all that is said of it but its text."""
        about = {name: value for name, value in choice.items() if name not in ("index", "message", "text")}
        return {"index": choice["index"], **({"delta": {}} if self._is_chat else {"text": ""}), **about}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice], **({"usage": None} if self._with_usage else {})}
