"""Counts what becomes of the requests of one run, and sums it up: how many, how fast, and why answers stopped.

Reads output lines; writes and prints nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxq.files.failures import FailureCount, Failures
from mlxq.results.read_back import (
    custom_id_of,
    eos_of,
    error_code_of,
    error_message_of,
    is_cancelled,
    is_cut,
    is_success,
    model_of,
    service_s_of,
    stop_details_of,
    usage_of,
)


@dataclass(frozen=True, slots=True)
class StopTextCount:
    """How many choices ended this way. `token` is the end token's text or the stop string, where there is one; the
    `StopCount` of a batch has the token's id."""

    type: str
    token: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came of a run. Every input line is one of `skipped`, `succeeded`, `cut`, `failed` and `cancelled`, unless
    `interrupted`. The part of an answer that was `cancelled` counts as that, any other that is not whole as `cut`.

    `skipped` were answered by an earlier run; `changed` had an answer there, but to something else that was asked under
    their id, `retried` one that was asked for again because of how it ended. `unasked` are the answers in the output
    file to requests that this run does not have, `unasked_failures` those in the error file; they are in no other
    count. `models` tells whose the answers are, skipped ones too. `failures` are the messages of those that failed,
    `dropped` the fields that were left out of requests. Each of these has the most frequent first.
    """

    skipped: int
    succeeded: int
    failed: int
    error_codes: tuple[tuple[str, int], ...]
    stops: tuple[StopTextCount, ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    interrupted: bool = False
    models: tuple[tuple[str, int], ...] = ()
    unasked: int = 0
    unasked_failures: int = 0
    cancelled: int = 0
    cut: int = 0
    changed: int = 0
    retried: int = 0
    failures: tuple[FailureCount, ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()
    eos: tuple[tuple[str | None, tuple[tuple[int, str], ...]], ...] = ()

    def eos_of(self, model: str) -> tuple[tuple[int, str], ...]:
        """The ids and texts of all end tokens that answers of this model, in this run, could end on."""
        found = {end: None for name, ends in self.eos if name == model for end in ends}
        return tuple(found)

    @property
    def total(self) -> int:
        return self.skipped + self.succeeded + self.cut + self.failed + self.cancelled


NUM_SERVICE_TIMES = 2048
"""Of the last answers, as many as tell how they are spread, the rare long ones among them, on which the end waits."""


@dataclass(slots=True)
class Tally:
    """The counts of a run so far; they only rise. Three tell of now: `num_inflight`, the requests in the queue,
    `is_waiting`, whether the run waits for Redis to come back, and `service_s`, how long the last answers have taken,
    without their time in the queue."""

    skipped: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    cut: int = 0
    changed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_inflight: int = 0
    is_waiting: bool = False
    service_s: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_SERVICE_TIMES))
    _started: float = field(default_factory=time.monotonic)
    _error_codes: Counter[str] = field(default_factory=Counter)
    _stops: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    _models: Counter[str] = field(default_factory=Counter)
    _failures: Failures = field(default_factory=Failures)
    _dropped: Counter[str] = field(default_factory=Counter)
    _eos: dict[tuple[str | None, tuple[tuple[int, str], ...]], None] = field(default_factory=dict)
    _last_eos: tuple[str | None, Any] = (None, ())

    @property
    def num_done(self) -> int:
        return self.skipped + self.succeeded + self.cut + self.failed + self.cancelled

    @property
    def seconds(self) -> float:
        """Since the tally was begun."""
        return time.monotonic() - self._started

    def skip(self, model: str | None, count: int = 1) -> None:
        """Count requests that this model has answered before."""
        self.skipped += count
        self._count_model(model, count)

    def drop(self, fields: Iterable[str]) -> None:
        """Count the fields that were left out of one request."""
        self._dropped.update(fields)

    def add(self, line: Mapping[str, Any], place: str | None = None) -> None:
        """Count one output line. `place` is where its request stands, if it is not known by its id."""
        prompt_tokens, completion_tokens = usage_of(line)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        for stop in (stops := stop_details_of(line)):
            self._stops[str(stop.get("type")), _label(stop)] += 1
        if (service_s := service_s_of(line)) is not None:
            self.service_s.append(service_s)
        self._count_model(model := model_of(line))
        if self._last_eos != (last := (model, eos_of(line))):  # all lines of a run mostly say the same
            self._last_eos = last
            self._eos[model, last[1]] = None
        is_answer = is_success(line)
        if any(stop.get("type") == "cancelled" for stop in stops) or (not is_answer and is_cancelled(line)):
            self.cancelled += 1
        elif is_answer:
            is_whole = not is_cut(line)
            self.succeeded += is_whole
            self.cut += not is_whole
        else:
            self.failed += 1
            code = error_code_of(line) or "unknown"
            self._error_codes[code] += 1
            message = error_message_of(line) or "it doesn't say why"
            self._failures.add(code, message, place or f"request {custom_id_of(line)}")

    def summary(self, *, interrupted: bool = False, unasked: int = 0, unasked_failures: int = 0) -> Summary:
        """The counts as of now."""
        return Summary(
            skipped=self.skipped,
            succeeded=self.succeeded,
            failed=self.failed,
            cancelled=self.cancelled,
            cut=self.cut,
            changed=self.changed,
            retried=self.retried,
            error_codes=tuple(self._error_codes.most_common()),
            stops=tuple(StopTextCount(kind, token, count) for (kind, token), count in self._stops.most_common()),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=self.seconds,
            interrupted=interrupted,
            models=tuple(self._models.most_common()),
            unasked=unasked,
            unasked_failures=unasked_failures,
            failures=self._failures.most_common(),
            dropped=tuple(self._dropped.most_common()),
            eos=tuple(self._eos),
        )

    def _count_model(self, model: str | None, count: int = 1) -> None:
        if model is not None:
            self._models[model] += count


def _label(stop: Mapping[str, Any]) -> str | None:
    label = stop.get("token") or stop.get("string")
    return None if label is None else str(label)


POLL_S = 0.5
"""How long a turn of a run waits for an answer at most: its `OnTurn` is called about that often."""

OnTurn = Callable[[Tally], bool]
"""Sees the counts after every turn of a run and says whether to go on; what it raises ends the run."""
