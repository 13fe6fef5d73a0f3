"""Requests for the demo model and the answers to them, as files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxq.results import read_back
from mlxq.results.read_back import calls_of, choices_of
from mlxq_worker.demo.tasks import Example, count_example, held_out

Line = dict[str, Any]


def demo_examples(count: int) -> dict[str, Example]:
    """Requests of every kind, by custom id: `chat-0`, `tool-1`, `count-2`, `plain-3`, `chat-4`, ..."""
    return {f"{example.task}-{index}": example for index, example in enumerate(held_out(count))}


def request(custom_id: str, example: Example) -> Line:
    """The input line of an example."""
    return {"custom_id": custom_id, "method": "POST", "url": example.url, "body": example.body}


def requests(examples: Mapping[str, Example]) -> list[Line]:
    """The input lines of examples by custom id."""
    return [request(custom_id, example) for custom_id, example in examples.items()]


def endless(custom_id: str, *, max_tokens: int, **body: Any) -> Line:
    """A request to count from 1 on, which nothing ends but its limits."""
    line = request(custom_id, count_example(1, 200))
    return {**line, "body": {**line["body"], "max_tokens": max_tokens, "ignore_eos": True, **body}}


def write_lines(path: Path, lines: Iterable[Line | str]) -> Path:
    """Write objects, and texts as they are."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def read_lines(path: Path) -> dict[str, Line]:
    """Output lines by custom id, in the order of the file; each id must be there once. A missing file is empty."""
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines), f"{path} has a custom id twice"
    return by_id


def choice(line: Line) -> dict[str, Any]:
    """The one choice of an answer."""
    [found] = line["response"]["body"]["choices"]
    assert isinstance(found, dict)
    return found


def text_of(line: Line) -> str:
    """What the model wrote as its one answer, chat or completion; a call as the demo model writes one."""
    [found] = choices_of(line)
    if calls := calls_of(found):
        [call] = calls
        return json.dumps({"name": call["name"], "parameters": json.loads(call["arguments"])})
    text = read_back.text_of(found)
    assert text is not None
    return text
