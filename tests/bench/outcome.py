"""What one run of one system over one workload came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answers and costs of one run.

    `answers` holds something that equal greedy answers have in common, in the order of the requests: token ids or text,
    one kind for each pair of systems that is compared. `num_tokens` are the useful ones. `rows_computed` counts
    the rows of all decode steps, `peak_bytes` the most that MLX had allocated; `None` where a system doesn't say.
    """

    answers: tuple[str, ...]
    num_tokens: int
    seconds: float
    rows_computed: int | None = None
    peak_bytes: int | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def row_efficiency(self) -> float | None:
        """Useful rows over computed rows."""
        return self.num_tokens / self.rows_computed if self.rows_computed else None


def same_answers(one: Outcome, other: Outcome) -> float:
    """The share of the requests, as far as both runs have them, that got the same answer."""
    pairs = list(zip(one.answers, other.answers, strict=False))
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)
