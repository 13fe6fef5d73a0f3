"""The first look at a batch's input, before any of it is queued: whether each answer could be told apart.

As OpenAI does, a whole batch is refused for a line that no answer could be found by (no JSON, an id used twice, another
endpoint); what is wrong with a request itself costs that request only, later. Reads one line at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxq.errors import InputFileError
from mlxq.files.input import BadLine, read_requests
from mlxq.requests.openai import ParsedLine
from mlxq.serve.store.records import LineError

MAX_ERRORS = 100
"""Errors that are listed; a file of something else has one in every line."""
CHECK_LINES = 500
"""Lines between two looks at whether to go on."""
_AROUND_THE_BODY = frozenset({"custom_id", "id", "method", "url"})


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found: how many requests there are, and what is wrong with the batch."""

    num_requests: int
    errors: tuple[LineError, ...]


def batch_lines(path: Path, allow_unknown: bool) -> Iterator[ParsedLine | BadLine]:
    """The requests of a batch, as `mlxq run` reads them."""
    return read_requests(path, input_format="jsonl", allow_unknown=allow_unknown)


def inspect(
    path: Path, *, name: str, endpoint: str, max_requests: int, allow_unknown: bool, check: Callable[[], None]
) -> Inspection:
    """Look at every line of a batch's input.

    Args:
        name: what the file is called where an error speaks of it.
        endpoint: what each line must ask for.
        check: called now and then; ends the look by what it raises.
    """
    errors: list[LineError] = []
    number = 0
    try:
        for number, line in enumerate(batch_lines(path, allow_unknown), start=1):
            if number % CHECK_LINES == 0:
                check()
            if (error := _error_of(line, endpoint)) is not None:
                errors.append(error)
            if number > max_requests:
                message = f"the file has more than {max_requests} requests; send it in several batches"
                errors.append(LineError(code="too_many_requests", message=message))
            if len(errors) >= MAX_ERRORS or number > max_requests:
                break
    except InputFileError as error:
        errors.append(LineError(code="invalid_file", message=str(error).replace(str(path), name)))
    if number == 0 and not errors:
        errors.append(LineError(code="empty_file", message="the file has no requests"))
    return Inspection(number, tuple(errors))


def _error_of(line: ParsedLine | BadLine, endpoint: str) -> LineError | None:
    if isinstance(line, BadLine):
        if line.owns_id and line.error.param not in _AROUND_THE_BODY:
            return None  # the answer to this line says so, and its neighbours' don't
        error = line.error
        return LineError(code=error.code, message=error.message, param=error.param, line=line.line_number)
    if line.asked != endpoint:
        asked = f"request {line.request.custom_id} asks for {line.asked}"
        return LineError(code="mismatched_endpoint", message=f"{asked}, and the batch for {endpoint}", param="url")
    return None
