"""The two result files of a batch that nobody writes any more: every request once, counted, and the rest answered.

A process that is killed may leave two lines for one request, or a failure beside the answer that came later; here the
last one stays. Knows nothing of the queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlxq import keys
from mlxq.contract import Failure
from mlxq.files.input import BadLine
from mlxq.files.output.error_file import ErrorFile
from mlxq.files.output.rewriting import Ids, order_file
from mlxq.files.output.stored import read_lines
from mlxq.files.paths import count_lines
from mlxq.requests.openai import ParsedLine
from mlxq.results import read_back
from mlxq.results.result_lines import failure_line
from mlxq.serve.store.records import Counts, TokenUsage
from mlxq.storage.id_table import IdTable


@dataclass(frozen=True, slots=True)
class Reason:
    """Why requests get no answer any more, in OpenAI's words for it."""

    code: str
    message: str


EXPIRED = Reason("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = Reason("batch_cancelled", "This request was not executed, since the batch was cancelled.")


@dataclass(frozen=True, slots=True)
class Results:
    """What is in the two files."""

    num_completed: int
    num_failed: int
    usage: TokenUsage

    def counts(self, total: int) -> Counts:
        return Counts(total=total, completed=self.num_completed, failed=self.num_failed)


def settle(
    output: Path,
    errors: Path,
    *,
    batch_id: str,
    lines: Iterable[ParsedLine | BadLine] = (),
    reason: Reason | None = None,
) -> Results:
    """Leave one line for each request in one of the files. May be repeated.

    Args:
        lines: the input, where some of it may have no outcome.
        reason: what is said of those requests.

    Raises:
        InputFileError: a file can't be read or written; whatever is there stays.
    """
    answered = _ids_once(output, without=frozenset())
    failed = _ids_once(errors, without=answered)
    if reason is not None:
        with ErrorFile(errors, keep=True) as error_file:
            for line in lines:
                if (custom_id := _custom_id(line)) not in answered and failed.add(custom_id):
                    error_file.append(failure_line(_failure(line, reason, batch_id)))
    return Results(len(answered), len(failed), _usage(output))


def _ids_once(path: Path, *, without: Ids) -> IdTable:
    """The ids in a file, which has each of them once afterwards, and none of `without`."""
    ids = IdTable()
    if path.is_file():
        for custom_id in (str(line["custom_id"]) for line in read_lines(path)):
            if custom_id not in without:
                ids.add(custom_id)
        if count_lines(path) != len(ids):
            order_file(path, (), without=without)
    return ids


def _custom_id(line: ParsedLine | BadLine) -> str:
    return line.custom_id if isinstance(line, BadLine) else line.request.custom_id


def _failure(line: ParsedLine | BadLine, reason: Reason, batch_id: str) -> Failure:
    """What is wrong with the request itself goes before what became of its batch."""
    if isinstance(line, BadLine):
        return line.failure()
    custom_id = line.request.custom_id
    job_id = keys.job_id(batch_id, custom_id)
    return Failure(custom_id=custom_id, request_id=job_id, code=reason.code, message=reason.message)


def _usage(output: Path) -> TokenUsage:
    prompt = completion = reasoning = 0
    for line in read_lines(output) if output.is_file() else ():
        counts = read_back.usage_of(line)
        prompt, completion = prompt + counts[0], completion + counts[1]
        reasoning += read_back.reasoning_tokens_of(line)
    return TokenUsage(prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=reasoning)
