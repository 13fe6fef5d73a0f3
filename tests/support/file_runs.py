"""Runs from file to file with a fake worker, for tests: the three files, and `process` over them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxq.files.bulk import process
from mlxq.files.input import BadLine, read_unknown
from mlxq.files.known_lines import KnownLines
from mlxq.files.tally import Summary, Tally
from mlxq.queue.client import Client
from mlxq.requests.openai import ParsedLine


class Files:
    """The three files of a run in a directory."""

    def __init__(self, directory: Path) -> None:
        self.input = directory / "in.jsonl"
        self.output = directory / "out.jsonl"
        self.errors = directory / "out.errors.jsonl"

    def write_input(self, *lines: dict[str, Any] | str) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.input.write_text("".join(f"{text}\n" for text in texts))

    def write_numbered(self, count: int) -> None:
        self.write_input(*(prompt(f"r{i}") for i in range(count)))

    def answers(self) -> list[str]:
        return self._custom_ids(self.output)

    def failures(self) -> list[str]:
        return self._custom_ids(self.errors)

    def _custom_ids(self, path: Path) -> list[str]:
        return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] if path.exists() else []


def prompt(custom_id: str, text: str = "Say hello") -> dict[str, Any]:
    return {"custom_id": custom_id, "prompt": text}


def go_on(tally: Tally) -> bool:
    return True


def run(url: str, files: Files, *, lines: Iterator[ParsedLine | BadLine] | None = None, **options: Any) -> Summary:
    """A run over the input, or over these lines."""
    options.setdefault("on_turn", go_on)
    known = KnownLines()
    given = lines or read_unknown(files.input, known)
    return process(Client(url), given, files.output, files.errors, known=known, **options)
