"""Answers that always hit their limit, and say how often they have been asked for: to see what was asked for again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.support.fake_worker import echo

from mlxq.contract import Request
from mlxq.results.read_back import texts_of


class Tries:
    """What a `FakeWorker` answers."""

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def __call__(self, request: Request, job_id: str) -> dict[str, Any]:
        self._counts[request.custom_id] += 1
        line = echo(request, job_id)
        stop = {"type": "max_tokens", "token_id": None, "token": None, "string": None, "token_index": 2}
        text = f" {self._counts[request.custom_id]}"
        line["response"]["body"]["choices"][0] |= {"text": text, "finish_reason": "length", "stop_details": stop}
        return line


def last_try(line: dict[str, Any]) -> int:
    """The number of the try that an answer, or its last part, is from."""
    [text] = texts_of(line)
    return int(text.rpartition(" ")[2])
