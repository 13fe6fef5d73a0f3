"""The requests of a run and what must come of them, which an undisturbed `mlxq run` finds out beforehand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tests.support.processes import MLXQ, environment

from mlxq_worker.demo.tasks import Example, Task, generate

Line = dict[str, Any]

TASKS: tuple[Task, ...] = ("chat", "count", "tool", "count", "plain", "count")
"""In turn. Half of all requests count, which takes 4 to 200 tokens; the others are short."""
SEEDED_EVERY = 5
"""One request in so many is sampled with a seed of its own; the others are greedy."""
SEVERAL_UP_TO = 3
"""How many answers the sampled requests ask for, in turn from 1 on."""
PLAIN_RUN_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Files:
    """Input, output and error file of one run."""

    input: Path
    output: Path
    errors: Path

    @classmethod
    def within(cls, directory: Path) -> Files:
        directory.mkdir(parents=True, exist_ok=True)
        return cls(directory / "in.jsonl", directory / "out.jsonl", directory / "out.errors.jsonl")

    @property
    def options(self) -> tuple[str, ...]:
        return ("-i", str(self.input), "-o", str(self.output), "--error-file", str(self.errors))


def requests(count: int, seed: int) -> list[Line]:
    """Mixed in kind and length; equal arguments give equal requests."""
    return [_request(index, example) for index, example in enumerate(islice(generate(seed, "held_out", TASKS), count))]


def write(path: Path, lines: Iterable[Line]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def read(path: Path) -> list[Line]:
    """The lines of a result file; none if it isn't there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def undisturbed(lines: Iterable[Line], files: Files) -> dict[str, Line]:
    """The answers by custom id, by a plain `mlxq run`.

    Raises:
        subprocess.SubprocessError: it failed, or took too long.
    """
    write(files.input, lines)
    command = (*MLXQ, "run", *files.options)
    subprocess.run(command, env=environment(), check=True, timeout=PLAIN_RUN_DEADLINE_S, capture_output=True)
    return {line["custom_id"]: line for line in read(files.output)}


def essence(line: Mapping[str, Any]) -> Line:
    """What two runs must agree on: the choices with their texts, calls and ends, and the token counts."""
    body = line["response"]["body"]
    return {"choices": [_without_draws(choice) for choice in body["choices"]], "usage": body["usage"]}


def _without_draws(choice: Mapping[str, Any]) -> Line:
    """A choice without what each run draws anew: a seed where the request has none, and the ids of tool calls."""
    kept = {name: value for name, value in choice.items() if name != "seed"}
    if calls := choice.get("message", {}).get("tool_calls"):
        kept["message"] = {**choice["message"], "tool_calls": [call["function"] for call in calls]}
    return kept


def _request(index: int, example: Example) -> Line:
    is_seeded = index % SEEDED_EVERY == 0
    sampled = {"temperature": 1.0, "seed": 1000 + index, "n": 1 + index % SEVERAL_UP_TO}
    body = {**example.body, **sampled} if is_seeded else example.body
    kind = "seeded" if is_seeded else "greedy"
    return {"custom_id": f"{kind}-{example.task}-{index}", "url": example.url, "body": body}
