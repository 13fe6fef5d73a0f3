"""The counts of a batch, as its hash in Redis has them; `mlxq.keys` says which there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopCount:
    """How many finished choices ended this way; `token_id` is `None` where no token ended them."""

    type: str
    token_id: int | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """A snapshot of one batch. `created` is in Unix seconds; `stops` has the most frequent first."""

    batch_id: str
    queue: str
    created: float
    total: int
    sealed: bool
    cancelled: bool
    num_finished: int
    num_failed: int
    num_cancelled: int
    prompt_tokens: int
    completion_tokens: int
    stops: tuple[StopCount, ...]

    @property
    def num_ended(self) -> int:
        return self.num_finished + self.num_failed + self.num_cancelled

    @property
    def is_done(self) -> bool:
        return self.sealed and self.num_ended >= self.total


def read_counts(batch_id: str, fields: Mapping[str, str]) -> BatchCounts:
    """The counts in the fields of a batch's hash."""
    stops = [_stop_count(name, value) for name, value in fields.items() if name.startswith("stop:")]
    return BatchCounts(
        batch_id=batch_id,
        queue=fields["queue"],
        created=float(fields["created"]),
        total=int(fields["total"]),
        sealed=fields["sealed"] == "1",
        cancelled=fields["cancelled"] == "1",
        num_finished=int(fields.get("finished", 0)),
        num_failed=int(fields.get("failed", 0)),
        num_cancelled=int(fields.get("cancelled_jobs", 0)),
        prompt_tokens=int(fields.get("prompt_tokens", 0)),
        completion_tokens=int(fields.get("completion_tokens", 0)),
        stops=tuple(sorted(stops, key=lambda stop: (-stop.count, stop.type))),
    )


def _stop_count(name: str, value: str) -> StopCount:
    _, stop_type, token_id = name.split(":")
    return StopCount(stop_type, int(token_id) if token_id else None, int(value))
