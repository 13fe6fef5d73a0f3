"""Answers as a program reads them: one, with the parts that are asked for most under names of their own, and all of a
batch as they come.

Reads what `mlxq.results.read_back` finds in a line; whatever is missing there is `None` here, and nothing raises. Knows
nothing of Redis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

from mlxq.contract import StopDetails, Usage
from mlxq.results import read_back

Status = Literal["finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class AnswerError:
    """Why there is no answer. `param` names the field at fault, where one is."""

    code: str
    message: str
    param: str | None = None

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Answer:
    """One ended job and its output line, made up (an error line) where the job left none.

    `text`, `finish_reason` and `stop_details` are those of the first answer, where a request has asked for several; all
    of them are in `line`.
    """

    job_id: str
    custom_id: str
    status: Status
    line: dict[str, Any]
    event_id: str

    @property
    def is_success(self) -> bool:
        """Whether there is an answer, be it cut off."""
        return read_back.is_success(self.line)

    @property
    def is_complete(self) -> bool:
        """Whether there is an answer, and all of it: it was not cancelled, and its `timeout` didn't end it."""
        return self.is_success and not read_back.is_cut(self.line)

    @property
    def text(self) -> str | None:
        """What the model wrote; `None` if it only calls tools, or there is no answer."""
        return read_back.text_of(self._choice)

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each of the `n` answers that has one."""
        return read_back.texts_of(self.line)

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's word for how the answer ended."""
        reason = self._choice.get("finish_reason")
        return reason if isinstance(reason, str) else None

    @property
    def stop_details(self) -> StopDetails | None:
        """Why and where it ended. A newer worker may know more types than `StopDetails` says."""
        details = self._choice.get("stop_details")
        if not isinstance(details, dict) or "type" not in details:
            return None
        return StopDetails(**{name: value for name, value in details.items() if name in StopDetails.__struct_fields__})

    @property
    def usage(self) -> Usage | None:
        """Token counts, of all `n` answers together."""
        if not self.is_success:
            return None
        prompt_tokens, completion_tokens = read_back.usage_of(self.line)
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    @property
    def error(self) -> AnswerError | None:
        """Why there is no answer; `None` if there is one."""
        if self.is_success:
            return None
        return AnswerError(
            code=read_back.error_code_of(self.line) or "unknown",
            message=read_back.error_message_of(self.line) or "the request failed",
            param=read_back.error_param_of(self.line),
        )

    @property
    def _choice(self) -> dict[str, Any]:
        return next(iter(read_back.choices_of(self.line)), {})


class Completed(Iterator[Answer], AsyncIterator[Answer]):
    """Answers, each once: ``for answer in ...`` or ``async for answer in ...``, by one reader at a time.

    In a coroutine the waiting is done in a thread. One that is cancelled while it waits leaves that thread to end by
    itself; iterate anew with another `Batch.as_completed`.
    """

    def __init__(self, answers: Generator[Answer]) -> None:
        self._answers = answers

    def close(self) -> None:
        """Read no further: what was to be done in the end is done now."""
        self._answers.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Answer:
        return next(self._answers)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        import asyncio  # only for those who have it already

        answer = await asyncio.to_thread(next, self._answers, None)
        if answer is None:
            raise StopAsyncIteration
        return answer
